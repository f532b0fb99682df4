"""Linear layers of few rows on the tensor cores of a GPU: up to eight rows of x take the instructions of one.

A product m16n8k16 is of 16 rows of weights and 8 rows of x. Which values of a row meet at which place of its depth makes no
difference, as long as those of w and x are the same; so each lane multiplies what it reads with one load, eight values side by
side, and weights go from global memory to the tensor cores as they are stored.
"""

from max.gpu import WARP_SIZE, barrier, block_idx, lane_id, thread_idx
from max.gpu.host import DeviceContext
from max.gpu.memory import AddressSpace
from max.gpu.primitives import warp
from std.math import ceildiv, rsqrt
from std.memory import stack_allocation

from .gpu_overlap import changing, early, wait_for_last
from .gpu_tensor import CHUNK, Sums, add_product
from .vectors import EPSILON, Float, gelu

comptime ROWS = 8  # of x
comptime OUTPUTS = 16  # of a block
comptime WARPS = 8  # of a block, that share the depth
comptime THREADS = WARPS * WARP_SIZE
comptime STEP = 4 * CHUNK  # of the depth, that a warp multiplies at a time
comptime AHEAD = 5  # steps of a warp, whose weights are on their way


@always_inline
def tensor_linear_block[
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
):
    """Compute `OUTPUTS` columns of what `linear_warp` computes, of m <= `ROWS` rows; k is a multiple of `STEP`.

    x, or its layer norm, is rounded to the type of w.
    """
    comptime Values = SIMD[type, CHUNK]
    comptime Floats = SIMD[DType.float32, CHUNK]
    var thread = Int(thread_idx.x)
    var lane = Int(lane_id())
    var row = lane // 4  # of x, and of the first eight of w
    var part = lane % 4 * CHUNK  # of a step
    var first = Int(block_idx.x) * OUTPUTS
    var begin = thread // WARP_SIZE * STEP  # of the depth, in which the warps take turns
    comptime stride = WARPS * STEP

    @always_inline
    def weights(half: Int, depth: Int) {imm} -> Values:
        if depth < k:
            var output = min(first + half * 8 + row, n - 1)
            return changing(w).unsafe_load[width=CHUNK, alignment=16](output * k + depth + part)
        return Values(0)

    var coming = Array[Values, AHEAD * 2](fill=Values(0))
    comptime for a in range(AHEAD):
        comptime for half in range(2):
            coming[2 * a + half] = weights(half, begin + a * stride)
    comptime if overlaps:
        wait_for_last()

    @always_inline
    def load(depth: Int) {imm} -> Floats:
        """Return what is there of the lane's row of x, zeros if there is none."""
        if row < m and depth < k:
            var at = row * k + depth + part
            return changing(x).unsafe_load[width=CHUNK, alignment=16](at).cast[DType.float32]()
        return Floats(0)

    var mean = Float(0)
    var scale = Float(1)
    comptime if has_norm:
        var of_warps = stack_allocation[2 * WARPS * ROWS, Float, address_space=AddressSpace.SHARED]()

        @always_inline
        def sum_of_row[which: Int](of_lane: Float) {imm} -> Float:
            """Return the sum over all lanes, of all warps, that have parts of this row."""
            var of_warp = warp.lane_group_sum[num_lanes=4](of_lane)
            if lane % 4 == 0:
                of_warps[unsafe_offset = (which * WARPS + thread // WARP_SIZE) * ROWS + row] = of_warp
            barrier()
            var sum = Float(0)
            comptime for i in range(WARPS):
                sum += of_warps[unsafe_offset = (which * WARPS + i) * ROWS + row]
            return sum

        var total = Float(0)
        for depth in range(begin, k, stride):
            total += load(depth).reduce_add()
        mean = sum_of_row[0](total) / Float(k)
        var squares = Float(0)
        for depth in range(begin, k, stride):
            var difference = load(depth) - mean
            squares += (difference * difference).reduce_add()
        scale = rsqrt(sum_of_row[1](squares) / Float(k) + EPSILON)

    var sums = Array[Sums, 2](fill=Sums(0))  # that do not wait for each other
    for depths in range(begin, k, AHEAD * stride):
        comptime for a in range(AHEAD):
            var depth = depths + a * stride
            var xs = load(depth)
            comptime if has_norm:
                var at = min(depth, k - STEP) + part  # behind the end weights are zero
                var factors = norm.unsafe_load[width=CHUNK, alignment=16](at)
                xs = ((xs - mean) * scale).fma(factors, norm_bias.unsafe_load[width=CHUNK, alignment=16](at))
            var rights = xs.cast[type]()
            var upper = coming[2 * a]
            var lower = coming[2 * a + 1]
            comptime for half in range(2):
                coming[2 * a + half] = weights(half, depth + AHEAD * stride)
            comptime for i in range(2):
                var ups = upper.slice[4, offset = 4 * i]()
                var lows = lower.slice[4, offset = 4 * i]()
                var near = ups.slice[2]().join(lows.slice[2]())
                var far = ups.slice[2, offset=2]().join(lows.slice[2, offset=2]())
                add_product(sums[i], near.join(far), rights.slice[4, offset = 4 * i]())

    # Of a lane's sums two are of output lane // 4 and two of the one 8 further on, for two rows of x.
    var shared = stack_allocation[WARPS * OUTPUTS * ROWS, Float, address_space=AddressSpace.SHARED]()
    var of_all = sums[0] + sums[1]
    comptime for i in range(4):
        var at = (i // 2 * 8 + row) * ROWS + lane % 4 * 2 + i % 2
        shared[unsafe_offset = thread // WARP_SIZE * OUTPUTS * ROWS + at] = of_all[i]
    barrier()
    if thread < OUTPUTS * ROWS:
        var r = thread // OUTPUTS
        var column = first + thread % OUTPUTS
        if r < m and column < n:
            var value = Float(0)
            comptime for i in range(WARPS):
                value += shared[unsafe_offset = (i * OUTPUTS + thread % OUTPUTS) * ROWS + r]
            comptime if has_bias:
                value += bias[unsafe_offset=column]
            comptime if has_gelu:
                value = gelu[1](value)
            comptime if has_residual:
                value += changing(residual)[unsafe_offset = r * n + column]
            y[unsafe_offset = r * n + column] = value.cast[out]()


@always_inline
def tensor_linear_on_gpu[
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
    """Launch `tensor_linear_block` for any number of rows.

    Raises if the depth is not a whole number of steps.
    """
    if k % STEP != 0:
        raise Error("a linear layer's rows are not a multiple of 32 values")
    for row in range(0, m, ROWS):
        var y_ = y.unsafe_offset(row * n)
        var x_ = x.unsafe_offset(row * k)
        var residual_ = residual.unsafe_offset(row * n if has_residual else 0)
        var m_ = Int32(min(ROWS, m - row))
        var n_ = Int32(n)
        var k_ = Int32(k)

        def kernel() {var}:
            tensor_linear_block[has_norm, has_bias, has_residual, has_gelu, overlaps](
                y_, x_, norm, norm_bias, w, bias, residual_, Int(m_), Int(n_), Int(k_)
            )

        ctx.enqueue_function(
            kernel, grid_dim=ceildiv(n, OUTPUTS), block_dim=THREADS, attributes=early[overlaps]()
        )
