"""What each instruction of PTX does to the machine."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from .async_copies import COPY, commit_group, copy_size, start_copy, wait_all, wait_group
from .errors import KernelError
from .machine import Act, Machine, Step
from .memory import GENERIC
from .operands import Operands
from .operations import operation
from .tensor_cores import tensor_core
from .text import Instruction, Text, split
from .values import Array, bits_of, decode, encode, storage

_TYPE = r"(?P<t>pred|[busf](?:8|16|32|64))"
_WHERE = r"(?:\.(?P<space>global|shared|local|const|param)(?:::entry|::cta)?)?"
_ORDER = r"(?:\.(?:volatile|weak|(?:relaxed|acquire|release|acq_rel)(?:\.(?:cta|gpu|sys|cluster))?))?"
_CACHE = r"(?:\.c[agsv]|\.lu|\.w[bt]|\.L1::\w+|\.L2::\d+B)*"
_MOVE = re.compile(rf"mov\.{_TYPE}")
_LOAD = re.compile(rf"ld{_ORDER}{_WHERE}{_CACHE}(?P<nc>\.nc)?{_CACHE}(?:\.v(?P<n>[248]))?\.{_TYPE}")
_STORE = re.compile(rf"st{_ORDER}{_WHERE}{_CACHE}(?:\.v(?P<n>[248]))?\.{_TYPE}")
_ATOMIC = re.compile(
    rf"(?P<name>atom|red){_ORDER}(?:\.(?:cta|gpu|sys))?{_WHERE}\.(?P<op>add|min|max|and|or|xor|exch|cas)\.{_TYPE}"
)
_GENERIC = re.compile(r"cvta(?P<to>\.to)?\.(?P<space>global|shared|local|const|param)(?:::entry|::cta)?\.u64")
_SHUFFLE = re.compile(r"shfl\.sync\.(?P<mode>up|down|bfly|idx)\.b32")
_VOTE = re.compile(r"vote\.sync\.(?P<mode>all|any|uni|ballot)\.(?P<t>pred|b32)")
_REDUCE = re.compile(r"redux\.sync\.(?P<op>add|min|max|and|or|xor)\.(?P<t>[bus]32)")
_GROUPS = {"cp.async.commit_group": commit_group, "cp.async.wait_all": wait_all}
_NOTHING = re.compile(r"(?:membar|fence)\.[\w.]+")  # all see what is written in the same order


class Compiler:
    """Turns instructions as they are written into steps of the machine.

    Attributes
    ----------
    granule
        Bytes of the smallest element that instructions so far load or store.
    """

    def __init__(self, text: Text) -> None:
        self.granule = 8
        self._text = text
        self._operands = Operands(text)

    def compile(self, given: Instruction) -> Step:
        """Return the step of an instruction; raise ValueError if anything of it is unknown."""
        name, operands = given.name, given.operands
        if given.guard is not None and self._operands.registers.get(given.guard) != 1:
            raise ValueError(f"{given.guard} is no predicate")
        control = ""
        extra: tuple[Any, ...] = ()
        run: Callable[[Machine, Act], None] | None = None
        if name in ("bra", "bra.uni"):
            control, extra = "branch", (None, [self._text.labels[self._known_label(operands[0])]])
        elif name in ("brx.idx", "brx.idx.uni"):
            labels = self._text.tables.get(operands[1], [])
            places = [self._text.labels[self._known_label(label)] for label in labels]
            control, extra = "branch", (self._operands.value(operands[0], "u32"), places)
        elif name in ("ret", "exit"):
            control = "exit"
        elif name == "trap":
            run = _trap
        elif name in ("bar.sync", "barrier.sync", "barrier.sync.aligned", "bar.sync.aligned"):
            (barrier,) = operands
            control, extra = "barrier", (self._operands.value(barrier, "u32"),)
        elif name == "bar.warp.sync":
            control, extra, run = "warp", (self._operands.value(operands[0], "b32"),), _nothing
        elif match := _SHUFFLE.fullmatch(name):
            control, extra, run = "warp", (self._operands.value(operands[4], "b32"),), self._shuffle(match, operands)
        elif match := _VOTE.fullmatch(name):
            control, extra, run = "warp", (self._operands.value(operands[2], "b32"),), self._vote(match, operands)
        elif match := _REDUCE.fullmatch(name):
            control, extra, run = "warp", (self._operands.value(operands[2], "b32"),), self._reduce(match, operands)
        elif run := tensor_core(name, operands, self._operands):
            control, extra = "warp", (self._operands.value("-1", "b32"),)
        else:
            run = self._plain(name, operands)
        return Step(given.line, given.guard, given.negated, control, run, extra)

    def _known_label(self, label: str) -> str:
        if label not in self._text.labels:
            raise ValueError(f"there is no label {label}")
        return label

    def _plain(self, name: str, operands: list[str]) -> Callable[[Machine, Act], None]:
        if match := _MOVE.fullmatch(name):
            return self._move(match["t"], *operands)
        if match := _LOAD.fullmatch(name):
            return self._load(match, *operands)
        if match := _STORE.fullmatch(name):
            return self._store(match, *operands)
        if match := _ATOMIC.fullmatch(name):
            return self._atomic(match, operands)
        if match := COPY.fullmatch(name):
            size = copy_size(match, operands)
            self.granule = min(self.granule, size)
            return start_copy(size, operands, self._operands)
        if name == "cp.async.wait_group":
            return wait_group(operands)
        if name in _GROUPS:
            return _GROUPS[name]
        if match := _GENERIC.fullmatch(name):
            base = np.uint64(GENERIC.get(match["space"], 0))
            value, write = self._operands.value(operands[1], "b64"), self._operands.target(operands[0], "b64")
            if match["to"]:
                return lambda m, act: write(m, act, value(m, act) - base)
            return lambda m, act: write(m, act, value(m, act) + base)
        if name == "activemask.b32":
            write = self._operands.target(operands[0], "b32")
            return lambda m, act: write(m, act, m.ballot(m.numbers[act])[m.numbers[act]])
        if _NOTHING.fullmatch(name):
            return _nothing
        if name in _OVERLAP:
            return _OVERLAP[name]
        return self._arithmetic(name, operands)

    def _arithmetic(self, name: str, operands: list[str]) -> Callable[[Machine, Act], None]:
        known = operation(name)
        if known is None:
            raise ValueError("unknown instruction")
        if len(operands) != len(known.operands) + 1:
            raise ValueError("unknown operands")
        loose = name.startswith("cvt.")
        types = zip(operands[1:], known.operands, strict=True)
        values = [self._operands.value(each, type_, loose) for each, type_ in types]
        write = self._operands.target(operands[0], known.result, loose)

        def run(m: Machine, act: Act) -> None:
            numbers = [decode(type_, value(m, act)) for type_, value in zip(known.operands, values, strict=True)]
            write(m, act, encode(known.result, known.compute(*numbers)))

        return run

    def _space(self, match: re.Match[str]) -> str:
        if match["space"] != "param":
            self.granule = min(self.granule, bits_of(match["t"]) // 8)
        return match["space"] or "generic"

    # Instructions

    def _move(self, type_: str, to: str, of: str) -> Callable[[Machine, Act], None]:
        if to.startswith("{"):
            parts = split(to.strip("{}"))
            each = f"b{bits_of(type_) // len(parts)}"
            whole, writes = self._operands.value(of, type_), [self._operands.target(part, each) for part in parts]

            def unpack(m: Machine, act: Act) -> None:
                pieces = whole(m, act).copy().view(storage(bits_of(each))).reshape(-1, len(parts))
                for i, write_part in enumerate(writes):
                    write_part(m, act, pieces[:, i].copy())

            return unpack
        write = self._operands.target(to, type_)
        if of.startswith("{"):
            parts = split(of.strip("{}"))
            values = [self._operands.value(part, f"b{bits_of(type_) // len(parts)}") for part in parts]
            dtype = storage(bits_of(type_))
            return lambda m, act: write(m, act, np.stack([v(m, act) for v in values], 1).view(dtype)[:, 0])
        value = self._operands.value(of, type_)
        return lambda m, act: write(m, act, value(m, act))

    def _load(self, match: re.Match[str], to: str, of: str) -> Callable[[Machine, Act], None]:
        count, space, size = int(match["n"] or 1), self._space(match), bits_of(match["t"]) // 8
        writes = [self._operands.target(part, match["t"], loose=True) for part in split(to.strip("{}"))]
        address, constant = self._operands.address(of), bool(match["nc"])
        if len(writes) != count:
            raise ValueError(f"expected {count} registers")

        def run(m: Machine, act: Act) -> None:
            threads = m.threads(act)
            found = m.memory.resolve(space, address(m, act), size * count, threads)
            out = np.empty((count, len(threads.numbers)), f"u{size}")
            for place, at, chosen in found:
                for i in range(count):
                    out[i, chosen] = place.load(at + i * size, size, threads.chosen(chosen), constant)
            for write, raw in zip(writes, out, strict=True):
                write(m, act, raw)

        return run

    def _store(self, match: re.Match[str], to: str, of: str) -> Callable[[Machine, Act], None]:
        count, space, size = int(match["n"] or 1), self._space(match), bits_of(match["t"]) // 8
        values = [self._operands.value(part, match["t"], loose=True) for part in split(of.strip("{}"))]
        address = self._operands.address(to)
        if len(values) != count:
            raise ValueError(f"expected {count} values")

        def run(m: Machine, act: Act) -> None:
            threads = m.threads(act)
            for place, at, chosen in m.memory.resolve(space, address(m, act), size * count, threads):
                for i, value in enumerate(values):
                    place.store(at + i * size, value(m, act)[chosen], threads.chosen(chosen))

        return run

    def _atomic(self, match: re.Match[str], operands: list[str]) -> Callable[[Machine, Act], None]:
        type_, name, space = match["t"], match["op"], self._space(match)
        write = self._operands.target(operands.pop(0), type_, loose=True) if match["name"] == "atom" else None
        address = self._operands.address(operands[0])
        values = [self._operands.value(each, type_) for each in operands[1:]]
        combine = operation(f"{name}.{'b' + type_[1:] if name in ('and', 'or', 'xor') else type_}")
        if len(values) != (2 if name == "cas" else 1) or (combine is None and name not in ("exch", "cas")):
            raise ValueError("unknown atomic operation")

        def run(m: Machine, act: Act) -> None:
            threads = m.threads(act)
            given = [value(m, act) for value in values]
            out = np.empty(len(threads.numbers), storage(bits_of(type_)))

            def update(chosen: Array, before: Array, i: int) -> Array:
                mine = [each[chosen[i : i + 1]] for each in given]
                if combine is not None:
                    mine = [decode(type_, each) for each in (before, *mine)]
                    return encode(combine.result, combine.compute(*mine))
                return mine[0] if name == "exch" else np.where(before == mine[0], mine[1], before)

            for place, at, chosen in m.memory.resolve(space, address(m, act), out.itemsize, threads):
                out[chosen] = place.atomic(at, out.itemsize, partial(update, chosen), threads.chosen(chosen))
            if write is not None:
                write(m, act, out)

        return run

    def _shuffle(self, match: re.Match[str], operands: list[str]) -> Callable[[Machine, Act], None]:
        mode = match["mode"]
        to, _, valid = (part.strip() for part in operands[0].partition("|"))
        write = self._operands.target(to, "b32")
        tell = self._operands.target(valid, "pred") if valid else None
        values = [self._operands.value(each, "b32") for each in operands[1:4]]

        def run(m: Machine, act: Act) -> None:
            value, by, c = (each(m, act) for each in values)
            lane = m.special("%laneid")[act].astype("i8")
            by, clamp, segment = (each.astype("i8") for each in (by & 31, c & 31, c >> 8 & 31))
            low = lane & segment
            limit = low | clamp & ~segment
            source = {"up": lane - by, "down": lane + by, "bfly": lane ^ by, "idx": low | by & ~segment}[mode]
            inside = source >= limit if mode == "up" else source <= limit
            write(m, act, m.from_lanes(value, np.where(inside, source, lane), act))
            if tell is not None:
                tell(m, act, inside)

        return run

    def _vote(self, match: re.Match[str], operands: list[str]) -> Callable[[Machine, Act], None]:
        mode = match["mode"]
        if (mode == "ballot") != (match["t"] == "b32"):
            raise ValueError("unknown vote")
        write, value = self._operands.target(operands[0], match["t"]), self._operands.value(operands[1], "pred")

        def run(m: Machine, act: Act) -> None:
            numbers, yes = m.numbers[act], value(m, act)
            members = m.members[numbers]
            every = m.ballot(numbers)[numbers] & members
            ayes = m.ballot(numbers[yes])[numbers] & members
            answers = {"all": ayes == every, "any": ayes != 0, "uni": (ayes == every) | (ayes == 0), "ballot": ayes}
            write(m, act, answers[mode])

        return run

    def _reduce(self, match: re.Match[str], operands: list[str]) -> Callable[[Machine, Act], None]:
        type_, name = match["t"], match["op"]
        known = operation(f"{name}.{type_}")
        write, value = self._operands.target(operands[0], type_), self._operands.value(operands[1], type_)
        if known is None:
            raise ValueError("unknown reduction")

        def run(m: Machine, act: Act) -> None:
            numbers, given = m.numbers[act], decode(type_, value(m, act))
            out = given.copy()
            same = (numbers[:, None] // 32 == numbers // 32) & (m.members[numbers][:, None] == m.members[numbers])
            for i, others in enumerate(same):
                mine = np.flatnonzero(others)
                total = given[mine[:1]]
                for other in mine[1:]:
                    total = known.compute(total, given[other : other + 1])
                out[i : i + 1] = total
            write(m, act, encode(type_, out))

        return run


def _nothing(m: Machine, act: Act) -> None:
    pass


def _wait_for_last(m: Machine, act: Act) -> None:
    if m.overlap is not None:
        m.overlap.waited[act] = True


def _launch_next(m: Machine, act: Act) -> None:
    if m.overlap is not None:
        m.overlap.check("lets the next launch begin", m.threads(act))


_OVERLAP = {"griddepcontrol.wait": _wait_for_last, "griddepcontrol.launch_dependents": _launch_next}


def _trap(m: Machine, act: Act) -> None:
    raise m.error(KernelError, "trap", int(m.numbers[act][0]))
