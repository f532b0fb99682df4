"""The types of PTX: how many bits a value has, and raw bits as numbers and back, for many threads at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

KINDS = {"b": "u", "u": "u", "s": "i", "f": "f"}  # of NumPy
_NAN = {"f16": 0x7FFF, "bf16": 0x7FFF, "f32": 0x7FFFFFFF}


def bits_of(type_: str) -> int:
    """Return the width of a PTX type: 32 for `f16x2`, 1 for `pred`."""
    if type_ == "pred":
        return 1
    width, _, times = type_.lstrip("bsuf").partition("x")
    return int(width) * int(times or 1)


def storage(bits: int) -> np.dtype[Any]:
    """Return what holds so many raw bits."""
    return np.dtype(bool if bits == 1 else f"u{bits // 8}")


def decode(type_: str, raw: Array) -> Array:
    """Return raw bits as numbers; `bf16` as float32, pairs like `f16x2` one after the other."""
    if type_ == "pred":
        return raw
    base = type_.partition("x")[0]
    if base == "bf16":
        return (raw.view("u2").astype("u4") << 16).view("f4")
    return raw.view(f"{KINDS[base[0]]}{bits_of(base) // 8}")


def encode(type_: str, values: Array) -> Array:
    """Return numbers as raw bits; floats are rounded to nearest even, once, and every NaN is PTX's own."""
    if type_ == "pred":
        return values
    base = type_.partition("x")[0]
    if base == "bf16":
        raw = _single_to_odd(values).view("u4")
        raw = ((raw + 0x7FFF + (raw >> 16 & 1)) >> 16).astype("u2")
    else:
        dtype = np.dtype(f"{KINDS[base[0]]}{bits_of(base) // 8}")
        raw = np.ascontiguousarray(values.astype(dtype, copy=False)).view(f"u{dtype.itemsize}")
    if base in _NAN and (nan := np.isnan(values)).any():
        raw = np.where(nan, raw.dtype.type(_NAN[base]), raw)
    return raw.view(storage(bits_of(type_)))


def to_odd(values: Array, error: Array) -> Array:
    """Make the last bit of inexact values odd, so that rounding them again to fewer bits is rounding once."""
    raw = values.view(f"i{values.itemsize}").copy()
    inexact = (error != 0) & np.isfinite(values) & np.isfinite(error) & (raw & 1 == 0)
    raw += (np.where((error > 0) == (values > 0), 1, -1) * inexact).astype(raw.dtype)
    return raw.view(values.dtype)


def _single_to_odd(values: Array) -> Array:
    if values.dtype != np.float64:
        return np.ascontiguousarray(values.astype("f4", copy=False))
    single = values.astype("f4")
    return to_odd(single, values - single)
