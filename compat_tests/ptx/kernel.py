"""A kernel that can be launched: its arguments, and the memory and threads of a launch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .instructions import Compiler
from .machine import Machine, Step
from .memory import Memory
from .overlap import Overlap
from .text import Variable, parse

Table = Sequence[Sequence["int | np.ndarray[Any, Any]"]]
"""Rows of 64-bit numbers, and of arrays, whose addresses the kernel finds there."""

_THREADS = 16384  # that run at a time
_GAP = 256  # bytes between variables, and before the first


class Kernel:
    """A kernel that can be run.

    Parameters
    ----------
    ptx_text
        Text with exactly one kernel, as LLVM's NVPTX back end writes it.

    Raises
    ------
    ValueError
        There is something that the interpreter does not know; the message names its line.
    """

    def __init__(self, ptx_text: str) -> None:
        self._text = parse(ptx_text)
        self._registers = self._text.registers
        self._symbols = {parameter.name: parameter.offset for parameter in self._text.parameters}
        compiler = Compiler(self._text)
        self._shared = [variable for variable in self._text.variables if variable.space == "shared"]
        self._local = _lay_out([each for each in self._text.variables if each.space == "local"], self._symbols, 0)
        _lay_out(self._shared, self._symbols, 0)
        self._steps: list[Step] = []
        for instruction in self._text.instructions:
            try:
                self._steps.append(compiler.compile(instruction))
            except (ValueError, IndexError) as problem:
                written = f"{instruction.name} {', '.join(instruction.operands)}"
                raise ValueError(f"PTX line {instruction.line}: {written}: {problem}") from None
        self._steps.append(Step(0, None, False, "exit", None, ()))
        self._granule = compiler.granule
        self._overlaps = any(each.name == "griddepcontrol.wait" for each in self._text.instructions)

    def run(
        self,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        args: Sequence[Any],
        dynamic_shared: int = 0,
        limit: int = 5_000_000,
        settled: Sequence[Any] = (),
    ) -> None:
        """Launch the kernel once and wait for it.

        Parameters
        ----------
        grid, block
            Numbers of blocks and of threads in each, by up to three dimensions.
        args
            One value for each parameter: an array, which the kernel changes in place, a `Table`, or a number. For a
            structure a tuple of these, where Python's own int takes 8 bytes.
        dynamic_shared
            Bytes of shared memory for a variable that is declared without a size.
        limit
            Instructions, each for many threads, after which the kernel counts as endless.
        settled
            Those of `args` that the launch before does not write, so that a kernel that waits for its end may read them
            at once.

        Raises
        ------
        AccessError
            A load or store where nothing is, misaligned, into a read-only array, or of what was never written.
        RaceError
            Warps use one place with no barrier between, blocks use what another one writes, or a kernel that waits for
            the launch before uses what that one may write before it has waited.
        KernelError
            Threads wait for each other without end, or do anything else that a GPU does not define.
        """
        grid, block = _three(grid), _three(block)
        self._check_limits(block)
        if len(settled) and not self._overlaps:
            raise ValueError("the kernel does not wait for the launch before: it begins when that has ended")
        memory = Memory(self._granule)
        symbols = dict(self._symbols)
        shared = _lay_out(self._shared, symbols, dynamic_shared)
        for variable in self._text.variables:
            if variable.initial is not None:
                initial = variable.initial.copy()
                initial.flags.writeable = variable.space == "global"
                symbols[variable.name] = memory.add(variable.name, initial)
        memory.pass_parameters(self._pack(args, memory, settled))
        blocks = int(np.prod(grid))
        padded = -(-int(np.prod(block)) // 32) * 32
        at_once = max(1, _THREADS // padded)
        with np.errstate(all="ignore"):
            for first in range(0, blocks, at_once):
                count = min(at_once, blocks - first)
                memory.set_up("shared", count, shared)
                memory.set_up("local", count * padded, self._local)
                overlap = Overlap(count * padded) if self._overlaps else None
                memory.overlap(overlap)
                Machine(self._registers, symbols, memory, grid, block, first, count, overlap).run(self._steps, limit)

    def _check_limits(self, block: tuple[int, ...]) -> None:
        required = self._text.limits.get("reqntid")
        if required and _three(required) != block:
            raise ValueError(f"the kernel is for blocks of {required} threads, not {block}")
        if np.prod(block) > np.prod(self._text.limits.get("maxntid", [1024])):
            raise ValueError(f"blocks of {block} are more threads than the kernel is for")

    def _pack(self, args: Sequence[Any], memory: Memory, settled: Sequence[Any]) -> bytes:
        parameters = self._text.parameters
        if len(args) != len(parameters):
            raise ValueError(f"the kernel takes {len(parameters)} arguments, not {len(args)}")
        packed = b""
        for i, (parameter, given) in enumerate(zip(parameters, args, strict=True)):
            name, raw = f"argument {i}", b""
            is_settled = any(given is each for each in settled)
            if parameter.aggregate:
                for item in given:
                    part = _bytes(name, item, 8, memory, is_settled)
                    raw += bytes(-len(raw) % len(part)) + part
                raw += bytes(-len(raw) % 8)
                raw = raw[: parameter.size] if not any(raw[parameter.size :]) else raw
            else:
                raw = _bytes(name, given, parameter.size, memory, is_settled)
            if len(raw) != parameter.size:
                raise ValueError(f"{name} has {len(raw)} bytes, its parameter {parameter.size}")
            packed += bytes(parameter.offset - len(packed)) + raw
        return packed


def _three(given: int | Sequence[int]) -> tuple[int, ...]:
    sizes = (given,) if isinstance(given, int) else tuple(given)
    if not 1 <= len(sizes) <= 3 or min(sizes) < 1:
        raise ValueError(f"{given} is no number of blocks or threads")
    return (*sizes, 1, 1)[:3]


def _lay_out(variables: list[Variable], symbols: dict[str, int], dynamic: int) -> list[tuple[int, int, str]]:
    """Give variables addresses that are not better aligned than they must be; return where each begins and ends."""
    end, spans = 0, []
    for variable in variables:
        begin = (-(-(end + _GAP) // variable.align) | 1) * variable.align
        symbols[variable.name] = begin
        end = begin + (variable.size or dynamic)
        spans.append((begin, end, variable.name))
    return spans


def _bytes(name: str, given: Any, size: int, memory: Memory, settled: bool) -> bytes:
    if isinstance(given, list):
        entries = [[_bytes(f"an entry of {name}", entry, 8, memory, settled) for entry in row] for row in given]
        given = np.array([[int.from_bytes(entry, "little") for entry in row] for row in entries], np.int64)
        given.flags.writeable = False
    if isinstance(given, np.ndarray):
        return memory.add(name, given, settled).to_bytes(8, "little")
    if isinstance(given, np.generic):
        return given.tobytes()
    if isinstance(given, float):
        return np.array(given, f"f{size}").tobytes()
    if not isinstance(given, int) or not -(1 << 8 * size - 1) <= given < 1 << 8 * size:
        raise ValueError(f"{name} is {given!r}, which does not fit into {size} bytes")
    return (given & (1 << 8 * size) - 1).to_bytes(size, "little")
