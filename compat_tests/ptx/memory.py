"""The memory that an interpreted PTX kernel reads and writes: bounds, alignment, values never written, races.

Every place has a window of made-up addresses, whose upper bits name it. Races are found by remembering, for each place,
which warp wrote it and which read it since the last barrier of their block.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .errors import AccessError, RaceError
from .flights import Flights
from .overlap import Overlap
from .races import Races, Threads
from .values import Array

WINDOW_BITS = 36
_FIRST = 16  # windows below are no arrays: 0 holds the null pointer, then come the generic addresses of other spaces
_MIDDLE = 1 << WINDOW_BITS - 1  # an array begins in the middle of its window, so that a negative offset stays in it
GENERIC = {"shared": 1 << WINDOW_BITS, "local": 2 << WINDOW_BITS, "param": 3 << WINDOW_BITS, "global": 0}


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
        self.races: Races | None = None
        self.flights: Flights | None = None  # from the first asynchronous copy on
        self.overlap: Overlap | None = None  # with the launch before, of arrays
        self.settled = False  # whether that launch writes none of it

    def find(self, offsets: Array, size: int, align: int, owners: Array | None, threads: Threads) -> Array:
        """Return where in `data` accesses of `size` bytes begin, after checking that they lie inside."""
        bad = (offsets < 0) | (offsets + size > self.size)
        if self.exists is not None:
            first = np.where(bad, 0, offsets)
            bad |= ~self.exists[first] | ~self.exists[np.minimum(first + size, self.size) - 1]
        self._check(bad, f"{size} bytes outside of", offsets, threads)
        self._check(offsets % align != 0, f"misaligned access of {size} bytes to", offsets, threads)
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
        """Return elements of `size` bytes; `constant` promises that nobody writes them while the kernel runs."""
        if constant and self.overlap is not None and not self.settled:
            what = f"reads {self.name} as if the launch before did not write it, so that it may read too early"
            raise threads.error(RaceError, what, 0)
        self._known(at, size, threads)
        if self.races is not None:
            self.races.read(self.name, at, size, threads, constant)
        return self._view(size)[at // size]

    def load_bytes(self, at: Array, size: int, threads: Threads) -> Array:
        """Return the bytes, for each thread a row, of accesses that are no single element."""
        self._known(at, size, threads)
        if self.races is not None:  # of which part of an element is taken, the whole is read
            self.races.read(self.name, at, -(-size // self.races.granule) * self.races.granule, threads, False)
        return self.data[at[:, None] + np.arange(size)]

    def store(self, at: Array, values: Array, threads: Threads) -> None:
        """Write elements; two threads that write different values to one place at once are a race."""
        if not self.writable:
            self._check(np.ones(len(at), bool), "store into read-only", at, threads)
        size = values.itemsize
        self._overlaps("writes", threads)
        self._landed("writes", at, size, threads)
        view, place = self._view(size), at // size
        if self.races is not None:
            self.races.write(self.name, at, size, view[place] != values, threads)
        view[place] = values
        if (lost := view[place] != values).any():
            raise threads.error(RaceError, f"two threads write different values to {self.name}", int(lost.argmax()))
        if self.written is not None:
            self.written[at[:, None] + np.arange(size)] = True

    def start_copy(self, at: Array, values: Array, threads: Threads) -> None:
        """Write rows of bytes that nobody may read yet, and that may land at once: nobody may use the place now."""
        size, does = values.shape[1], "starts a copy into"
        self._landed(does, at, size, threads)
        if self.races is not None:
            self.races.write(self.name, at, size, np.ones(len(at), bool), threads, does)
        self.data[at[:, None] + np.arange(size)] = values

    def atomic(self, at: Array, size: int, update: Callable[[Array, int], Array], threads: Threads) -> Array:
        """Replace one element after the other by `update` of it and its number; return what was there before."""
        if not self.writable:
            self._check(np.ones(len(at), bool), "atomic operation on read-only", at, threads)
        self._overlaps("writes", threads)
        self._known(at, size, threads)
        view, before = self._view(size), np.empty(len(at), f"u{size}")
        for i, place in enumerate(at // size):
            before[i : i + 1] = view[place : place + 1]
            view[place : place + 1] = update(before[i : i + 1], i)
        return before

    def _landed(self, does: str, at: Array, size: int, threads: Threads) -> None:
        if self.flights is not None:
            self.flights.check(does, at, size, threads)

    def _overlaps(self, does: str, threads: Threads) -> None:
        if self.overlap is not None:
            self.overlap.check(f"{does} {self.name}", threads)

    def _known(self, at: Array, size: int, threads: Threads) -> None:
        if not self.settled:
            self._overlaps("reads", threads)
        self._landed("reads", at, size, threads)
        if self.written is not None:
            known = self.written[at[:, None] + np.arange(size)].all(1)
            self._check(~known, "a value that was never written is read from", at % self.size, threads)

    def _view(self, size: int) -> Array:
        return self.data[: len(self.data) // size * size].view(f"u{size}")


class Memory:
    """All that one launch can reach: its arrays, and shared, local and parameter memory."""

    def __init__(self, granule: int) -> None:
        self._granule = granule
        self._arrays: list[Place] = []
        self._addresses: dict[tuple[int, int, bool], int] = {}
        self.spaces: dict[str, Place] = {}

    def add(self, name: str, array: Array, settled: bool = True) -> int:
        """Give an array an address; the same array again gets the same, and is settled if it is said each time."""
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
                place.races = Races(place.size, self._granule)
            self._addresses[key] = (len(self._arrays) + _FIRST << WINDOW_BITS) + _MIDDLE
            self._arrays.append(place)
            place.settled = True
        place = self._arrays[(self._addresses[key] >> WINDOW_BITS) - _FIRST]
        place.settled &= settled
        return self._addresses[key]

    def overlap(self, overlap: Overlap | None) -> None:
        """Let the arrays be those of a launch that overlaps with the one before."""
        for place in self._arrays:
            place.overlap = overlap

    def set_up(self, space: str, owners: int, spans: list[tuple[int, int, str]]) -> None:
        """Set up fresh shared or local memory for a batch of blocks or threads."""
        size = -(-max([256, *(end for _, end, _ in spans)]) // 256) * 256
        place = self.spaces[space] = Place(f"{space} memory", np.zeros(owners * size, "u1"), owners)
        place.spans, place.exists, place.written = spans, np.zeros(size, bool), np.zeros(len(place.data), bool)
        for begin, end, _ in spans:
            place.exists[begin:end] = True
        if space == "shared":
            place.races = Races(len(place.data), self._granule)

    def pass_parameters(self, packed: bytes) -> None:
        """Set the parameters of the launch."""
        self.spaces["param"] = Place("parameters", np.frombuffer(packed or b"\0", "u1"))

    def resolve(
        self, space: str, addresses: Array, size: int, threads: Threads, align: int | None = None
    ) -> list[tuple[Place, Array, Array]]:
        """Return each place that the addresses lie in, where in its data, and the positions of those threads.

        Accesses are aligned to their size if nothing else is said.
        """
        align = align or size
        if space in self.spaces:
            everyone = np.arange(len(addresses))
            return [(self.spaces[space], self._find(space, addresses.astype("i8"), size, align, threads), everyone)]
        found, windows = [], (addresses >> WINDOW_BITS).astype("i8")
        for window in np.unique(windows):
            chosen = np.flatnonzero(windows == window)
            some = threads.chosen(chosen)
            offsets = (addresses[chosen] & (1 << WINDOW_BITS) - 1).astype("i8")
            named = [name for name, base in GENERIC.items() if base >> WINDOW_BITS == window and name in self.spaces]
            if named and space == "generic":
                found.append((self.spaces[named[0]], self._find(named[0], offsets, size, align, some), chosen))
            elif 0 <= window - _FIRST < len(self._arrays):
                place = self._arrays[window - _FIRST]
                found.append((place, place.find(offsets - _MIDDLE, size, align, None, some), chosen))
            else:
                raise some.error(AccessError, f"{size} bytes at address {int(addresses[chosen[0]]):#x}, no array's", 0)
        return found

    def _find(self, space: str, offsets: Array, size: int, align: int, threads: Threads) -> Array:
        owners = {"shared": threads.slot, "local": threads.numbers}.get(space)
        return self.spaces[space].find(offsets, size, align, owners, threads)
