"""Tells what upstream's own `transcribe()` has done so far, window by window, while it runs.

Upstream returns all segments at once. Its loop over windows of 30 s is one long function that a release may change
anywhere, so a copy of it would drift from the installed one; here the loop that runs is upstream's, unmodified, and is
watched: to cut out each window it calls `pad_or_trim`, a global of its module that `upstream.py` replaces for as long
as somebody watches, and at that moment its local variables say what lies behind.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from whisper_max_plugin import upstream
from whisper_max_plugin.errors import UnsupportedWhisperError

FRAMES_PER_SECOND = 100  # whisper.audio.FRAMES_PER_SECOND
NEWEST_KNOWN = "20250625"  # release of openai-whisper
NEEDED = frozenset({"all_segments", "seek", "content_frames", "language"})  # local variables of upstream's transcribe()


@dataclass(frozen=True)
class Window:
    """What is known when a window begins, and when the last one is done."""

    seconds: float  # of audio that lie behind
    duration: float  # of the audio, in seconds
    language: str  # its code, as upstream's result has it
    segments: list[dict[str, Any]]  # upstream's own, those that came since the last call


class _Here(threading.local):
    observer: _Observer | None = None


_here = _Here()


@contextmanager
def observed(on_window: Callable[[Window], object]) -> Iterator[None]:
    """Watch the one `whisper.transcribe()` that this thread runs in the block; other threads are not watched.

    `with observed(print): result = transcribe(model, audio)` calls `on_window` when a window begins, so also behind
    windows without speech, and once more when `transcribe()` has returned; of audio without any window, not at all.
    The segments of all calls are `result["segments"]`. `transcribe` may be upstream's or somebody's wrapper of it.

    Parameters
    ----------
    on_window : Callable[[Window], object]
        called on this thread; an error that it raises ends `transcribe()`

    Raises
    ------
    UnsupportedWhisperError
        by `transcribe()`, when its loop is not the one that is known
    """
    observer, outer = _Observer(on_window), _here.observer
    with upstream.window_cuts_told(_cut):
        _here.observer = observer
        try:
            yield
        finally:
            _here.observer = outer
    observer.finish()


def _cut(frame: FrameType) -> None:
    """Look into `frame`, whose code is cutting out a window."""
    if _here.observer is not None:
        _here.observer.look(_transcribes(frame))


def _transcribes(frame: FrameType) -> FrameType:
    """Return the frame of upstream's `transcribe()`: `frame`, or one outside of it where others patched whisper too."""
    caller: FrameType | None = frame
    while caller is not None:
        if NEEDED.issubset((*caller.f_code.co_varnames, *caller.f_code.co_cellvars)):
            return caller
        caller = caller.f_back
    raise UnsupportedWhisperError(
        f"{frame.f_code.co_name}() in {frame.f_code.co_filename} lacks variables from which progress is read "
        f"({', '.join(sorted(NEEDED))}): pip install openai-whisper=={NEWEST_KNOWN}, or do without progress"
    )


class _Observer:
    """Reads upstream's variables and keeps what was told already."""

    def __init__(self, on_window: Callable[[Window], object]) -> None:
        self.on_window = on_window
        self.all_segments: list[dict[str, Any]] = []  # upstream's list, which grows in place
        self.n_told = 0
        self.seek: int | None = None  # where the latest window begins, in frames
        self.duration = 0.0
        self.language: str | None = None  # None before the first window

    def look(self, frame: FrameType) -> None:
        variables = frame.f_locals
        if "all_segments" not in variables:
            return  # upstream cuts out the first 30 s for the detection of the language, too
        if variables["seek"] == self.seek:
            return  # two of our functions, where a patch of somebody else stayed between them
        self.seek = variables["seek"]
        self.all_segments = variables["all_segments"]
        self.language = variables["language"]
        self.duration = variables["content_frames"] / FRAMES_PER_SECOND
        self._tell(min(self.seek / FRAMES_PER_SECOND, self.duration))

    def finish(self) -> None:
        if self.language is not None:
            self._tell(self.duration)

    def _tell(self, seconds: float) -> None:
        assert self.language is not None
        new = self.all_segments[self.n_told :]
        self.n_told += len(new)
        self.on_window(Window(seconds, self.duration, self.language, new))
