"""The instructions of tensor cores, which whole warps execute: products of small matrices, and loads of their factors.

A matrix lies spread over the registers of a warp, as "Matrix fragments for mma.m16n8k16 with floating point type" of
the PTX ISA says. Products of elements are exact and summed up in float64, which is rounded to float32 once. Hardware
sums up in an order of its own and cuts bits off, so a GPU differs from this within the noise of float32.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from .machine import Act, Machine
from .operands import Operands
from .text import split
from .values import Array, decode, encode

Run = Callable[[Machine, Act], None]

_PRODUCT = re.compile(
    r"mma\.sync\.aligned\.m16n8k(?P<k>8|16)\.row\.col\.f32\.(?:(?P<t>f16)\.f16|(?P<t2>bf16)\.bf16)\.f32"
)
_LOAD = re.compile(r"ldmatrix\.sync\.aligned\.m8n8\.x(?P<n>[124])(?P<trans>\.trans)?\.shared(?:::cta)?\.b16")
_GROUP, _MEMBER = np.divmod(np.arange(32), 4)  # of each 8 by 8, a group of lanes has a row, a member two neighbours


def tensor_core(name: str, written: list[str], operands: Operands) -> Run | None:
    """Return what an instruction does for whole warps, None if it is none of tensor cores."""
    if match := _PRODUCT.fullmatch(name):
        return _product(match["t"] or match["t2"], int(match["k"]), written, operands)
    if match := _LOAD.fullmatch(name):
        return _load(int(match["n"]), bool(match["trans"]), written, operands)
    return None


def _registers(written: str, count: int) -> list[str]:
    parts = split(written.strip("{}"))
    if len(parts) != count:
        raise ValueError(f"expected {count} registers")
    return parts


def _places(corners: list[tuple[int, int]], columns: int, transposed: bool = False) -> Array:
    """Return where the elements of all lanes lie in a matrix, which consists of 8 by 8 with their corners there."""
    rows, pairs = _GROUP[:, None] + np.zeros(2, int), 2 * _MEMBER[:, None] + np.arange(2)
    if transposed:
        rows, pairs = pairs, rows
    return np.stack([(row + rows) * columns + column + pairs for row, column in corners], 1).ravel()


def _product(type_: str, k: int, written: list[str], operands: Operands) -> Run:
    """Return `mma`: D (16, 8) = A (16, k) B (k, 8) + C."""
    if len(written) != 4:
        raise ValueError("unknown operands")
    corners = [(row, column) for column in range(0, k, 8) for row in (0, 8)]
    a_places = _places(corners, k)
    b_places = _places([(row, 0) for row in range(0, k, 8)], 8, transposed=True)
    sum_places = _places([(0, 0), (8, 0)], 8)
    writes = [operands.target(each, "f32") for each in _registers(written[0], 4)]
    a_values = [operands.value(each, "b32") for each in _registers(written[1], k // 4)]
    b_values = [operands.value(each, "b32") for each in _registers(written[2], k // 8)]
    c_values = [operands.value(each, "f32") for each in _registers(written[3], 4)]

    def run(m: Machine, act: Act) -> None:
        m.check_whole_warps(act)

        def matrix(values: list[Callable[[Machine, Act], Array]], type_: str, places: Array, columns: int) -> Array:
            fragments = decode(type_, np.stack([value(m, act) for value in values], 1)).reshape(-1, len(places))
            out = np.empty(fragments.shape)
            out[:, places] = fragments
            return out.reshape(len(out), -1, columns)

        a, b = matrix(a_values, type_, a_places, k), matrix(b_values, type_, b_places, 8)
        total = np.matmul(a, b) + matrix(c_values, "f32", sum_places, 8)
        d = encode("f32", total.reshape(len(total), -1)[:, sum_places].reshape(-1, 4))
        for i, write in enumerate(writes):
            write(m, act, d[:, i])

    return run


def _load(count: int, transposed: bool, written: list[str], operands: Operands) -> Run:
    """Return `ldmatrix`: lane i of the first 8, 16 or 32 has the address of row i % 8 of matrix i // 8."""
    places = _places([(0, 0)], 8, transposed)
    writes = [operands.target(each, "b32") for each in _registers(written[0], count)]
    address = operands.address(written[1])

    def run(m: Machine, act: Act) -> None:
        m.check_whole_warps(act)
        rows = np.flatnonzero(m.numbers[act] % 32 < 8 * count)
        threads = m.threads(act).chosen(rows)
        for place, at, _ in m.memory.resolve("shared", address(m, act)[rows], 16, threads):
            matrices = place.load_bytes(at, 16, threads).view("u2").reshape(-1, count, 64)
            for i, write in enumerate(writes):
                write(m, act, matrices[:, i, places].reshape(-1, 2).view("u4")[:, 0])

    return run
