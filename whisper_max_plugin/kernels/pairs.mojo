"""Pairs of bfloat16, which some CPUs multiply and add up in one instruction: twice the products of float32.

A vector of as many pairs as `Floats` has lanes is kept as `Floats`, so that what moves vectors moves pairs as well.
"""

from std.memory import bitcast
from std.sys import CompilationTarget
from std.sys.intrinsics import llvm_intrinsic

from .vectors import Floats, WIDTH

comptime Halves = SIMD[DType.bfloat16, 2 * WIDTH]
comptime HAS_PAIRS = has_pairs()


def has_pairs() -> Bool:
    """Tell whether the CPU has the instruction, VDPBF16PS of AVX512."""
    comptime if CompilationTarget.is_x86():
        return CompilationTarget._has_feature["avx512bf16"]()
    return False


@always_inline
def multiply_add[pairs: Bool](a: Floats, b: Floats, sums: Floats) -> Floats:
    """Return a * b + sums; of pairs, both products are added."""
    comptime if pairs:
        return llvm_intrinsic["llvm.x86.avx512bf16.dpbf16ps.512", Floats, has_side_effect=False](
            sums, bitcast[DType.bfloat16, 2 * WIDTH](a), bitcast[DType.bfloat16, 2 * WIDTH](b)
        )
    return a.fma(b, sums)


@always_inline
def as_pairs[type: DType](values: SIMD[type, 2 * WIDTH]) -> Floats:
    """Return neighbouring values as pairs, rounded to bfloat16."""
    return bitcast[DType.float32, WIDTH](values.cast[DType.bfloat16]())


@always_inline
def paired[type: DType](first: SIMD[type, WIDTH], second: SIMD[type, WIDTH]) -> Floats:
    """Return pairs of one value each of two vectors, rounded to bfloat16."""
    return as_pairs(first.interleave(second))
