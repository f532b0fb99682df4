"""Upstream's model and decoding, with graphs in place of the forward passes."""
