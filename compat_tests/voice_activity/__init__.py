"""`--vad` and `speech_clips`."""
