"""The memory that an interpreted PTX kernel reads and writes: bounds, alignment, values never written, races.

Every place has a window of made-up addresses, whose upper bits name it. Races are found by remembering, for each place,
which warp wrote it and which read it since the last barrier of their block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

WINDOW_BITS = 36
_FIRST = 16  # windows below are no arrays: 0 holds the null pointer, then come the generic addresses of other spaces
_MIDDLE = 1 << WINDOW_BITS - 1  # an array begins in the middle of its window, so that a negative offset stays in it
GENERIC = {"shared": 1 << WINDOW_BITS, "local": 2 << WINDOW_BITS, "param": 3 << WINDOW_BITS, "global": 0}
_SEVERAL = np.iinfo(np.int32).min  # warps of several blocks have read this


class KernelError(Exception):
    """A kernel does what a GPU would not do, or not always in the same way."""


class AccessError(KernelError):
    """A load or store where nothing is, misaligned, of a value never written, or into what is read-only."""


class RaceError(KernelError):
    """Two warps use one place, at least one of them to write, and no barrier says in which order."""


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


class Place:
    """Memory of equal size for each of some owners: the grid for an array, a block for shared, a thread for local."""

    def __init__(self, name: str, data: Array, owners: int = 1) -> None:
        self.name = name
        self.data = data  # bytes, of one owner after the other
        self.size = len(data) // owners
        self.writable = data.flags.writeable
        self.spans: list[tuple[int, int, str]] = []  # begin, end and name of the variables that it consists of
        self.exists: Array | None = None  # which bytes of an owner belong to one
        self.written: Array | None = None  # which bytes hold a value
        self.races: _Races | None = None

    def find(self, offsets: Array, size: int, owners: Array | None, threads: Threads) -> Array:
        """Return where in `data` accesses of `size` bytes begin, after checking that they lie inside."""
        bad = (offsets < 0) | (offsets + size > self.size)
        if self.exists is not None:
            first = np.where(bad, 0, offsets)
            bad |= ~self.exists[first] | ~self.exists[np.minimum(first + size, self.size) - 1]
        self._check(bad, f"{size} bytes outside of", offsets, threads)
        self._check(offsets % size != 0, f"misaligned access of {size} bytes to", offsets, threads)
        return offsets if owners is None else owners * self.size + offsets

    def _check(self, bad: Array, what: str, offsets: Array, threads: Threads) -> None:
        if bad.any():
            at = int(bad.argmax())
            offset, size, name = int(offsets[at]), self.size, self.name
            if self.spans:
                begin, end, variable = min(self.spans, key=lambda span: max(span[0] - offset, offset - span[1] + 1))
                offset, size, name = offset - begin, end - begin, f"{name}'s {variable}"
            raise threads.error(AccessError, f"{what} {name} ({size} bytes) at offset {offset}", at)

    def load(self, at: Array, size: int, threads: Threads, constant: bool = False) -> Array:
        """Return elements of `size` bytes; `constant` promises that the kernel never writes them."""
        self._known(at, size, threads)
        if self.races is not None:
            self.races.read(self.name, at, size, threads, constant)
        return self._view(size)[at // size]

    def store(self, at: Array, values: Array, threads: Threads) -> None:
        """Write elements; two threads that write different values to one place at once are a race."""
        if not self.writable:
            self._check(np.ones(len(at), bool), "store into read-only", at, threads)
        size = values.itemsize
        view, place = self._view(size), at // size
        if self.races is not None:
            self.races.write(self.name, at, size, view[place] != values, threads)
        view[place] = values
        if (lost := view[place] != values).any():
            raise threads.error(RaceError, f"two threads write different values to {self.name}", int(lost.argmax()))
        if self.written is not None:
            self.written[at[:, None] + np.arange(size)] = True

    def atomic(self, at: Array, size: int, update: Callable[[Array, int], Array], threads: Threads) -> Array:
        """Replace one element after the other by `update` of it and its number; return what was there before."""
        if not self.writable:
            self._check(np.ones(len(at), bool), "atomic operation on read-only", at, threads)
        self._known(at, size, threads)
        view, before = self._view(size), np.empty(len(at), f"u{size}")
        for i, place in enumerate(at // size):
            before[i : i + 1] = view[place : place + 1]
            view[place : place + 1] = update(before[i : i + 1], i)
        return before

    def _known(self, at: Array, size: int, threads: Threads) -> None:
        if self.written is not None:
            known = self.written[at[:, None] + np.arange(size)].all(1)
            self._check(~known, "a value that was never written is read from", at % self.size, threads)

    def _view(self, size: int) -> Array:
        return self.data[: len(self.data) // size * size].view(f"u{size}")


class _Races:
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

    def write(self, name: str, at: Array, size: int, differs: Array, threads: Threads) -> None:
        places, warp, block, passed = self._each(at, size, threads)
        writer, per_block = self.writer[places], threads.warps_per_block
        differs = np.repeat(differs, size // self.granule)
        same = (writer - 1) // per_block == block
        bad = (writer != 0) & (writer != warp) & np.where(same, self.written_after[places] == passed, differs)
        self._check(bad, f"writes {name}, which was written by warp", writer, size, threads)
        reader = self.reader[places]
        same = np.where(reader > 0, (reader - 1) // per_block, -reader - 1) == block
        bad = (reader != 0) & (reader != warp) & (~same | (self.read_after[places] == passed))
        self._check(bad, f"writes {name}, which was read by warp", reader, size, threads)
        self.writer[places], self.written_after[places] = warp, passed
        now = self.writer[places]
        self._check((now != warp) & ((now - 1) // per_block == block), f"writes {name}, as does", now, size, threads)

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


class Memory:
    """All that one launch can reach: its arrays, and shared, local and parameter memory."""

    def __init__(self, granule: int) -> None:
        self._granule = granule
        self._arrays: list[Place] = []
        self._addresses: dict[tuple[int, int, bool], int] = {}
        self.spaces: dict[str, Place] = {}

    def add(self, name: str, array: Array) -> int:
        """Give an array an address; the same array again gets the same."""
        if not array.flags.c_contiguous:
            raise ValueError(f"{name} is not contiguous")
        pointer = array.__array_interface__["data"][0]
        key = (pointer, array.nbytes, array.flags.writeable)
        if key not in self._addresses or not array.nbytes:
            for begin, size, writeable in self._addresses:
                if pointer < begin + size and begin < pointer + array.nbytes and (writeable or key[2]):
                    raise ValueError(f"{name} overlaps with another array, which is not the same one")
            place = Place(name, array.reshape(-1).view("u1"))
            if place.writable:
                place.races = _Races(place.size, self._granule)
            self._addresses[key] = (len(self._arrays) + _FIRST << WINDOW_BITS) + _MIDDLE
            self._arrays.append(place)
        return self._addresses[key]

    def set_up(self, space: str, owners: int, spans: list[tuple[int, int, str]]) -> None:
        """Set up fresh shared or local memory for a batch of blocks or threads."""
        size = -(-max([256, *(end for _, end, _ in spans)]) // 256) * 256
        place = self.spaces[space] = Place(f"{space} memory", np.zeros(owners * size, "u1"), owners)
        place.spans, place.exists, place.written = spans, np.zeros(size, bool), np.zeros(len(place.data), bool)
        for begin, end, _ in spans:
            place.exists[begin:end] = True
        if space == "shared":
            place.races = _Races(len(place.data), self._granule)

    def pass_parameters(self, packed: bytes) -> None:
        """Set the parameters of the launch."""
        self.spaces["param"] = Place("parameters", np.frombuffer(packed or b"\0", "u1"))

    def resolve(self, space: str, addresses: Array, size: int, threads: Threads) -> list[tuple[Place, Array, Array]]:
        """Return each place that the addresses lie in, where in its data, and the positions of those threads."""
        if space in self.spaces:
            everyone = np.arange(len(addresses))
            return [(self.spaces[space], self._find(space, addresses.astype("i8"), size, threads), everyone)]
        found, windows = [], (addresses >> WINDOW_BITS).astype("i8")
        for window in np.unique(windows):
            chosen = np.flatnonzero(windows == window)
            some = threads.chosen(chosen)
            offsets = (addresses[chosen] & (1 << WINDOW_BITS) - 1).astype("i8")
            named = [name for name, base in GENERIC.items() if base >> WINDOW_BITS == window and name in self.spaces]
            if named and space == "generic":
                found.append((self.spaces[named[0]], self._find(named[0], offsets, size, some), chosen))
            elif 0 <= window - _FIRST < len(self._arrays):
                place = self._arrays[window - _FIRST]
                found.append((place, place.find(offsets - _MIDDLE, size, None, some), chosen))
            else:
                raise some.error(AccessError, f"{size} bytes at address {int(addresses[chosen[0]]):#x}, no array's", 0)
        return found

    def _find(self, space: str, offsets: Array, size: int, threads: Threads) -> Array:
        owners = {"shared": threads.slot, "local": threads.numbers}.get(space)
        return self.spaces[space].find(offsets, size, owners, threads)
