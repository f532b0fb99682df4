"""Asynchronous copies under way: which bytes of shared memory they will land in, and who has waited for them.

A copy may land at any time from its start on until the thread that started it has waited for its group, so that nobody
may read or write there in between. What has landed counts as written at that wait by the warp of that thread: other
warps need a barrier after it, as for a store.
"""

from __future__ import annotations

import numpy as np

from .errors import RaceError
from .races import Races, Threads
from .values import Array


class Flights:
    """The asynchronous copies into shared memory, and the groups of each thread.

    Parameters
    ----------
    size
        Bytes of the shared memory of all blocks.
    granule
        Bytes of the smallest element that the kernel accesses.
    n_threads
        Threads that run at a time.
    """

    def __init__(self, size: int, granule: int, n_threads: int) -> None:
        self._granule = granule
        self._thread, self._group, self._line = (np.zeros(size // granule, np.int32) for _ in range(3))
        self._committed = np.zeros(n_threads, np.int32)  # groups of each thread, of which the next one is open

    def check(self, does: str, at: Array, size: int, threads: Threads) -> None:
        """Raise if anything that the threads access is still to be written."""
        places = self._places(at, size)
        if (bad := self._thread[places] != 0).any():
            first = int(bad.argmax())
            line = self._line[places.flat[first]]
            what = f"{does} shared memory where the copy of line {line} is in flight: its thread has not waited for it"
            raise threads.error(RaceError, what, first // places.shape[1])

    def start(self, at: Array, size: int, line: int, threads: Threads) -> None:
        """Let each thread copy to a place that the checks allow."""
        places = self._places(at, size)
        thread = threads.numbers[:, None] + 1  # 0 is nobody
        self._thread[places] = thread
        if (bad := self._thread[places] != thread).any():
            first = int(bad.argmax()) // places.shape[1]
            raise threads.error(RaceError, "two threads copy to one place of shared memory", first)
        self._group[places], self._line[places] = self._committed[threads.numbers][:, None], line

    def commit(self, threads: Threads) -> None:
        """Let what each thread has started since its last group be the next one, which may be empty."""
        self._committed[threads.numbers] += 1

    def land(self, but: int, threads: Threads, written: Array, races: Races) -> None:
        """Let the copies of each thread's groups land but for the last ones; set what is written, and by whom."""
        landing, position = np.zeros((2, len(self._committed)), np.int64)
        landing[threads.numbers] = self._committed[threads.numbers] - but  # the first group that does not land
        position[threads.numbers] = np.arange(len(threads.numbers))
        places = np.flatnonzero(self._thread)
        owner = self._thread[places] - 1
        landed = self._group[places] < landing[owner]
        places, at = places[landed], position[owner[landed]]
        self._thread[places] = 0
        written.reshape(-1, self._granule)[places] = True
        races.writer[places], races.written_after[places] = threads.warp[at] + 1, threads.passed[at]

    def missed(self) -> tuple[int, int] | None:
        """Return the number of a thread that has not waited for a copy, and the line of that."""
        places = np.flatnonzero(self._thread)
        return (int(self._thread[places[0]]) - 1, int(self._line[places[0]])) if len(places) else None

    def _places(self, at: Array, size: int) -> Array:
        return at[:, None] // self._granule + np.arange(size // self._granule)
