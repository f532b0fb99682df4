"""Races: who used which place of memory last, and since which barrier.

They are found between warps, not within one, whose threads run in step here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .errors import KernelError, RaceError
from .values import Array

_SEVERAL = np.iinfo(np.int32).min  # warps of several blocks have read this


class Threads(NamedTuple):
    """The threads that access memory together: numbers in the batch, and warps, blocks and barriers of each."""

    numbers: Array
    warp: Array  # counted over the whole grid
    slot: Array  # of the block in the batch
    passed: Array  # barriers that the block has passed
    warps_per_block: int
    fail: Callable[[type[KernelError], str, int], KernelError]  # an error that names a thread of the batch

    def error(self, kind: type[KernelError], message: str, at: int) -> KernelError:
        """Return an error that names the thread at a position in these arrays."""
        return self.fail(kind, message, int(self.numbers[at]))

    def chosen(self, positions: Array) -> Threads:
        """Return those at some positions only."""
        numbers, warp, slot, passed = (each[positions] for each in (self.numbers, self.warp, self.slot, self.passed))
        return self._replace(numbers=numbers, warp=warp, slot=slot, passed=passed)


class Races:
    """Who wrote and who read each place last. Warps count from 1; 0 is nobody."""

    def __init__(self, size: int, granule: int) -> None:
        self.granule = granule  # the smallest element that the kernel accesses
        self.writer, self.written_after, self.reader, self.read_after = (
            np.zeros(size // granule + 1, np.int32) for _ in range(4)
        )

    def _each(self, at: Array, size: int, threads: Threads) -> tuple[Array, Array, Array, Array]:
        count = size // self.granule
        places = (at[:, None] // self.granule + np.arange(count)).ravel()
        warp, passed = np.repeat(threads.warp, count) + 1, np.repeat(threads.passed, count)
        return places, warp.astype(np.int32), (warp - 1) // threads.warps_per_block, passed.astype(np.int32)

    def read(self, name: str, at: Array, size: int, threads: Threads, constant: bool) -> None:
        places, warp, block, passed = self._each(at, size, threads)
        writer, per_block = self.writer[places], threads.warps_per_block
        same = (writer - 1) // per_block == block
        bad = (writer != 0) & ((writer != warp) & (~same | (self.written_after[places] == passed)) | constant)
        self._check(bad, f"reads {name}, which was written by warp", writer, size, threads)
        reader, late = self.reader[places], self.read_after[places]
        same = np.where(reader > 0, (reader - 1) // per_block, -reader - 1) == block
        several = np.where(same & (late == passed), -(block + 1), np.where(same, warp, _SEVERAL))
        now = np.where((reader == 0) | (reader == warp), warp, several)
        self.reader[places], self.read_after[places] = now, passed
        if (other := (kept := self.reader[places]) != now).any():  # others read it by the same instruction
            same = np.where(kept > 0, (kept - 1) // per_block, -kept - 1) == block
            self.reader[places[other & same]] = -(block[other & same] + 1)
            self.reader[places[other & ~same]] = _SEVERAL

    def write(self, name: str, at: Array, size: int, differs: Array, threads: Threads, does: str = "writes") -> None:
        places, warp, block, passed = self._each(at, size, threads)
        writer, per_block = self.writer[places], threads.warps_per_block
        differs = np.repeat(differs, size // self.granule)
        same = (writer - 1) // per_block == block
        bad = (writer != 0) & (writer != warp) & np.where(same, self.written_after[places] == passed, differs)
        self._check(bad, f"{does} {name}, which was written by warp", writer, size, threads)
        reader = self.reader[places]
        same = np.where(reader > 0, (reader - 1) // per_block, -reader - 1) == block
        bad = (reader != 0) & (reader != warp) & (~same | (self.read_after[places] == passed))
        self._check(bad, f"{does} {name}, which was read by warp", reader, size, threads)
        self.writer[places], self.written_after[places] = warp, passed
        now = self.writer[places]
        bad = (now != warp) & ((now - 1) // per_block == block)
        self._check(bad, f"{does} {name}, as does warp", now, size, threads)

    def _check(self, bad: Array, what: str, warps: Array, size: int, threads: Threads) -> None:
        if bad.any():
            at = int(bad.argmax())
            warp, thread = int(warps[at]), at // (size // self.granule)
            if warp > 0:
                block, of_block = divmod(warp - 1, threads.warps_per_block)
                what += f" {of_block} of block {block}"
            else:
                what += "s of several blocks" if warp == _SEVERAL else "s of its block"
            raise threads.error(RaceError, f"{what}, with no barrier between", thread)
