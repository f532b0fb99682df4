"""``whisper-max live``: transcribes while somebody speaks."""
