"""Vectors of float32, as wide as a register of the CPU."""

from std.bit import log2_floor
from std.sys import simd_width_of

comptime WIDTH = simd_width_of[DType.float32]()
comptime Floats = SIMD[DType.float32, WIDTH]


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
