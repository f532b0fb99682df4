"""Linear layers of few rows on a GPU: a warp reads rows of weights once, as they are stored, for up to eight rows of x."""

from max.gpu import WARP_SIZE, block_idx, lane_id, thread_idx
from max.gpu.host import DeviceContext
from max.gpu.primitives import warp
from std.math import ceildiv

from .vectors import gelu

comptime LOAD = 8  # weights that a lane reads at once: 16 bytes of float16
comptime WARPS = 4  # in a block


@always_inline
def linear_warp[
    type: DType,
    of_x: DType,
    out: DType,
    //,
    rows: Int,
    outputs: Int,
    has_bias: Bool,
    has_residual: Bool,
    has_gelu: Bool,
](
    y: Pointer[mut=True, Scalar[out], ...],
    x: Pointer[Scalar[of_x], ...],
    w: Pointer[Scalar[type], ...],
    bias: Pointer[Scalar[DType.float32], ...],
    residual: Pointer[Scalar[DType.float32], ...],
    m: Int,
    n: Int,
    k: Int,
):
    """Compute a warp's `outputs` columns of y (m, n) = x (m, k) @ w (n, k).T [+ bias] [then GELU] [+ residual].

    m is at most `rows`, k a multiple of `LOAD`. Rows and columns that there are not are computed as copies of the last.
    """
    var first = (Int(block_idx.x) * WARPS + Int(thread_idx.x) // WARP_SIZE) * outputs
    if first >= n:
        return
    var lane = Int(lane_id())
    comptime Floats = SIMD[DType.float32, LOAD]
    var sums = Array[Floats, rows * outputs](fill=Floats(0))
    for j in range(lane * LOAD, k, WARP_SIZE * LOAD):
        var xs = Array[Floats, rows](fill=Floats(0))
        comptime for r in range(rows):
            xs[r] = x.unsafe_load[width=LOAD, alignment=16](min(r, m - 1) * k + j).cast[DType.float32]()
        comptime for o in range(outputs):
            var ws = w.unsafe_load[width=LOAD, alignment=16](min(first + o, n - 1) * k + j).cast[DType.float32]()
            comptime for r in range(rows):
                sums[r * outputs + o] = ws.fma(xs[r], sums[r * outputs + o])

    comptime for r in range(rows):
        comptime for o in range(outputs):
            var value = warp.sum(sums[r * outputs + o].reduce_add())
            if lane == 0 and r < m and first + o < n:
                comptime if has_bias:
                    value += bias[unsafe_offset = first + o]
                comptime if has_gelu:
                    value = gelu[1](value)
                comptime if has_residual:
                    value += residual[unsafe_offset = r * n + first + o]
                y[unsafe_offset = r * n + first + o] = value.cast[out]()


@always_inline
def linear_on_gpu[
    type: DType, of_x: DType, out: DType, //, has_bias: Bool, has_residual: Bool, has_gelu: Bool
](
    y: Pointer[mut=True, Scalar[out], ...],
    x: Pointer[Scalar[of_x], ...],
    w: Pointer[Scalar[type], ...],
    bias: Pointer[Scalar[DType.float32], ...],
    residual: Pointer[Scalar[DType.float32], ...],
    m: Int,
    n: Int,
    k: Int,
    ctx: DeviceContext,
) raises:
    """Launch `linear_warp` for any number of rows."""
    var row = 0
    while row < m:
        var taken = min(8, m - row)
        comptime for rows in [1, 5, 8]:
            comptime least = 1 if rows == 1 else (2 if rows == 5 else 6)
            if least <= taken and taken <= rows:
                comptime outputs = 1 if rows == 1 else 2  # so that x is read less often
                var y_ = y.unsafe_offset(row * n)
                var x_ = x.unsafe_offset(row * k)
                var residual_ = residual.unsafe_offset(row * n if has_residual else 0)
                var m_ = Int32(taken)
                var n_ = Int32(n)
                var k_ = Int32(k)

                def kernel() {var}:
                    linear_warp[rows, outputs, has_bias, has_residual, has_gelu](
                        y_, x_, w, bias, residual_, Int(m_), Int(n_), Int(k_)
                    )

                ctx.enqueue_function(kernel, grid_dim=ceildiv(n, WARPS * outputs), block_dim=WARPS * WARP_SIZE)
        row += taken
