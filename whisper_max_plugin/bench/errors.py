"""What ``whisper-max bench`` refuses, and what can go wrong with a subject."""

from __future__ import annotations

from whisper_max_plugin.errors import WhisperMaxError


class BenchError(WhisperMaxError, ValueError):
    """Arguments that cannot be measured, or a file that cannot be read or written."""


class SubjectError(WhisperMaxError, RuntimeError):
    """A subject's process failed or died."""
