"""`transcribe_stream`: upstream's `transcribe()` on a thread of its own, and its segments as an iterator meanwhile."""

from __future__ import annotations

import contextlib
import contextvars
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any

import whisper

from whisper_max_plugin.consumer import Consumer
from whisper_max_plugin.windows import Window, observed

if TYPE_CHECKING:
    from whisper.model import Whisper


@dataclass(frozen=True)
class _Returned:
    result: dict[str, Any]


@dataclass(frozen=True)
class _Raised:
    error: BaseException


class _Stopped(BaseException):
    """Ends `transcribe()`, between two windows, when nobody waits for its segments any more."""


class TranscriptionStream(Iterator[dict[str, Any]]):
    """The segments of a transcription, each as soon as the window that it is in is done; see `transcribe_stream`.

    Work begins when the first segment is asked for, and goes on while the caller handles one. Threads may share a
    stream: each segment is one thread's.

    Attributes
    ----------
    language : str | None
        the code of the language that was given or detected; None before the first window
    seconds : float
        of audio that lie behind
    duration : float
        of the audio, in seconds; 0 before the first window
    result : dict[str, Any] | None
        what `transcribe()` returned, when all segments were handed out; None before
    """

    def __init__(self, transcribe: Callable[[], dict[str, Any]]) -> None:
        self.language: str | None = None
        self.seconds = 0.0
        self.duration = 0.0
        self.result: dict[str, Any] | None = None
        self._news: SimpleQueue[Window | _Returned | _Raised] = SimpleQueue()
        self._segments: deque[dict[str, Any]] = deque()
        self._n_told = 0
        self._asking = threading.Lock()  # one thread takes news at a time
        self._ended = False
        self._stop = threading.Event()
        self._consumer = Consumer()
        context = contextvars.copy_context()
        # not self: what nobody holds any more is to stop
        arguments = (_work, transcribe, self._news, self._stop, self._consumer)
        self._thread = threading.Thread(target=context.run, args=arguments, name="whisper-max-stream")
        weakref.finalize(self, self._stop.set)

    def __next__(self) -> dict[str, Any]:
        """Return the next segment; wait for it if need be.

        Raises
        ------
        StopIteration
            behind the last segment
        Exception
            whatever `transcribe()` raised; the stream has ended then
        """
        with self._asking:
            self._consumer.asks()
            while True:
                with contextlib.suppress(IndexError):  # there is none, or another thread has just closed the stream
                    return self._segments.popleft()
                if self._ended:
                    raise StopIteration
                if self._thread.ident is None:
                    self._thread.start()
                self._take(self._news.get())

    def _take(self, news: Window | _Returned | _Raised) -> None:
        if isinstance(news, Window):
            self.language, self.seconds, self.duration = news.language, news.seconds, news.duration
            segments = news.segments
        else:
            is_closed = self._ended  # by another thread
            self.close()
            if isinstance(news, _Raised):
                if is_closed and isinstance(news.error, _Stopped):
                    return
                raise news.error
            self.result, self.language = news.result, news.result["language"]
            # those that were not told, if `whisper.transcribe` is somebody else's
            segments = news.result["segments"][self._n_told :]
        self._n_told += len(segments)
        self._segments.extend(segments)

    def close(self) -> None:
        """End the stream; return when the window that is being decoded is done and the thread has ended."""
        self._ended = True
        self._segments.clear()
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def __enter__(self) -> TranscriptionStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def transcribe_stream(model: Whisper, audio: Any, **options: Any) -> TranscriptionStream:
    """Transcribe as `whisper.transcribe` does, and hand out each segment when its window is done."""
    given = os.fspath(audio) if isinstance(audio, os.PathLike) else audio

    def transcribe() -> dict[str, Any]:
        return whisper.transcribe(model, given, **options)

    return TranscriptionStream(transcribe)


def _work(
    transcribe: Callable[[], dict[str, Any]],
    news: SimpleQueue[Window | _Returned | _Raised],
    stop: threading.Event,
    consumer: Consumer,
) -> None:
    def tell(window: Window) -> None:
        if stop.is_set() or consumer.is_gone:
            raise _Stopped
        news.put(window)

    try:
        with observed(tell):
            result = transcribe()
    except BaseException as error:  # noqa: BLE001 - raised again where the segments are asked for
        news.put(_Raised(error))
    else:
        news.put(_Returned(result))
