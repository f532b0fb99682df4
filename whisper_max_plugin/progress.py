"""`--progress`: a bar on stderr over the seconds of a file, with the rate and the time that is left."""

from __future__ import annotations

import functools
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, redirect_stdout
from typing import Any, TextIO

from tqdm import tqdm

from whisper_max_plugin.windows import Window, observed

FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}, {speed:.1f} x real time]"


def with_bar(transcribe: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Return a `transcribe` that shows a bar for each file, whatever `verbose` is.

    With `verbose=False` upstream shows a bar of its own, over frames, and this one stays away.
    """

    @functools.wraps(transcribe)
    def transcribe_with_bar(model: Any, audio: Any, **options: Any) -> dict[str, Any]:
        if options.get("verbose") is False:
            return transcribe(model, audio, **options)
        with closing(_Bar(os.path.basename(audio))) as bar, _printing_above(bar), observed(bar.show):
            return transcribe(model, audio, **options)

    return transcribe_with_bar


class _Bar:
    """A bar of tqdm that appears with the first window, when the length of the audio is known."""

    def __init__(self, name: str | None) -> None:
        self._name = name
        self._bar: Seconds | None = None

    def show(self, window: Window) -> None:
        if self._bar is None:
            self._bar = Seconds(desc=self._name, total=window.duration, bar_format=FORMAT, smoothing=0)
        self._bar.update(window.seconds - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def print_above(self, text: str, stream: TextIO) -> None:
        """Do what `Seconds.print_above` does, before there is a bar, too."""
        if self._bar is not None:
            self._bar.print_above(text, stream)
        else:
            stream.write(text)
            stream.flush()


class Seconds(tqdm):
    """A bar whose format may name `speed`, seconds of audio per second, and above which others may print.

    There is none where there is no stderr, as with a daemon.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(disable=sys.stderr is None, **settings)

    def print_above(self, text: str, stream: TextIO) -> None:
        """Write whole lines to a stream on the terminal that shows the bar, too."""
        self.clear()
        stream.write(text)
        stream.flush()
        self.refresh()

    @property
    def format_dict(self) -> dict[str, Any]:
        values = super().format_dict
        values["speed"] = values["n"] / values["elapsed"] if values["elapsed"] else 0.0
        return values


class _Above(io.TextIOBase):
    """Stands in for stdout: hands on each line when it is complete."""

    def __init__(self, stream: TextIO, bar: _Bar) -> None:
        self._stream, self._bar = stream, bar
        self._line = ""

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        if lines:
            self._bar.print_above("\n".join(lines) + "\n", self._stream)
        return len(text)


@contextmanager
def _printing_above(bar: _Bar) -> Iterator[None]:
    """Keep what upstream prints and the bar apart where both go to a terminal."""
    if not all(stream is not None and stream.isatty() for stream in (sys.stdout, sys.stderr)):
        yield
        return
    with redirect_stdout(_Above(sys.stdout, bar)):
        yield
