"""Several files at a time, segments as they come, and what watches upstream's `transcribe()`."""
