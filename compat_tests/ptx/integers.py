"""What PTX's instructions for integers and bits compute."""

from __future__ import annotations

import re

import numpy as np

from .floats import Compute, Operation
from .values import Array, bits_of


def _high(a: Array, b: Array) -> Array:
    bits = a.itemsize * 8
    if bits < 64:
        wide = f"{a.dtype.kind}8"
        return (a.astype(wide) * b.astype(wide) >> bits).astype(a.dtype)
    low, ua, ub = np.uint64(0xFFFFFFFF), a.view("u8"), b.view("u8")
    a0, a1, b0, b1 = ua & low, ua >> 32, ub & low, ub >> 32
    middle = a1 * b0 + (a0 * b0 >> 32)
    high = a1 * b1 + (middle >> 32) + ((middle & low) + a0 * b1 >> 32)
    if a.dtype.kind == "i":
        high = high - np.where(a < 0, ub, np.uint64(0)) - np.where(b < 0, ua, np.uint64(0))
    return high.view(a.dtype)


def _wide(a: Array, b: Array) -> Array:
    wide = f"{a.dtype.kind}{a.itemsize * 2}"
    return a.astype(wide) * b.astype(wide)


def product(match: re.Match[str]) -> Operation:
    """Return a part of the product of integers, with something added for `mad`."""
    compute: Compute = {"lo": np.multiply, "hi": _high, "wide": _wide}[match["part"]]
    type_ = match["t"]
    result = f"{type_[0]}{bits_of(type_) * 2}" if match["part"] == "wide" else type_
    if match["name"] == "mad":
        return Operation(result, (type_, type_, result), lambda a, b, c: compute(a, b) + c)
    return Operation(result, (type_, type_), compute)


def _quotient(a: Array, b: Array) -> Array:
    """Divide towards zero."""
    if (b == 0).any():
        raise ZeroDivisionError("division of an integer by zero")
    if a.dtype.kind == "u":
        return a // b
    unsigned = f"u{a.itemsize}"
    size = np.abs(a).view(unsigned) // np.abs(b).view(unsigned)
    return np.where((a < 0) != (b < 0), np.negative(size), size).view(a.dtype)


INTEGERS: dict[str, Compute] = {
    "add": np.add,
    "sub": np.subtract,
    "div": _quotient,
    "rem": lambda a, b: a - _quotient(a, b) * b,
    "min": np.minimum,
    "max": np.maximum,
    "abs": np.abs,
    "neg": np.negative,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
}


def integer(match: re.Match[str]) -> Operation:
    """Return what `INTEGERS` has of the type."""
    count = 1 if match["name"] in ("abs", "neg", "not") else 2
    return Operation(match["t"], (match["t"],) * count, INTEGERS[match["name"]])


def shift(match: re.Match[str]) -> Operation:
    """Return shifts, by any number of bits."""
    left, type_ = match["name"] == "shl", match["t"]
    bits = bits_of(type_)

    def compute(a: Array, by: Array) -> Array:
        within = np.minimum(by, bits - 1).astype(a.dtype)
        shifted = a << within if left else a >> within
        return shifted if type_[0] == "s" else np.where(by < bits, shifted, a.dtype.type(0))

    return Operation(type_, (type_, "u32"), compute)


def funnel(match: re.Match[str]) -> Operation:
    """Return shifts of pairs of registers."""

    def compute(low: Array, high: Array, by: Array) -> Array:
        both = high.astype("u8") << 32 | low
        count = (by & 31 if match["mode"] == "wrap" else np.minimum(by, 32)).astype("u8")
        return ((both << count) >> 32 if match["way"] == "l" else both >> count).astype("u4")

    return Operation("b32", ("b32", "b32", "u32"), compute)


def field(match: re.Match[str]) -> Operation:
    """Return what takes out or puts in some bits."""
    name, type_ = match["name"], match["t"]
    bits = bits_of(type_)

    def mask(length: Array) -> Array:
        return (np.uint64(1) << np.minimum(length, 63)) - 1 | np.where(length > 63, ~np.uint64(0), np.uint64(0))

    def extract(a: Array, position: Array, length: Array) -> Array:
        position, length = (position & 255).astype("u8"), (length & 255).astype("u8")
        wide = a.astype(f"{a.dtype.kind}8").view("u8")
        inside = np.where(position < bits, wide & mask(np.uint64(bits)), np.uint64(0)) >> np.minimum(position, 63)
        field = inside & mask(length)
        if type_[0] == "u":
            return field.astype(a.dtype)
        end = np.minimum(position + length - (length > 0), bits - 1)  # the field's sign
        negative = (wide >> end & 1 == 1) & (length > 0)
        kept = mask(np.minimum(length, bits - np.minimum(position, bits)))
        return np.where(negative, field | ~kept, field).astype(a.dtype)

    def insert(a: Array, b: Array, position: Array, length: Array) -> Array:
        position, length = (position & 255).astype("u8"), (length & 255).astype("u8")
        where = np.where(position < bits, mask(length) << np.minimum(position, 63), np.uint64(0))
        return (b & ~where | a.astype("u8") << np.minimum(position, 63) & where).astype(a.dtype)

    if name == "bfi":
        return Operation(type_, (type_, type_, "u32", "u32"), insert)
    return Operation(type_, (type_, "u32", "u32"), extract)


def permute(a: Array, b: Array, select: Array) -> Array:
    """Choose four bytes among those of two registers, or their signs."""
    both, out = b.astype("u8") << 32 | a, np.zeros_like(a)
    for i in range(4):
        nibble = select >> 4 * i & 15
        byte = (both >> ((nibble & 7) * 8).astype("u8") & 255).astype("u4")
        out |= np.where(nibble & 8, (byte >> 7) * 255, byte).astype("u4") << 8 * i
    return out


def look_up(a: Array, b: Array, c: Array, table: Array) -> Array:
    """Combine three registers bit by bit, as a table says."""
    out = np.zeros_like(a)
    for i in range(8):
        term = (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
        out |= np.where(table >> i & 1, term, a.dtype.type(0))
    return out


def _bits(a: Array) -> Array:
    """Return every bit, the highest first."""
    return np.unpackbits(a[:, None].astype(f">u{a.itemsize}").view("u1"), axis=1)


def _reverse(a: Array) -> Array:
    return np.packbits(_bits(a)[:, ::-1].copy(), axis=1).view(f">u{a.itemsize}")[:, 0].astype(a.dtype)


def counted(match: re.Match[str]) -> Operation:
    """Return counts of bits, and bits reversed."""
    type_ = match["t"]
    if match["name"] == "brev":
        return Operation(type_, (type_,), _reverse)
    if match["name"] == "popc":
        return Operation("u32", (type_,), lambda a: _bits(a).sum(1).astype("u4"))
    return Operation(
        "u32", (type_,), lambda a: np.where(a, _bits(a).argmax(1), bits_of(type_)).astype("u4")
    )  # leading zeros
