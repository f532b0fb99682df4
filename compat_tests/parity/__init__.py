"""Logits, decodings, files: upstream's, exactly."""
