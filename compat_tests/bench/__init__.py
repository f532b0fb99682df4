"""`whisper-max bench`."""
