"""`--batch_size N`: the files of one command in lock-step, a bar over all of them, and each text when it is done."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from whisper_max_plugin.errors import MemoryFullError, OptionError
from whisper_max_plugin.progress import FORMAT, Seconds
from whisper_max_plugin.windows import Window, observed

if TYPE_CHECKING:
    from whisper.model import Whisper

    from whisper_max_plugin.many import Transcription

Transcribe = Callable[..., dict[str, Any]]


class Together:
    """What upstream's `cli()` goes through, in place of its list of files, and what it calls for each of them.

    The first of the list comes first, since only its call tells the model and the options. It starts all; the others
    come as they are finished. An error is raised by the call for its file, which upstream reports before it goes on.

    Parameters
    ----------
    transcribe : Callable
        what is called for each file
    paths : Sequence[str]
    batch_size : int

    Raises
    ------
    OptionError
        if there is nothing to do at a time
    """

    def __init__(self, transcribe: Transcribe, paths: Sequence[str], batch_size: int) -> None:
        if batch_size < 1:
            raise OptionError(f"--batch_size {batch_size}: at least one file has to be transcribed at a time")
        self._transcribe = transcribe
        self._paths = paths
        self._batch_size = min(batch_size, len(paths))
        self._waiting: list[Transcription] = []  # finished before the first file of the list
        self._others: Generator[Transcription, None, None] | None = None
        self._current: Transcription | None = None

    def __iter__(self) -> Iterator[str]:
        """Yield the first path, and then, when it was called for, the others."""
        try:
            yield self._paths[0]
            for finished in _each_name_in_turn(itertools.chain(self._waiting, self._others or ()), self._paths):
                self._current = finished
                yield self._paths[finished.index]
        finally:
            if self._others is not None:
                self._others.close()  # also where the command is interrupted: stdout is what it was, at once

    def __call__(self, model: Whisper, audio: str, **options: Any) -> dict[str, Any]:
        """Return the result of the path that was yielded last."""
        if self._current is None:
            self._others = self._start(model, options)
            for finished in self._others:
                if finished.index == 0:
                    self._current = finished
                    break
                self._waiting.append(finished)
        assert self._current is not None, "the first file never came to an end"
        if self._current.error is not None:
            raise self._current.error
        assert self._current.result is not None, "no error and no result"
        return self._current.result

    def _start(self, model: Whisper, options: dict[str, Any]) -> Generator[Transcription, None, None]:
        from whisper_max_plugin.many import transcribe_many

        with contextlib.closing(_Bar(len(self._paths))) as bar, _captured() as captured:

            def transcribe(model: Whisper, audio: str, **options: Any) -> dict[str, Any]:
                with captured.on_this_thread() as printed, bar.file() as on_window, observed(on_window):
                    result = self._transcribe(model, audio, **options)
                heading = f"{_encodable(audio, captured.stream)}:\n"
                bar.print_above(heading + printed.getvalue() if options["verbose"] else "", captured.stream)
                return result

            if not options.get("verbose"):
                options = {**options, "verbose": None}  # upstream would show a bar for each file
            yield from transcribe_many(model, self._paths, self._batch_size, options, transcribe)


def _each_name_in_turn(others: Iterable[Transcription], paths: Sequence[str]) -> Iterator[Transcription]:
    """Yield all but the first of `paths` as they are finished; where their output has one name, in their order.

    The last of the list writes last, as with upstream.
    """
    names = [os.path.splitext(os.path.basename(path))[0] for path in paths]
    turns: dict[str, deque[int]] = {}
    for index, name in enumerate(names[1:], start=1):
        turns.setdefault(name, deque()).append(index)
    held: dict[int, Transcription] = {}
    for finished in others:
        held[finished.index] = finished
        turn = turns[names[finished.index]]
        while turn and turn[0] in held:
            yield held.pop(turn.popleft())


def _encodable(text: str, stream: TextIO) -> str:
    """Return `text` with question marks for what `stream` cannot encode.

    Upstream's `make_safe` asks for Python's default encoding, which is UTF-8, whatever the stream's is.
    """
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, errors="replace").decode(encoding)


class _Bar:
    """A bar over the seconds of all files, of which those that have not begun are taken to be as long as the others."""

    def __init__(self, n_files: int) -> None:
        self._n_files = n_files
        self._n_finished = 0
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._known: dict[int, Window] = {}  # the latest of each file that was begun
        self._bar = Seconds(desc=self._files, total=1.0, bar_format=FORMAT, smoothing=0)

    @property
    def _files(self) -> str:
        return f"{self._n_finished} of {self._n_files} files"

    @contextlib.contextmanager
    def file(self) -> Iterator[Callable[[Window], None]]:
        """Count a file, inside; yield what is to be called with its windows."""
        with self._lock:
            number = next(self._numbers)
            self._known[number] = Window(0.0, 0.0, "", [])

        def show(window: Window) -> None:
            with self._lock:
                self._known[number] = window
                self._refresh()

        comes_again = False
        try:
            yield show
        except MemoryFullError:  # when fewer are worked on
            comes_again = True
            raise
        finally:
            with self._lock:
                if comes_again:
                    del self._known[number]
                else:
                    self._n_finished += 1
                self._refresh()

    def _refresh(self) -> None:
        durations = [window.duration for window in self._known.values() if window.duration > 0]
        not_begun = self._n_files - len(self._known)
        mean = sum(durations) / max(1, len(durations))
        self._bar.set_description_str(self._files, refresh=False)
        self._bar.total = max(1.0, sum(durations) + not_begun * mean)
        self._bar.update(sum(window.seconds for window in self._known.values()) - self._bar.n)

    def print_above(self, text: str, stream: TextIO) -> None:
        """Write whole lines where the bar may be shown, too."""
        with self._lock:
            self._bar.print_above(text, stream)

    def close(self) -> None:
        self._bar.close()


class _Captured(io.TextIOBase):
    """Stands in for stdout: keeps what some threads print, and hands on what the others do."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._printed = threading.local()

    @contextlib.contextmanager
    def on_this_thread(self) -> Iterator[io.StringIO]:
        """Keep what the calling thread prints inside."""
        self._printed.text = text = io.StringIO()
        try:
            yield text
        finally:
            del self._printed.text

    def write(self, text: str) -> int:
        written: TextIO = getattr(self._printed, "text", self.stream)
        return written.write(text)

    def flush(self) -> None:
        self.stream.flush()


@contextlib.contextmanager
def _captured() -> Iterator[_Captured]:
    # a daemon may have no stdout, and upstream prints to none then
    captured = _Captured(io.StringIO() if sys.stdout is None else sys.stdout)
    with contextlib.redirect_stdout(captured):
        yield captured
