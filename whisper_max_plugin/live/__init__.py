"""``whisper-max live``: transcribes while somebody speaks."""

MIN_CHUNK = 1.0  # seconds of new audio for a pass
