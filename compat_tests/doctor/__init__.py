"""`whisper-max doctor`, and its `--parity`."""
