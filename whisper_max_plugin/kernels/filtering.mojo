"""How attention is filtered before words' times are read from it: standardized over tokens, medians along frames."""

from std.math import sqrt
from std.utils.numerics import isnan, nan

from .vectors import Float

comptime TAPS = 7  # values that a median is of: upstream's ``medfilt_width``
comptime MARGIN = TAPS // 2


@always_inline
def standardize_columns[
    width: Int
](y: Pointer[mut=True, Float, ...], x: Pointer[Float, ...], n_rows: Int, stride: Int):
    """Write the values of `width` columns less their mean, in units of their standard deviation."""
    comptime Values = SIMD[DType.float32, width]
    var total = Values(0)
    for row in range(n_rows):
        total += x.unsafe_load[width=width](row * stride)
    var mean = total / Float(n_rows)
    var squares = Values(0)
    for row in range(n_rows):
        var difference = x.unsafe_load[width=width](row * stride) - mean
        squares = difference.fma(difference, squares)
    var deviation = sqrt(squares / Float(n_rows))
    for row in range(n_rows):
        y.unsafe_store(row * stride, (x.unsafe_load[width=width](row * stride) - mean) / deviation)


@always_inline
def median[width: Int](var neighbours: Array[SIMD[DType.float32, width], TAPS]) -> SIMD[DType.float32, width]:
    """Return what is largest when the largest half has been taken away; NaN where the one in the middle is."""
    var is_unknown = isnan(neighbours[MARGIN])
    comptime for round in range(MARGIN):
        comptime for i in range(1, TAPS - round):
            var value = neighbours[i]
            neighbours[i] = min(neighbours[0], value)
            neighbours[0] = max(neighbours[0], value)
        neighbours[0] = neighbours[TAPS - 1 - round]
    comptime for i in range(1, TAPS - MARGIN):
        neighbours[0] = max(neighbours[0], neighbours[i])
    return is_unknown.select(SIMD[DType.float32, width](nan[DType.float32]()), neighbours[0])


@always_inline
def reflected(frame: Int, n_frames: Int) -> Int:
    """Return the frame that stands for one beyond the first or the last."""
    if frame < 0:
        return -frame
    return frame if frame < n_frames else 2 * (n_frames - 1) - frame
