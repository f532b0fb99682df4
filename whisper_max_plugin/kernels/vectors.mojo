"""Vectors of float32, as wide as a register of the CPU, and where they are read from and written to.

Functions of `Numbers` and `Results`, whose origins are open, are compiled once, whoever calls them.
"""

from std.bit import log2_floor
from std.math import erf
from std.sys import PrefetchOptions, prefetch, simd_width_of, size_of

comptime Float = Scalar[DType.float32]
comptime WIDTH = simd_width_of[DType.float32]()
comptime Floats = SIMD[DType.float32, WIDTH]
comptime Numbers[type: DType = DType.float32] = Pointer[mut=False, Scalar[type], UntrackedOrigin[mut=False]]
comptime Results[type: DType = DType.float32] = Pointer[mut=True, Scalar[type], UntrackedOrigin[mut=True]]

comptime EPSILON = 1e-5  # of a layer norm
comptime LINE = 64  # bytes that memory is read by
comptime AHEAD = 6 * 1024  # bytes between what is read and what is fetched: what a core reads while memory answers


@always_inline
def fetch[count: Int, type: DType](p: Pointer[Scalar[type], ...]):
    """Fetch `count` values into the second cache.

    The first cache waits for a few lines at a time, fewer than memory could bring; and where several rows are read side
    by side, no processor sees by itself what comes next.
    """
    comptime for i in range(0, count, LINE // size_of[type]()):
        prefetch[PrefetchOptions().for_read().medium_locality().to_data_cache()](p.unsafe_offset(i))


@always_inline
def numbers[type: DType, //](p: Pointer[Scalar[type], ...]) -> Numbers[type]:
    """Return a pointer of open origin: what it points to has to outlive its use."""
    return Numbers[type](unsafe_from_address=Int(p))


@always_inline
def results[type: DType, //](p: Pointer[mut=True, Scalar[type], ...]) -> Results[type]:
    """Return a pointer of open origin: what it points to has to outlive its use."""
    return Results[type](unsafe_from_address=Int(p))


@always_inline
def unread[type: DType = DType.float32](p: Pointer[...]) -> Numbers[type]:
    """Return what stands for operands that nothing reads here."""
    return Numbers[type](unsafe_from_address=Int(p))


@fieldwise_init
struct Finish(TrivialRegisterPassable):
    """What is done to the products of a linear layer: a bias is added, then GELU, then a residual is added."""

    var bias: Numbers[]
    var residual: Numbers[]
    var has_bias: Bool
    var has_gelu: Bool
    var has_residual: Bool


@always_inline
def gelu[width: Int](x: SIMD[DType.float32, width]) -> SIMD[DType.float32, width]:
    """Return the GELU of x, by the error function."""
    return 0.5 * x * (1 + erf(x * 0.7071067811865476))


@always_inline
def sum_each[count: Int, size: Int](vectors: Array[Floats, size], first: Int) -> SIMD[DType.float32, count]:
    """Return the sums over `count` vectors from `first` on; a power of two, at most `WIDTH`.

    Two vectors become one, which holds halves of both sums, and so on: a third of the work of summing up each.
    """
    comptime assert count <= WIDTH, "there are more sums than lanes"
    var parts = Array[Floats, count](fill=Floats(0))
    comptime for i in range(count):
        parts[i] = vectors[first + i]
    comptime for level in range(log2_floor(count)):
        comptime left = count >> (level + 1)
        comptime for i in range(left):
            var pair = parts[i].interleave(parts[i + left])
            parts[i] = pair.slice[WIDTH]() + pair.slice[WIDTH, offset=WIDTH]()
    return parts[0].reduce_add[size_out=count]()
