"""Linear layers of few rows on a GPU: a warp reads rows of weights once, as they are stored, for up to eight rows of x."""

from max.gpu import WARP_SIZE, barrier, block_idx, lane_id, thread_idx
from max.gpu.host import DeviceContext
from max.gpu.memory import AddressSpace
from max.gpu.primitives import warp
from std.math import ceildiv, rsqrt
from std.memory import stack_allocation

from .gpu_overlap import changing, early, wait_for_last
from .vectors import EPSILON, Float, gelu

comptime LOAD = 8  # weights that a lane reads at once: 16 bytes of float16
comptime OF_WARP = WARP_SIZE * LOAD  # and those of a warp
comptime WARPS = 4  # in a block
comptime PARTS = 2  # sums of a lane for one product, that do not wait for each other


@always_inline
def linear_warp[
    type: DType,
    of_x: DType,
    out: DType,
    //,
    rows: Int,
    outputs: Int,
    has_norm: Bool,
    has_bias: Bool,
    has_residual: Bool,
    has_gelu: Bool,
    overlaps: Bool,
](
    y: Pointer[mut=True, Scalar[out], ...],
    x: Pointer[mut=False, Scalar[of_x], ...],
    norm: Pointer[mut=False, Float, ...],
    norm_bias: Pointer[mut=False, Float, ...],
    w: Pointer[mut=False, Scalar[type], ...],
    bias: Pointer[mut=False, Float, ...],
    residual: Pointer[mut=False, Float, ...],
    m: Int,
    n: Int,
    k: Int,
):
    """Compute a warp's `outputs` columns of y (m, n) = x (m, k) @ w (n, k).T [+ bias] [then GELU] [+ residual].

    With `has_norm` x is the layer norm of what lies there, with weights `norm` and `norm_bias` (k). m is at most `rows`, k a
    multiple of `LOAD`. Rows and columns that there are not are computed as copies of the last. With `overlaps` it begins
    before the kernel has ended that writes x and residual.
    """
    comptime ahead = 5 if rows == 1 else 3  # loads of a row of weights that are on their way
    comptime Weights = SIMD[type, LOAD]
    comptime Floats = SIMD[DType.float32, LOAD]
    comptime Sums = SIMD[DType.float32, PARTS]
    var warp_index = Int(thread_idx.x) // WARP_SIZE
    var first = (Int(block_idx.x) * WARPS + warp_index) * outputs
    var lane = Int(lane_id()) * LOAD

    @always_inline
    def weights(output: Int, j: Int) {imm} -> Weights:
        if j < k:
            return changing(w).unsafe_load[width=LOAD, alignment=16](min(first + output, n - 1) * k + j)
        return Weights(0)

    var coming = Array[Weights, ahead * outputs](fill=Weights(0))
    comptime for a in range(ahead):
        comptime for o in range(outputs):
            coming[a * outputs + o] = weights(o, a * OF_WARP + lane)
    comptime if overlaps:
        wait_for_last()

    @always_inline
    def load(row: Int, j: Int) {imm} -> Floats:
        return changing(x).unsafe_load[width=LOAD, alignment=16](min(row, m - 1) * k + j).cast[DType.float32]()

    var means = Array[Float, rows](fill=0)
    var scales = Array[Float, rows](fill=1)
    comptime if has_norm:  # of each row one warp finds out for all
        var found = stack_allocation[2 * rows, Float, address_space=AddressSpace.SHARED]()
        comptime for r in range(rows):
            if warp_index == r % WARPS:
                var total = Float(0)
                for j in range(lane, k, OF_WARP):
                    total += load(r, j).reduce_add()
                var mean = warp.sum(total) / Float(k)
                var squares = Float(0)
                for j in range(lane, k, OF_WARP):
                    var difference = load(r, j) - mean
                    squares += (difference * difference).reduce_add()
                var scale = rsqrt(warp.sum(squares) / Float(k) + EPSILON)
                if lane == 0:
                    found[unsafe_offset = 2 * r] = mean
                    found[unsafe_offset = 2 * r + 1] = scale
        barrier()
        comptime for r in range(rows):
            means[r] = found[unsafe_offset = 2 * r]
            scales[r] = found[unsafe_offset = 2 * r + 1]

    var sums = Array[Sums, rows * outputs](fill=Sums(0))
    for begin in range(0, k, ahead * OF_WARP):
        comptime for a in range(ahead):
            var j = min(begin + a * OF_WARP + lane, k - LOAD)  # behind the end weights are zero
            var xs = Array[Floats, rows](fill=Floats(0))
            comptime for r in range(rows):
                xs[r] = load(r, j)
            comptime if has_norm:
                var factors = norm.unsafe_load[width=LOAD, alignment=16](j)
                var terms = norm_bias.unsafe_load[width=LOAD, alignment=16](j)
                comptime for r in range(rows):
                    xs[r] = ((xs[r] - means[r]) * scales[r]).fma(factors, terms)
            comptime for o in range(outputs):
                var ws = coming[a * outputs + o].cast[DType.float32]()
                coming[a * outputs + o] = weights(o, begin + (a + ahead) * OF_WARP + lane)
                comptime for r in range(rows):
                    comptime for i in range(0, LOAD, PARTS):
                        comptime at = r * outputs + o
                        sums[at] = ws.slice[PARTS, offset=i]().fma(xs[r].slice[PARTS, offset=i](), sums[at])

    comptime for r in range(rows):
        comptime for o in range(outputs):
            var value = warp.sum(sums[r * outputs + o].reduce_add())
            if lane == 0 and r < m and first + o < n:
                comptime if has_bias:
                    value += bias[unsafe_offset = first + o]
                comptime if has_gelu:
                    value = gelu[1](value)
                comptime if has_residual:
                    value += changing(residual)[unsafe_offset = r * n + first + o]
                y[unsafe_offset = r * n + first + o] = value.cast[out]()


@always_inline
def linear_on_gpu[
    type: DType,
    of_x: DType,
    out: DType,
    //,
    has_norm: Bool,
    has_bias: Bool,
    has_residual: Bool,
    has_gelu: Bool,
    overlaps: Bool,
](
    y: Pointer[mut=True, Scalar[out], ...],
    x: Pointer[mut=False, Scalar[of_x], ...],
    norm: Pointer[mut=False, Float, ...],
    norm_bias: Pointer[mut=False, Float, ...],
    w: Pointer[mut=False, Scalar[type], ...],
    bias: Pointer[mut=False, Float, ...],
    residual: Pointer[mut=False, Float, ...],
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
                    linear_warp[rows, outputs, has_norm, has_bias, has_residual, has_gelu, overlaps](
                        y_, x_, norm, norm_bias, w, bias, residual_, Int(m_), Int(n_), Int(k_)
                    )

                ctx.enqueue_function(
                    kernel,
                    grid_dim=ceildiv(n, WARPS * outputs),
                    block_dim=WARPS * WARP_SIZE,
                    attributes=early[overlaps](),
                )
        row += taken
