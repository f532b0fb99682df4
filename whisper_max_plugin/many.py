"""Many recordings at once: each in a thread that runs upstream's `transcribe()`, and their steps as one."""

from __future__ import annotations

import gc
import inspect
import logging
import numbers
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import whisper
from whisper.decoding import DecodingOptions

from whisper_max_plugin.consumer import Consumer
from whisper_max_plugin.errors import MemoryFullError, OptionError
from whisper_max_plugin.execution.session import refuse_after_fork
from whisper_max_plugin.inference.lockstep import Cancelled, Lockstep
from whisper_max_plugin.inference.model import MaxWhisper
from whisper_max_plugin.upstream import alignments_in_turn

if TYPE_CHECKING:
    from whisper.model import Whisper

    Audio = str | os.PathLike[str] | np.ndarray | torch.Tensor

logger = logging.getLogger(__name__)

POLL = 0.5  # seconds between two looks whether anybody still asks


@dataclass(frozen=True)
class Transcription:
    """What became of one recording.

    Attributes
    ----------
    index : int
        its place among those that were given
    audio : str or os.PathLike or np.ndarray or torch.Tensor
        what was given
    result : dict or None
        what `whisper.transcribe` returned
    error : Exception or None
        what it raised in place of a result
    """

    index: int
    audio: Audio
    result: dict[str, Any] | None
    error: Exception | None


def transcribe_many(
    model: Whisper,
    audios: Iterable[Audio],
    batch_size: int,
    options: dict[str, Any],
    transcribe: Callable[..., dict[str, Any]] | None = None,
) -> Iterator[Transcription]:
    """Do what `whisper_max_plugin.transcribe_many` says; `transcribe`, or upstream's, is called for each recording."""
    refuse_after_fork()
    if not isinstance(model, MaxWhisper):
        raise OptionError('transcribe_many is for models on MAX: load it with whisper.load_model(..., backend="max")')
    if not isinstance(batch_size, numbers.Integral) or batch_size < 1:
        raise OptionError(f"batch_size={batch_size!r}: give how many recordings are worked on at a time, at least 1")
    if isinstance(audios, (str, bytes, os.PathLike)):
        raise OptionError(f"transcribe_many takes a list of recordings: [{audios!r}]")
    if isinstance(audios, (np.ndarray, torch.Tensor)) and audios.ndim < 2:
        raise OptionError("transcribe_many takes a list of recordings, and these are the samples of one: [samples]")
    known = {*inspect.signature(whisper.transcribe).parameters, *(field.name for field in fields(DecodingOptions))}
    if unknown := sorted(options.keys() - (known - {"model", "audio"})):
        raise OptionError(f"whisper.transcribe has no option {', '.join(unknown)}: see help(whisper.transcribe)")
    return _Work(model, enumerate(audios), transcribe or whisper.transcribe, options, batch_size).run()


