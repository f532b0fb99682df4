"""The arithmetic instructions of PTX: one NumPy function each, over the values of many threads."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .floats import Compute, Operation, float_arithmetic, float_extremum, float_operation, flush, signs
from .integers import INTEGERS, counted, field, funnel, integer, look_up, permute, product, shift
from .values import KINDS, Array, bits_of, encode, storage


def operation(name: str) -> Operation | None:
    """Return what an instruction such as `fma.rn.f32` computes, None if it is not known with all its modifiers."""
    for pattern, build in _TABLE:
        if match := pattern.fullmatch(name):
            return build(match)
    return None


_COMPARE: dict[str, Compute] = {
    **dict.fromkeys(("eq", "equ"), np.equal),
    **dict.fromkeys(("ne", "neu"), np.not_equal),
    **dict.fromkeys(("lt", "lo", "ltu"), np.less),
    **dict.fromkeys(("le", "ls", "leu"), np.less_equal),
    **dict.fromkeys(("gt", "hi", "gtu"), np.greater),
    **dict.fromkeys(("ge", "hs", "geu"), np.greater_equal),
}


def _comparison(match: re.Match[str]) -> Operation | None:
    name, type_ = match["name"], match["t"]
    of_floats = "f" in type_
    if not of_floats and name not in {"b": ("eq", "ne"), "s": ("eq", "ne", "lt", "le", "gt", "ge")}.get(
        type_[0], ("eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs")
    ):
        return None
    if of_floats and name in ("lo", "ls", "hi", "hs"):
        return None

    def compute(a: Array, b: Array, *other: Array) -> Array:
        if match["ftz"]:
            a, b = flush(a), flush(b)
        either = np.isnan(a) | np.isnan(b) if of_floats else np.zeros(len(a), bool)
        if name in ("num", "nan"):
            out = either == (name == "nan")
        elif len(name) == 3:  # true also if unordered
            out = _COMPARE[name](a, b) | either
        else:
            out = _COMPARE[name](a, b) & ~either
        return INTEGERS[match["with"]](out, *other) if other else out

    return Operation("pred", (type_, type_, *(["pred"] if match["with"] else [])), compute)


def _choice(match: re.Match[str]) -> Operation:
    raw = f"b{bits_of(match['t'])}"
    if match["name"] == "selp":
        return Operation(raw, (raw, raw, "pred"), lambda a, b, which: np.where(which, a, b))
    return Operation(raw, (raw, raw, match["by"]), lambda a, b, by: np.where(by >= 0, a, b))


_ROUND: dict[str, Compute] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def _conversion(match: re.Match[str]) -> Operation | None:
    rounding, sat, to, of = match["round"], bool(match["sat"]), match["to"], match["of"]
    narrower = bits_of(to) < bits_of(of) or (to != of and bits_of(to) == bits_of(of))
    compute: Compute
    if "f" not in to and "f" not in of:
        if rounding or match["ftz"]:
            return None
        return Operation(to, (of,), lambda a: (_saturate(a, to) if sat else a).astype(_dtype(to)))
    if "f" not in to:
        if rounding not in _ROUND:
            return None
        to_integer = _ROUND[rounding]
        return float_operation(lambda a: _clamp(to_integer(a.astype("f8")), to, of), to, (of,), bool(match["ftz"]))
    if "f" not in of:
        if rounding != "rn" or (to == "bf16" and bits_of(of) == 64):
            return None
        compute = lambda a: a.astype("f8" if to in ("f16", "bf16", "f64") else "f4")  # noqa: E731
    elif rounding in _ROUND and to == of:
        compute = _ROUND[rounding]
    elif rounding == ("rn" if narrower else None):
        compute = lambda a: a  # noqa: E731
    else:
        return None
    return float_operation(compute, to, (of,), bool(match["ftz"]), sat)


def _dtype(type_: str) -> np.dtype[Any]:
    return np.dtype(f"{KINDS[type_[0]]}{bits_of(type_) // 8}")


def _saturate(a: Array, to: str) -> Array:
    limits = np.iinfo(_dtype(to))
    own = np.iinfo(a.dtype)
    return np.clip(a, max(limits.min, own.min), min(limits.max, own.max))


def _clamp(a: Array, to: str, of: str) -> Array:
    """Turn whole floats into integers: what is out of range becomes the limit next to it."""
    limits = np.iinfo(_dtype(to))
    out = np.where((a > limits.min) & (a < float(limits.max)), a, 0).astype(_dtype(to))
    out = np.where(a >= float(limits.max), out.dtype.type(limits.max), out)
    out = np.where(a <= limits.min, out.dtype.type(limits.min), out)
    nan = 1 << bits_of(to) - 1 if of == "f64" or bits_of(to) == 64 else 0
    return np.where(np.isnan(a), np.array(nan, storage(bits_of(to))).view(out.dtype), out)


def _packed(match: re.Match[str]) -> Operation:
    half = match["half"]

    def compute(high: Array, low: Array) -> Array:
        return encode(half, high).astype("u4") << 16 | encode(half, low)

    return Operation("b32", ("f32", "f32"), compute)


_F = "(?P<t>f16x2|bf16x2|f16|bf16|f32x2|f32|f64)"
_FTZ = r"(?P<ftz>\.ftz)?"
_SAT = r"(?P<sat>\.sat)?"
_I = "(?P<t>[us](?:16|32|64))"
_ANY = "(?:[us](?:8|16|32|64)|f16|bf16|f32|f64)"
_TABLE: list[tuple[re.Pattern[str], Callable[[re.Match[str]], Operation | None]]] = [
    (re.compile(pattern), build)
    for pattern, build in (
        (rf"(?P<name>add|sub|mul)(?:\.rn)?{_FTZ}{_SAT}\.{_F}", float_arithmetic),
        (rf"(?P<name>fma)\.rn{_FTZ}{_SAT}\.{_F}", float_arithmetic),
        (rf"(?P<name>div)\.(?:rn|full|approx){_FTZ}\.(?P<t>f32)", float_arithmetic),
        (rf"(?P<name>sqrt|rcp)\.(?:rn|approx){_FTZ}\.(?P<t>f32)", float_arithmetic),
        (r"(?P<name>div|sqrt|rcp)\.rn(?P<ftz>)\.(?P<t>f64)", float_arithmetic),
        (rf"(?P<name>rsqrt|ex2|lg2|sin|cos)\.approx{_FTZ}\.(?P<t>f32)", float_arithmetic),
        (rf"(?P<name>ex2|tanh)\.approx{_FTZ}\.(?P<t>f16x2|bf16x2|f16|bf16)", float_arithmetic),
        (r"(?P<name>tanh)\.approx(?P<ftz>)\.(?P<t>f32)", float_arithmetic),
        (rf"(?P<name>min|max){_FTZ}(?P<nan>\.NaN)?\.{_F}", float_extremum),
        (rf"(?P<name>abs|neg|copysign)\.{_F}", signs),
        (rf"(?P<name>mul|mad)\.(?P<part>lo|hi)\.{_I}", product),
        (r"(?P<name>mul|mad)\.(?P<part>wide)\.(?P<t>[us](?:16|32))", product),
        (rf"(?P<name>add|sub|div|rem|min|max)\.{_I}", integer),
        (r"(?P<name>abs|neg)\.(?P<t>s(?:16|32|64))", integer),
        (r"(?P<name>and|or|xor|not)\.(?P<t>pred|b16|b32|b64)", integer),
        (r"(?P<name>shl)\.(?P<t>b(?:16|32|64))", shift),
        (r"(?P<name>shr)\.(?P<t>[bus](?:16|32|64))", shift),
        (r"shf\.(?P<way>l|r)\.(?P<mode>wrap|clamp)\.b32", funnel),
        (r"(?P<name>bfe)\.(?P<t>[us](?:32|64))", field),
        (r"(?P<name>bfi)\.(?P<t>b(?:32|64))", field),
        (r"prmt\.b32", lambda _: Operation("b32", ("b32",) * 3, permute)),
        (r"lop3\.b32", lambda _: Operation("b32", ("b32",) * 4, look_up)),
        (r"(?P<name>clz|popc|brev)\.(?P<t>b(?:32|64))", counted),
        (
            r"setp\.(?P<name>eq|ne|[lg][te]|lo|ls|hi|hs|equ|neu|[lg][te]u|num|nan)(?:\.(?P<with>and|or|xor))?"
            rf"{_FTZ}\.(?P<t>[bus](?:16|32|64)|f16|bf16|f32|f64)",
            _comparison,
        ),
        (r"(?P<name>selp)\.(?P<t>[busf](?:16|32|64))", _choice),
        (r"(?P<name>slct)\.(?P<t>[busf](?:16|32|64))\.(?P<by>s32|f32)", _choice),
        (rf"cvt(?:\.(?P<round>\w\wi|rn))?{_FTZ}{_SAT}\.(?P<to>{_ANY})\.(?P<of>{_ANY})", _conversion),
        (r"cvt\.rn\.(?P<half>f16|bf16)x2\.f32", _packed),
    )
]
