"""The operands of PTX's instructions: what reads and writes registers, numbers and addresses."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from .machine import Act, Machine
from .text import Text, number
from .values import Array, bits_of, storage

Value = Callable[[Machine, Act], Array]
Write = Callable[[Machine, Act, Array], None]

_ADDRESS = re.compile(r"\[\s*([%$\w]+)\s*(?:\+\s*(-?\w+)\s*)?\]")


class Operands:
    """Turns operands as they are written into functions of the machine and of the threads that act.

    Parameters
    ----------
    text
        The kernel, for its registers, parameters and variables.
    """

    def __init__(self, text: Text) -> None:
        self.registers = text.registers
        self._names = {each.name for each in (*text.parameters, *text.variables)}

    def value(self, written: str, type_: str, loose: bool = False) -> Value:
        """Return what reads an operand as raw bits of a type; `loose`: the low bits of a wider register."""
        bits = bits_of(type_)
        dtype = storage(bits)
        if type_ == "pred" and written.startswith("!"):
            plain = self.value(written[1:], "pred")
            return lambda m, act: ~plain(m, act)
        if (own := self.registers.get(written)) is not None:
            if own == bits:
                return lambda m, act: m.read(written, act)
            if loose and own > bits > 1:
                return lambda m, act: m.read(written, act).astype(dtype)
            raise ValueError(f"{written} has {own} bits, not {bits}")
        if written in Machine.SPECIAL and bits in (32, 64):
            return lambda m, act: m.special(written)[act].astype(dtype)
        if written in self._names:
            if bits < 32:
                raise ValueError(f"the address of {written} needs more than {bits} bits")
            return lambda m, act: np.full(m.count(act), m.symbols[written], dtype)
        raw = np.array(number(written, bits) != 0 if bits == 1 else number(written, bits), dtype)
        return lambda m, act: np.full(m.count(act), raw, dtype)

    def target(self, written: str, type_: str, loose: bool = False) -> Write:
        """Return what writes raw bits of a type to a register; `loose`: to a wider one, with the sign if it has one."""
        bits, own = bits_of(type_), self.registers.get(written)
        if written == "_":
            return lambda m, act, raw: None
        if own == bits:
            return lambda m, act, raw: m.write(written, act, raw)
        if own is None or not loose or own < bits:
            raise ValueError(f"{written} is no register of {bits} bits")
        if type_[0] == "s":
            return lambda m, act, raw: m.write(written, act, raw.view(f"i{bits // 8}").astype(storage(own)))
        return lambda m, act, raw: m.write(written, act, raw.astype(storage(own)))

    def address(self, written: str) -> Value:
        """Return what reads an address such as [%rd1+8]."""
        match = _ADDRESS.fullmatch(written)
        if match is None:
            raise ValueError(f"unknown address {written}")
        bits = self.registers.get(match[1], 64)
        base, offset = self.value(match[1], f"b{bits}"), number(match[2] or "0", bits)
        added = storage(bits).type(offset)
        return lambda m, act: (base(m, act) + added).astype("u8")