class _Work:
    """The threads of one `transcribe_many`, and what they share."""

    def __init__(
        self,
        model: MaxWhisper,
        audios: Iterator[tuple[int, Audio]],
        transcribe: Callable[..., dict[str, Any]],
        options: dict[str, Any],
        n_threads: int,
    ) -> None:
        self._model = model
        self._audios = audios
        self._transcribe = transcribe
        self._options = options
        self._n_threads = n_threads
        self._lockstep = Lockstep(model.decoder.runtime)
        self._places = _Places(n_threads, self._lockstep)
        self._turn = threading.Lock()  # to ask for the next recording
        # for those that are worked on, and as many results that nobody has claimed
        self._room = threading.Semaphore(2 * n_threads)
        self._consumer = Consumer()
        self._is_abandoned = False
        self._finished: queue.SimpleQueue[Transcription | BaseException | None] = queue.SimpleQueue()

    def run(self) -> Iterator[Transcription]:
        """Yield the recordings as they are finished."""
        workers = [threading.Thread(target=self._work, name=f"transcribe_many {i}") for i in range(self._n_threads)]
        threads = [*workers, threading.Thread(target=self._watch, args=(workers,), name="transcribe_many watch")]
        n_running = len(workers)
        with alignments_in_turn(), self._ended(threads):
            for thread in threads:
                thread.start()
            while n_running > 0:
                self._consumer.asks()
                finished = self._finished.get()
                if isinstance(finished, Transcription):
                    self._room.release()
                    yield finished
                elif finished is None:
                    n_running -= 1
                else:
                    raise finished
            if self._lockstep.cancelled:
                raise Cancelled  # results are missing: to a daemon of a program that ends, this is not their end

    @contextmanager
    def _ended(self, threads: list[threading.Thread]) -> Iterator[None]:
        """Leave no thread behind: those that still work end at their next step."""
        try:
            yield
        finally:
            if threading.current_thread() in threads:
                # The garbage collector ends the iterator, amid whatever that thread does, which may hold our locks.
                self._is_abandoned = True
            else:
                self._cancel()
                for thread in threads:
                    if thread.ident is not None:
                        thread.join()

    def _cancel(self) -> None:
        self._lockstep.cancel()
        self._places.look_again()
        self._room.release(self._n_threads)  # wakes those that wait for it

    def _watch(self, workers: list[threading.Thread]) -> None:
        """Cancel the work when the program ends that asked for it and keeps the iterator, or nobody has it any more."""
        for worker in workers:
            while worker.is_alive():
                worker.join(POLL)
                if self._consumer.is_gone or self._is_abandoned:
                    self._cancel()

    def _work(self) -> None:
        try:
            with self._lockstep.joined():
                while (given := self._next()) is not None:
                    self._finished.put(self._finish(*given))
        except Cancelled:
            pass
        except BaseException as error:  # noqa: BLE001 - of the iterable, for whoever waits for the results
            self._finished.put(error)
        finally:
            self._finished.put(None)

    def _next(self) -> tuple[int, Audio] | None:
        self._room.acquire()
        with self._turn:
            return None if self._lockstep.cancelled else next(self._audios, None)

    def _finish(self, index: int, audio: Audio) -> Transcription:
        runtime = self._model.decoder.runtime
        given = os.fspath(audio) if isinstance(audio, os.PathLike) else audio
        while True:
            with self._places.taken() as at_a_time:
                device = runtime.device
                try:
                    return Transcription(index, audio, self._transcribe(self._model, given, **self._options), None)
                except MemoryFullError as error:
                    if not (self._places.make_fewer_than(at_a_time) or runtime.leaves(device, error)):
                        return Transcription(index, audio, None, error)
                except Exception as error:  # noqa: BLE001 - whatever is wrong with this recording, the others go on
                    return Transcription(index, audio, None, error)
                runtime.forget_window()
                gc.collect()  # an error that several threads were told refers to itself, and to what they had in memory


class _Places:
    """How many recordings are worked on at a time: fewer, once a device's memory was full.

    Parameters
    ----------
    limit : int
    lockstep : Lockstep
        of those who work; once it is cancelled, nobody waits
    """

    def __init__(self, limit: int, lockstep: Lockstep) -> None:
        self._limit = limit
        self._lockstep = lockstep
        self._n_taken = 0
        self._changed = threading.Condition()

    @contextmanager
    def taken(self) -> Iterator[int]:
        """Wait for a place, and have it inside; yield how many there are."""
        with self._changed:
            while self._n_taken >= self._limit:
                if self._lockstep.cancelled:
                    raise Cancelled
                self._changed.wait()
            self._n_taken += 1
            limit = self._limit
        try:
            yield limit
        finally:
            with self._changed:
                self._n_taken -= 1
                self._changed.notify()

    def make_fewer_than(self, n: int) -> bool:
        """Let there be half as many places as `n`, unless there are fewer already; return whether there can be."""
        with self._changed:
            if self._limit == n:
                if n == 1:
                    return False
                self._limit = (n + 1) // 2
                device = self._lockstep.runtime.device.name
                logger.warning("the memory of %s is full: %d at a time now, in place of %d", device, self._limit, n)
            return True

    def look_again(self) -> None:
        """Wake the threads that wait for a place."""
        with self._changed:
            self._changed.notify_all()
