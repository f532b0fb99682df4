"""What PTX's instructions for floats compute.

Float32 arithmetic is IEEE single, `fma` rounded once. `ex2.approx` and the like are computed exactly and then rounded,
so a GPU may differ from them by the errors that PTX allows. `ptxas` may fuse a `mul.f32` and an `add.f32` that are not
marked `.rn`; nothing is fused here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from .values import Array, bits_of, to_odd

Compute = Callable[..., Array]


class Operation(NamedTuple):
    """The types of an instruction's result and operands, and the function from the operands to the result."""

    result: str
    operands: tuple[str, ...]
    compute: Compute


def _fma(a: Array, b: Array, c: Array) -> Array:
    if a.dtype == np.float64:
        return np.array([_fma_exactly(*three) for three in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)])
    product, c = a.astype("f8") * b, c.astype("f8")  # a product of two float32 is exact in float64
    total = product + c
    part = total - product
    return to_odd(total, (product - (total - part)) + (c - part))  # what that sum's rounding left off


def _fma_exactly(a: float, b: float, c: float) -> float:
    if not np.isfinite([a, b, c]).all():
        return float(np.float64(a) * b + c)
    total = Fraction(a) * Fraction(b) + Fraction(c)
    return float(total) if total else a * b + c


def _extremum(name: str, nan: bool) -> Compute:
    pick = {("min", False): np.fmin, ("max", False): np.fmax, ("min", True): np.minimum, ("max", True): np.maximum}
    signs = np.bitwise_or if name == "min" else np.bitwise_and  # -0 is less than +0

    def compute(a: Array, b: Array) -> Array:
        unsigned = f"u{a.itemsize}"
        return np.where(a == b, signs(a.view(unsigned), b.view(unsigned)).view(a.dtype), pick[name, nan](a, b))

    return compute


def flush(values: Array) -> Array:
    """Return float32 values with the subnormal ones as zeros."""
    if values.dtype != np.float32:
        return values
    return np.where(np.abs(values) < np.finfo("f4").tiny, np.copysign(np.float32(0), values), values)


def float_operation(
    compute: Compute, result: str, operands: tuple[str, ...], ftz: bool, sat: bool = False
) -> Operation:
    """Return an operation, with its results and operands flushed or its results kept from 0 to 1 if it says so."""

    def modified(*values: Array) -> Array:
        out = compute(*(map(flush, values) if ftz else values))
        if sat:
            out = np.where(np.isnan(out), out.dtype.type(0), np.clip(out, 0, 1))
        return flush(out.astype("f4")) if ftz and result == "f32" else out

    return Operation(result, operands, modified if ftz or sat else compute)


def _in_double(function: Compute) -> Compute:
    return lambda *values: function(*(value.astype("f8") for value in values))


_FLOATS: dict[str, tuple[int, Compute]] = {
    "add": (2, np.add),
    "sub": (2, np.subtract),
    "mul": (2, np.multiply),
    "div": (2, np.divide),
    "fma": (3, _fma),
    "sqrt": (1, np.sqrt),
    "rcp": (1, np.reciprocal),
    "rsqrt": (1, _in_double(lambda a: 1 / np.sqrt(a))),
    "ex2": (1, _in_double(np.exp2)),
    "lg2": (1, _in_double(np.log2)),
    "sin": (1, _in_double(np.sin)),
    "cos": (1, _in_double(np.cos)),
    "tanh": (1, _in_double(np.tanh)),
}


def float_arithmetic(match: re.Match[str]) -> Operation:
    """Return sums, products, roots and so on."""
    count, compute = _FLOATS[match["name"]]
    given = match.groupdict()
    return float_operation(compute, match["t"], (match["t"],) * count, bool(given["ftz"]), bool(given.get("sat")))


def float_extremum(match: re.Match[str]) -> Operation:
    """Return minima and maxima."""
    type_ = match["t"]
    return float_operation(_extremum(match["name"], bool(match["nan"])), type_, (type_,) * 2, bool(match["ftz"]))


def signs(match: re.Match[str]) -> Operation:
    """Return what changes only signs, of raw bits."""
    name, type_ = match["name"], match["t"]
    base, _, times = type_.partition("x")
    sign = sum(1 << bits_of(base) * i + bits_of(base) - 1 for i in range(int(times or 1)))
    raw, every = f"b{bits_of(type_)}", (1 << bits_of(type_)) - 1
    if name == "copysign":  # the sign of the first, all else of the second
        return Operation(raw, (raw, raw), lambda a, b: a & a.dtype.type(sign) | b & b.dtype.type(every ^ sign))
    if name == "abs":
        return Operation(raw, (raw,), lambda a: a & a.dtype.type(every ^ sign))
    return Operation(raw, (raw,), lambda a: a ^ a.dtype.type(sign))
