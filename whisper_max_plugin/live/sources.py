"""Where live audio comes from: raw PCM or WAV from a stream or a file that grows, or the microphone."""

from __future__ import annotations

import bisect
import io
import os
import queue
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from whisper.audio import SAMPLE_RATE

from whisper_max_plugin.errors import LiveInputError
from whisper_max_plugin.live.formats import Place, find_samples

BLOCK = 3200  # bytes read at a time: a tenth of a second
POLL = 0.05  # seconds
QUIET = 5.0  # seconds; a file that has not grown for so long is complete

Blocks = Callable[[threading.Event], Iterator[npt.NDArray[np.float32]]]
"""Yields samples as they come, until the input or the event ends it."""


def open_input(name: str | None) -> Blocks:
    """Return what reads standard input ("-"), a file (its path) or the microphone (None); nothing is read yet.

    Raises
    ------
    LiveInputError
        when there is no such file or no microphone, or a file is of another format
    """
    if name is None:
        return _microphone(_sounddevice())
    if name == "-":
        # Not sys.stdin.buffer: its lock would still be held by the reading thread when the program exits.
        stream = _open(0, "standard input")
        return lambda _stop: _samples(iter(lambda: stream.read(BLOCK), b""), "standard input")
    file = _open(name, name)
    if _is_regular(file):  # what does not begin as it should is refused before a model is loaded for it
        try:
            find_samples(os.pread(file.fileno(), BLOCK, 0), name)
        except LiveInputError:
            file.close()
            raise
    return lambda stop: _samples(_growing(file, stop), name)


def _open(file: str | int, name: str) -> io.FileIO:
    try:
        return io.FileIO(file, closefd=file != 0)
    except OSError as error:
        raise LiveInputError(f"{name} cannot be read: {error.strerror}") from error


def _is_regular(file: io.FileIO) -> bool:
    return stat.S_ISREG(os.fstat(file.fileno()).st_mode)


def _growing(file: io.FileIO, stop: threading.Event) -> Iterator[bytes]:
    """Yield what is in `file` and what is added to it; a pipe ends when its writer closes it."""
    grows = _is_regular(file)
    last = time.monotonic()
    with file:
        while not stop.is_set():
            block = file.read(BLOCK)
            if block:
                last = time.monotonic()
                yield block
            elif not grows or time.monotonic() - last > QUIET:
                return
            else:
                stop.wait(POLL)


def _samples(blocks: Iterator[bytes], name: str) -> Iterator[npt.NDArray[np.float32]]:
    """Turn bytes of 16-bit mono PCM, with or without a header of WAV, into samples."""
    head = b""
    place = None
    for block in blocks:
        head += block
        place = find_samples(head, name)
        if place is not None:
            break
    if place is None:
        if head[:4] == b"RIFF":
            raise LiveInputError(f"{name} ends within the header of a WAV file: give one that has samples")
        place = Place(0)
    n_left = sys.maxsize if place.end is None else place.end - place.begin
    rest = head[place.begin :]
    while True:
        whole = min(len(rest), n_left) // 2 * 2
        if whole:
            yield np.frombuffer(rest[:whole], "<i2").astype(np.float32) * np.float32(1 / 32768)
        n_left -= whole
        block = next(blocks, b"") if n_left > 1 else b""
        if not block:
            return
        rest = rest[whole:] + block


def _sounddevice() -> ModuleType:
    try:
        import sounddevice
    except ModuleNotFoundError:
        raise LiveInputError(
            "the microphone needs sounddevice: pip install 'whisper-max-plugin[live]', or give --input"
        ) from None
    except OSError as error:  # from sounddevice, when the library that it binds is missing
        raise LiveInputError(f"{error}: install it (Debian: apt install libportaudio2), or give --input") from error
    return sounddevice


def _microphone(sounddevice: Any) -> Blocks:
    recorded: queue.SimpleQueue[npt.NDArray[np.float32]] = queue.SimpleQueue()

    def keep(samples: npt.NDArray[np.float32], _n_frames: int, _time: object, _status: object) -> None:
        recorded.put(samples[:, 0].copy())

    def failed(error: Exception) -> LiveInputError:
        reason = str(error).partition("\n")[0]
        return LiveInputError(
            f"the microphone cannot be opened ({reason}): `python -m sounddevice` lists devices, or give --input"
        )

    try:
        stream = sounddevice.InputStream(samplerate=SAMPLE_RATE, channels=1, dtype="float32", callback=keep)
    except (sounddevice.PortAudioError, ValueError) as error:
        raise failed(error) from error

    def blocks(stop: threading.Event) -> Iterator[npt.NDArray[np.float32]]:
        try:
            stream.start()
        except sounddevice.PortAudioError as error:
            raise failed(error) from error
        with stream:
            while not stop.is_set():
                try:
                    yield recorded.get(timeout=POLL)
                except queue.Empty:
                    continue

    return blocks


class Recorder:
    """Reads an input on a thread, so that it is read while the model computes; notes when each sample came."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._stop = threading.Event()
        # None ends it; may be put by a signal handler, which SimpleQueue allows
        self._queue: queue.SimpleQueue[tuple[npt.NDArray[np.float32], float] | LiveInputError | None] = (
            queue.SimpleQueue()
        )
        self._came: list[tuple[float, float]] = []  # seconds of audio, and the time when it had come
        # a daemon, since a read from a pipe cannot be interrupted
        self._thread = threading.Thread(target=self._read, name="whisper-max-live", daemon=True)

    def __iter__(self) -> Iterator[npt.NDArray[np.float32]]:
        """Yield all that has come since the last time, when something has.

        Raises
        ------
        LiveInputError
            when the input is not what it should be, behind what came until then
        """
        self._thread.start()
        ended = False
        error: LiveInputError | None = None
        while not ended:
            items = [self._queue.get()]
            while not self._queue.empty():
                items.append(self._queue.get())
            samples = []
            for item in items:
                if item is None or isinstance(item, LiveInputError):
                    ended, error = True, item
                    break
                samples.append(item[0])
                before = self._came[-1][0] if self._came else 0.0
                self._came.append((before + item[0].size / SAMPLE_RATE, item[1]))
            if samples:
                yield np.concatenate(samples)
        if error is not None:
            raise error

    def end(self) -> None:
        """Let what has come so far be all; may be called by a signal handler."""
        self._stop.set()
        self._queue.put(None)

    def close(self) -> None:
        """Stop reading; of a thread that waits for a pipe, nothing more is heard."""
        self._stop.set()
        self._thread.join(timeout=10 * POLL)

    def came(self, seconds: float) -> float:
        """Return when, by `time.monotonic()`, the audio until `seconds` had come."""
        index = bisect.bisect_left(self._came, (seconds, 0.0))
        return self._came[min(index, len(self._came) - 1)][1]

    def _read(self) -> None:
        try:
            for samples in self._blocks(self._stop):
                self._queue.put((samples, time.monotonic()))
        except OSError as error:
            self._queue.put(LiveInputError(f"the input cannot be read any more: {error.strerror}"))
        except LiveInputError as error:
            self._queue.put(error)
        finally:
            self._queue.put(None)
