"""The threads of an interpreted PTX kernel: their registers, where each stands, and whom each waits for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import numpy as np

from .errors import AccessError, KernelError
from .memory import Memory
from .overlap import Overlap
from .races import Threads
from .values import storage

Array = np.ndarray[Any, Any]
Act = Any  # the threads that an instruction is for: their numbers, or the slice of all

_RUNS, _AT_BARRIER, _AT_WARP, _EXITED = range(4)
_LANES = np.uint32(1) << np.arange(32, dtype=np.uint32)


class Step(NamedTuple):
    """An instruction ready to run; `control` names those that move or stop threads, `extra` is what they need."""

    line: int
    guard: str | None
    negated: bool
    control: str
    run: Callable[[Machine, Act], None] | None
    extra: tuple[Any, ...]


class Machine:
    """The threads of some blocks of a grid; blocks are padded to whole warps with threads that have exited."""

    SPECIAL = frozenset(
        [f"%{name}.{axis}" for name in ("tid", "ctaid", "ntid", "nctaid") for axis in "xyz"]
        + ["%laneid", "%warpid"]
        + [f"%lanemask_{name}" for name in ("eq", "lt", "le", "gt", "ge")]
    )

    def __init__(
        self,
        registers: dict[str, int],
        symbols: dict[str, int],
        memory: Memory,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        first: int,
        count: int,
        overlap: Overlap | None,
    ) -> None:
        self.symbols, self.memory, self.overlap = symbols, memory, overlap
        self._widths, self._grid, self._block, self._first = registers, grid, block, first
        size = int(np.prod(block))
        self._padded = -(-size // 32) * 32
        total = count * self._padded
        self.numbers = np.arange(total)
        self._slot, self._thread = np.divmod(self.numbers, self._padded)
        self._pc = np.zeros(total, np.int64)
        self._state = np.where(self._thread < size, _RUNS, _EXITED)
        self._waits_at = np.zeros(total, np.int64)  # the number of a barrier
        self.members = np.zeros(total, np.uint32)  # of the warp, whom an instruction such as a shuffle waits for
        self._passed = np.zeros(count, np.int64)  # barriers, for each block
        self._registers: dict[str, Array] = {}
        self._defined: dict[str, Array] = {}
        self._full: set[str] = set()  # registers that every thread has written
        self._special: dict[str, Array] = {}
        self._leaves = np.zeros(0, bool)  # which instructions end a thread
        self.line = 0  # of the instruction that runs

    # For instructions

    def count(self, act: Act) -> int:
        """Return how many threads those are."""
        return len(self.numbers[act])

    def read(self, name: str, act: Act) -> Array:
        """Return a register's raw bits."""
        if name not in self._full:
            defined = self._defined.get(name)
            bad = np.ones(self.count(act), bool) if defined is None else ~defined[act]
            if bad.any():
                raise self.error(AccessError, f"register {name} has no value yet", int(self.numbers[act][bad.argmax()]))
        return self._registers[name][act]

    def write(self, name: str, act: Act, raw: Array) -> None:
        """Set a register."""
        if name not in self._registers:
            self._registers[name] = np.zeros(len(self.numbers), storage(self._widths[name]))
            self._defined[name] = self._state == _EXITED
        self._registers[name][act] = raw
        if name not in self._full:
            self._defined[name][act] = True
            if self._defined[name].all():
                self._full.add(name)

    def special(self, name: str) -> Array:
        """Return a special register for every thread."""
        if name not in self._special:
            self._special[name] = self._make_special(name).astype(np.uint32)
        return self._special[name]

    def _make_special(self, name: str) -> Array:
        if name == "%laneid":
            return self.numbers % 32
        if name == "%warpid":
            return self._thread // 32
        if name.startswith("%lanemask"):
            one = np.int64(1) << self.numbers % 32
            return {"eq": one, "lt": one - 1, "le": 2 * one - 1, "gt": -2 * one, "ge": -one}[name[-2:]] & 0xFFFFFFFF
        kind, axis = name[1:-2], "xyz".index(name[-1])
        if kind.startswith("n"):
            return np.full(len(self.numbers), (self._block if kind == "ntid" else self._grid)[axis])
        sizes = self._block if kind == "tid" else self._grid
        linear = self._thread if kind == "tid" else self._slot + self._first
        return linear // int(np.prod(sizes[:axis], dtype=np.int64)) % sizes[axis]

    def threads(self, act: Act) -> Threads:
        """Return what memory must know of threads."""
        numbers, slot = self.numbers[act], self._slot[act]
        warp = numbers // 32 + self._first * (self._padded // 32)
        return Threads(numbers, warp, slot, self._passed[slot], self._padded // 32, self.error)

    def error(self, kind: type[KernelError], message: str, number: int) -> KernelError:
        """Return an error that names the line and a thread."""
        axes = [tuple(int(self.special(f"%{name}.{axis}")[number]) for axis in "xyz") for name in ("ctaid", "tid")]
        return kind(f"PTX line {self.line}, block {axes[0]}, thread {axes[1]}: {message}")

    def ballot(self, numbers: Array) -> Array:
        """Return, for every thread, the lanes of its warp that are among some threads."""
        among = np.zeros(len(self.numbers), bool)
        among[numbers] = True
        return np.repeat((among.reshape(-1, 32) * _LANES).sum(1, dtype=np.uint32), 32)

    def from_lanes(self, values: Array, lanes: Array, act: Act) -> Array:
        """Return the values of other lanes, which must be there too."""
        numbers = self.numbers[act]
        there = self.ballot(numbers)[numbers] & self.members[numbers]
        if (bad := there & _LANES[lanes] == 0).any():
            at = int(bad.argmax())
            raise self.error(KernelError, f"reads lane {lanes[at]}, which does not take part", int(numbers[at]))
        everyone = np.zeros(len(self.numbers), values.dtype)
        everyone[numbers] = values
        return everyone[numbers // 32 * 32 + lanes]

    def check_whole_warps(self, act: Act) -> None:
        """Raise if lanes of the threads' warps are missing."""
        numbers = self.numbers[act]
        if (bad := self.ballot(numbers)[numbers] != 0xFFFFFFFF).any():
            raise self.error(KernelError, "not all lanes of the warp take part", int(numbers[bad.argmax()]))

    # Control

    def run(self, steps: list[Step], limit: int) -> None:
        """Run until all threads have exited."""
        joins = {place for step in steps if step.control == "branch" for place in step.extra[1]}
        joins |= {i + after for i, step in enumerate(steps) if step.control for after in (0, 1)}
        self._leaves = np.array([step.control == "exit" and step.guard is None for step in steps])
        done = 0
        while True:
            running = self._state == _RUNS
            if not running.any():
                if (self._state == _EXITED).all():
                    self._check_copies()
                    self._check_waits(self._thread < int(np.prod(self._block)))
                    return
                self._release(steps)
                continue
            at = int(self._pc[running].min())
            here = np.flatnonzero(running & (self._pc == at))
            act: Act = slice(None) if len(here) == len(running) else here
            while True:
                step = steps[at]
                self.line, done = step.line, done + 1
                if done > limit:
                    raise self.error(KernelError, f"no end after {limit} instructions", int(here[0]))
                meant = self._meant(step, act)
                try:
                    if step.control:
                        self._control(step, at, act, meant)
                        break
                    if step.run is not None and self.count(meant):
                        step.run(self, meant)
                except ZeroDivisionError as problem:
                    raise self.error(KernelError, str(problem), int(self.numbers[meant][0])) from None
                at += 1
                if at in joins:
                    self._pc[act] = at
                    break

    def _meant(self, step: Step, act: Act) -> Act:
        """Return the threads whose guard holds."""
        if step.guard is None:
            return act
        holds = self.read(step.guard, act) != step.negated
        return act if holds.all() else self.numbers[act][holds]

    def _control(self, step: Step, at: int, act: Act, meant: Act) -> None:
        self._pc[act] = at + 1
        if not self.count(meant):
            return
        if step.control == "exit":
            self._state[meant] = _EXITED
        elif step.control == "branch":
            index, places = step.extra
            which = np.zeros(self.count(meant), np.int64) if index is None else index(self, meant).astype(np.int64)
            if (bad := which >= len(places)).any():
                raise self.error(KernelError, "branch beyond its table", int(self.numbers[meant][bad.argmax()]))
            self._pc[meant] = target = np.array(places)[which]
            self._state[self.numbers[meant][self._leaves[target]]] = _EXITED  # before others wait for them
        elif step.control == "barrier":
            self._waits_at[meant] = step.extra[0](self, meant)
            self._state[meant], self._pc[meant] = _AT_BARRIER, at
        else:
            self.members[meant] = step.extra[0](self, meant)
            self._state[meant], self._pc[meant] = _AT_WARP, at
            ready = self._complete(at)
            if len(ready) and step.run is not None:
                step.run(self, slice(None) if len(ready) == len(self.numbers) else ready)
                self._state[ready], self._pc[ready] = _RUNS, at + 1

    def _complete(self, at: int) -> Array:
        """Return the threads at an instruction of the warp whose partners have all come or exited."""
        waits = self.numbers[(self._state == _AT_WARP) & (self._pc == at)]
        alive, came = self.ballot(self.numbers[self._state != _EXITED]), self.ballot(waits)
        members = self.members[waits]
        if (bad := members & _LANES[waits % 32] == 0).any():
            raise self.error(KernelError, "is not in its own mask of members", int(waits[bad.argmax()]))
        ready = waits[members & alive[waits] & ~came[waits] == 0]
        for mask in np.unique(self.members[ready]):
            alike = ready[self.members[ready] == mask]
            if (bad := mask & alive[alike] & ~self.ballot(alike)[alike] != 0).any():
                raise self.error(KernelError, "lanes name different members", int(alike[bad.argmax()]))
        return ready

    def _release(self, steps: list[Step]) -> None:
        """Let the blocks go on whose threads have all come to a barrier or exited; no thread runs now."""
        if (waiting := self._state == _AT_WARP).any():
            self._stuck(steps, int(waiting.argmax()), "waits for lanes of its warp that never come")
        shape = (len(self._passed), self._padded)
        exited, came = (self._state == _EXITED).reshape(shape), (self._state == _AT_BARRIER).reshape(shape)
        number, pc = self._waits_at.reshape(shape), self._pc
        first = np.where(came, number, -1).max(1, keepdims=True)
        free = (exited | (came & (number == first))).all(1) & came.any(1)
        if not free.any():
            self._stuck(steps, int((self._state != _EXITED).argmax()), "waits for threads that never come (deadlock)")
        freed = (came & free[:, None]).ravel()
        by_warp, place = freed.reshape(-1, 32), pc.reshape(-1, 32)
        highest = np.where(by_warp, place, -1).max(1, keepdims=True)
        if (bad := (by_warp & (place != highest)).ravel()).any():
            self._stuck(steps, int(bad.argmax()), "threads of a warp wait at different barriers")
        self._passed[free] += 1
        self._state[freed] = _RUNS
        self._pc[freed] += 1

    def _check_copies(self) -> None:
        flights = self.memory.spaces["shared"].flights
        if flights is not None and (missed := flights.missed()) is not None:
            number, self.line = missed
            raise self.error(KernelError, "has not waited for this copy at its end", number)

    def _check_waits(self, there: Array) -> None:
        if self.overlap is not None:
            self.overlap.check("ends", self.threads(np.flatnonzero(there)))

    def _stuck(self, steps: list[Step], number: int, why: str) -> NoReturn:
        self.line = steps[int(self._pc[number])].line
        raise self.error(KernelError, why, number)
