"""Asynchronous copies from global to shared memory, and the waiting for them.

A copy's source is read when the copy starts. That a kernel overwrites it before the copy has landed is found only as a
race with that read, which a barrier ends although it does not wait for copies.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from .errors import AccessError, KernelError
from .flights import Flights
from .machine import Act, Machine
from .memory import Place
from .operands import Operands
from .races import Races

Run = Callable[[Machine, Act], None]

COPY = re.compile(r"cp\.async\.(?P<cache>ca|cg)\.shared(?:::cta)?\.global(?:\.L2::(?:64|128|256)B)?")


def copy_size(match: re.Match[str], operands: list[str]) -> int:
    """Return how many bytes `cp.async` writes; raise ValueError if it cannot be so many."""
    sizes = {"ca": ("4", "8", "16"), "cg": ("16",)}[match["cache"]]
    if len(operands) not in (3, 4) or operands[2] not in sizes:
        raise ValueError(f"expected a copy of {' or '.join(sizes)} bytes")
    return int(operands[2])


def start_copy(size: int, written: list[str], operands: Operands) -> Run:
    """Return `cp.async`; what it does not read of its source it fills with zeros."""
    to, of = operands.address(written[0]), operands.address(written[1])
    given = operands.value(written[3] if len(written) == 4 else str(size), "u32")

    def run(m: Machine, act: Act) -> None:
        threads, addresses, reads = m.threads(act), of(m, act), given(m, act)
        if (bad := reads > size).any():
            first = int(bad.argmax())
            raise threads.error(KernelError, f"a copy of {size} bytes reads {reads[first]} of its source", first)
        if (bad := addresses % size != 0).any():  # whatever it reads
            first = int(bad.argmax())
            what = f"misaligned source of a copy of {size} bytes: {int(addresses[first]):#x}"
            raise threads.error(AccessError, what, first)
        raw = np.zeros((len(reads), size), "u1")
        for count in np.unique(reads[reads > 0]).tolist():
            some = np.flatnonzero(reads == count)
            readers = threads.chosen(some)
            for place, at, chosen in m.memory.resolve("global", addresses[some], count, readers, align=1):
                raw[some[chosen], :count] = place.load_bytes(at, count, readers.chosen(chosen))
        flights = _flights(m)
        for place, at, _ in m.memory.resolve("shared", to(m, act), size, threads):
            place.start_copy(at, raw, threads)
            flights.start(at, size, m.line, threads)

    return run


def commit_group(m: Machine, act: Act) -> None:
    """Do `cp.async.commit_group`."""
    _flights(m).commit(m.threads(act))


def wait_group(written: list[str]) -> Run:
    """Return `cp.async.wait_group`, which waits for all groups of a thread but the last ones."""
    if len(written) != 1 or not written[0].isdigit():
        raise ValueError("expected a number of groups")
    return lambda m, act: _land(int(written[0]), m, act)


def wait_all(m: Machine, act: Act) -> None:
    """Do `cp.async.wait_all`, which waits also for what is in no group."""
    commit_group(m, act)
    _land(0, m, act)


def _land(but: int, m: Machine, act: Act) -> None:
    flights, (place, races) = _flights(m), _shared(m)
    assert place.written is not None
    flights.land(but, m.threads(act), place.written, races)


def _flights(m: Machine) -> Flights:
    place, races = _shared(m)
    if place.flights is None:
        place.flights = Flights(len(place.data), races.granule, len(m.numbers))
    return place.flights


def _shared(m: Machine) -> tuple[Place, Races]:
    place = m.memory.spaces["shared"]
    assert place.races is not None
    return place, place.races
