"""Steps of several decodes as one: threads that decode on one model wait for each other, and a step serves them all.

A step reads every weight of the decoder, for one sequence or for many, so that windows of different recordings that are
decoded together cost little more than one. Each thread runs upstream's own code for its recording; what they share is
only the run of the graph ``step``, which takes every window's position and memory from a table.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from whisper_max_plugin.execution.engine import Engine
from whisper_max_plugin.execution.step_inputs import SearchKind, StepInputs
from whisper_max_plugin.inference.kv_cache import KVCache
from whisper_max_plugin.inference.runtime import Runtime
from whisper_max_plugin.inference.search import Search

T = TypeVar("T")

Alike = tuple[Engine, SearchKind, int]
"""Turns of the same engine, search and number of sequences can be one step."""


class Cancelled(BaseException):
    """Ends a thread whose lockstep was cancelled; no error, so that nobody who handles errors takes it for one."""


@dataclass
class _Turn:
    """What one thread waits for."""

    cache: KVCache
    search: Search
    n_steps: int
    condition: threading.Condition
    done: bool = False
    error: BaseException | None = None

    @property
    def alike(self) -> Alike:
        assert self.cache.engine is not None, "a step needs a first pass"
        return self.cache.engine, self.search.inputs.kind, len(self.search.sequences) // self.cache.n_audio


class Lockstep:
    """Brings the steps of threads together.

    A step is taken when all threads that are decoding have come to one. Threads that compute a first pass are waited
    for, since the others would have to wait for the device anyway, and so the steps are shared by as many as possible.

    Parameters
    ----------
    runtime : Runtime
        of the model; decodes on others are not concerned

    Attributes
    ----------
    cancelled : bool
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._lock = threading.Lock()
        self._n_decoding = 0
        self._waiting: list[_Turn] = []
        self._inputs: dict[tuple[Alike, int], StepInputs] = {}
        self.cancelled = False

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Let the decodes of the calling thread, inside, step together with those of others."""
        _here.lockstep = self
        try:
            yield
        finally:
            _here.lockstep = None

    def cancel(self) -> None:
        """End the threads at their next step or window."""
        with self._lock:
            self.cancelled = True
            for turn in self._waiting:
                turn.condition.notify()

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Count the calling thread, inside, among those who wait for each other."""
        with self._lock:
            self._check()
            self._n_decoding += 1
        try:
            yield
        finally:
            with self._lock:
                self._n_decoding -= 1
                if self._waiting and self._is_complete():
                    self._waiting[0].condition.notify()

    def step(self, cache: KVCache, search: Search, n_steps: int) -> int:
        """Take up to `n_steps` steps of a decode, when all others take theirs.

        What was found lies in ``search.inputs``.

        Returns
        -------
        n_steps : int
            how many were taken: as many as everybody could

        Raises
        ------
        RuntimeError, DeviceError
            what the run raised, in every thread that took part
        """
        turn = _Turn(cache, search, n_steps, threading.Condition(self._lock))
        with self._lock:
            self._waiting.append(turn)
            while not turn.done:
                self._check()
                if self._is_complete():
                    self._take_turns()
                else:
                    turn.condition.wait()
        if turn.error is not None:
            raise turn.error
        return turn.n_steps

    def _is_complete(self) -> bool:
        return len(self._waiting) == self._n_decoding

    def _check(self) -> None:
        if self.cancelled:
            raise Cancelled

    def _take_turns(self) -> None:
        """Run the steps of all who wait, on the thread that came last."""
        alike: dict[Alike, list[_Turn]] = {}
        for turn in self._waiting:
            alike.setdefault(turn.alike, []).append(turn)
        self._waiting = []
        for kind, turns in alike.items():
            error: BaseException | None = None
            try:
                self._run(kind, turns)
            except BaseException as raised:  # noqa: BLE001 - whatever it is, the others must not wait for ever
                error = raised
            for turn in turns:
                turn.done, turn.error = True, error
                turn.condition.notify()

    def _run(self, kind: Alike, turns: list[_Turn]) -> None:
        engine, _, n_group = kind
        n_steps = min(turn.n_steps for turn in turns)
        inputs = self._inputs_for(kind, sum(turn.cache.n_audio for turn in turns))
        rows: list[slice] = []
        first = 0
        for turn in turns:
            n_audio = turn.cache.n_audio
            rows.append(slice(first * n_group, (first + n_audio) * n_group))
            turn.cache.grow(n_audio * n_group, 1)
            inputs.place(turn.cache, turn.search.latest, first)
            inputs.search.copy_allowed_from(turn.search.write_allowed(), rows[-1])
            first += n_audio
        inputs.push()
        with self.runtime.passes:
            engine.step(inputs, n_steps)
        for turn, own in zip(turns, rows, strict=True):
            turn.n_steps = n_steps
            turn.cache.advance(n_steps - 1)
            inputs.search.copy_found_to(turn.search.inputs, own, n_steps)

    def _inputs_for(self, kind: Alike, n_audio: int) -> StepInputs:
        """Return memory for so many windows; a GPU keeps what it has recorded of it."""
        if (kind, n_audio) not in self._inputs:
            engine, search_kind, n_group = kind
            search = engine.searches.take(n_audio * n_group, search_kind)
            weakref.finalize(self, engine.searches.give_back, search).atexit = False
            self._inputs[kind, n_audio] = search.steps_of(n_audio, engine.dims.n_text_layer)
        return self._inputs[kind, n_audio]


class _Here(threading.local):
    lockstep: Lockstep | None = None


_here = _Here()


def current(runtime: Runtime) -> Lockstep | None:
    """Return what brings together the calling thread's decodes on `runtime` with those of others, if anything does."""
    lockstep = _here.lockstep
    return lockstep if lockstep is not None and lockstep.runtime is runtime else None


def giving_way(runtime: Runtime, compute: Callable[[], T]) -> T:
    """Do what `Runtime.giving_way` does; not for a thread beside others, of which there can be fewer at a time."""
    return runtime.giving_way(compute) if current(runtime) is None else compute()
