"""`whisper-max live`."""
