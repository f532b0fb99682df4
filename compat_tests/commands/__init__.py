"""`whisper … --backend max`, `whisper-max`, `python -m whisper_max_plugin` and the environment."""
