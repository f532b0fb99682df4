"""The errors that users meet: each message is one sentence that says what is wrong and what to do.

A part that raises errors of its own, such as ``bench``, derives them from `WhisperMaxError` where it needs them.
"""

from __future__ import annotations

from collections.abc import Iterable


class WhisperMaxError(Exception):
    """Base of the package's errors; commands print its message without a traceback."""


class UnknownBackendError(WhisperMaxError, ValueError):
    """No registered backend has this name."""


class BackendUnavailableError(WhisperMaxError, RuntimeError):
    """The backend is registered and cannot run here; the message is its reason."""


class UnsupportedWhisperError(WhisperMaxError, RuntimeError):
    """The imported whisper lacks what this plugin patches."""


class UnknownModelError(WhisperMaxError, ValueError):
    """A name is neither an official model's nor a file's."""

    @classmethod
    def of(cls, name: str, official: Iterable[str], machine: str | None = None) -> UnknownModelError:
        """Say what would be known; `machine` is the one of many that looked for it."""
        on, everywhere = ("", "") if machine is None else (f" on {machine}", " that is there on all machines")
        return cls(f"no model {name!r}{on}: give the path of a checkpoint{everywhere}, or one of {', '.join(official)}")


class CommandLineError(WhisperMaxError, ValueError):
    """Options of a command do not go together."""


class LiveInputError(WhisperMaxError, RuntimeError):
    """What is to be transcribed as it comes cannot be read."""


class DeviceError(WhisperMaxError, ValueError, RuntimeError):
    """Graphs do not run on a device, or should not: there is none of this name or architecture, MAX cannot compile for
    it, its memory is full, or what it computes is not what torch computes.

    torch raises a RuntimeError where it knows no device of a name, or the memory of one is full."""


class MemoryFullError(DeviceError):
    """What was asked for does not fit into a device's memory, beside what is there."""


class PrecisionError(WhisperMaxError, ValueError):
    """A precision was asked for that does not exist, or not for this backend, device or model."""


class CheckpointError(WhisperMaxError, RuntimeError):
    """A checkpoint, or a model's state, cannot be used as it is."""


class FallbackError(WhisperMaxError, RuntimeError):
    """A graph could not serve a call, and ``WHISPER_MAX_STRICT=1`` forbids falling back to torch."""


class ForkedProcessError(WhisperMaxError, RuntimeError):
    """Graphs were asked to run in a process that was forked from one in which MAX had started."""


class OptionError(WhisperMaxError, ValueError):
    """A function was given an option that it does not have, or a value that cannot be meant."""


class PackageError(WhisperMaxError, ImportError):
    """An optional package that was asked for is not installed, or is another version than the one that is known."""


class VoiceActivityError(WhisperMaxError, ValueError):
    """Speech cannot be looked for in this audio, or not together with what else was asked for."""


class OutputError(WhisperMaxError, RuntimeError):
    """Results cannot be written where they were asked for, or not added to what is there."""


class WorkerError(WhisperMaxError, RuntimeError):
    """What ended the work of a process that transcribes, and is no recording's fault."""
