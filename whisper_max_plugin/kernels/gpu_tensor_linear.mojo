"""Linear layers of few rows on the tensor cores of a GPU: up to eight rows of x take the instructions of one.

A product m16n8k16 is of 16 rows of weights and 8 rows of x. Which values of a row meet at which place of its depth makes no
difference, as long as those of w and x are the same; so each lane multiplies what it reads with one load, eight values side by
side, and weights go from global memory to the tensor cores as they are stored. More rows, as of windows that are decoded
together, are up to four groups of eight, which are multiplied with the same registers of weights.
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

comptime ROWS = 8  # of x, that make a group
comptime MOST_GROUPS = 4  # of a launch
comptime MOST_ROWS = MOST_GROUPS * ROWS  # that weights are read once for
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
    groups: Int,
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
    """Compute `OUTPUTS` columns of what `linear_warp` computes, of m <= `groups * ROWS` rows; k is a multiple of `STEP`.

    x, or its layer norm, is rounded to the type of w.
    """
    comptime Values = SIMD[type, CHUNK]
    comptime Floats = SIMD[DType.float32, CHUNK]
    comptime OfGroups = SIMD[DType.float32, groups]
    comptime rows = groups * ROWS
    var thread = Int(thread_idx.x)
    var lane = Int(lane_id())
    var row = lane // 4  # of each group of x, and of the first eight of w
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
    def load(group: Int, depth: Int) {imm} -> Floats:
        """Return what is there of the lane's row of a group, zeros if there is none."""
        var row_of_x = group * ROWS + row
        if row_of_x < m and depth < k:
            var at = row_of_x * k + depth + part
            return changing(x).unsafe_load[width=CHUNK, alignment=16](at).cast[DType.float32]()
        return Floats(0)

    var means = OfGroups(0)
    var scales = OfGroups(1)
    comptime if has_norm:
        var of_warps = stack_allocation[2 * WARPS * rows, Float, address_space=AddressSpace.SHARED]()

        @always_inline
        def sums_of_rows[which: Int](of_lane: OfGroups) {imm} -> OfGroups:
            """Return the sums over all lanes, of all warps, that have parts of these rows."""
            var sums = OfGroups(0)
            comptime for group in range(groups):
                var of_warp = warp.lane_group_sum[num_lanes=4](of_lane[group])
                if lane % 4 == 0:
                    var at = (which * WARPS + thread // WARP_SIZE) * rows + group * ROWS + row
                    of_warps[unsafe_offset=at] = of_warp
            barrier()
            comptime for group in range(groups):
                comptime for i in range(WARPS):
                    sums[group] += of_warps[unsafe_offset = (which * WARPS + i) * rows + group * ROWS + row]
            return sums

        var totals = OfGroups(0)
        for depth in range(begin, k, stride):
            comptime for group in range(groups):
                totals[group] += load(group, depth).reduce_add()
        means = sums_of_rows[0](totals) / Float(k)
        var squares = OfGroups(0)
        for depth in range(begin, k, stride):
            comptime for group in range(groups):
                var difference = load(group, depth) - means[group]
                squares[group] += (difference * difference).reduce_add()
        scales = rsqrt(sums_of_rows[1](squares) / Float(k) + EPSILON)

    var sums = Array[Sums, 2 * groups](fill=Sums(0))  # two of a group, that do not wait for each other
    for depths in range(begin, k, AHEAD * stride):
        comptime for a in range(AHEAD):
            var depth = depths + a * stride
            var upper = coming[2 * a]
            var lower = coming[2 * a + 1]
            var lefts = Array[Values, 2](fill=Values(0))  # of all groups
            comptime for i in range(2):
                var ups = upper.slice[4, offset = 4 * i]()
                var lows = lower.slice[4, offset = 4 * i]()
                var near = ups.slice[2]().join(lows.slice[2]())
                var far = ups.slice[2, offset=2]().join(lows.slice[2, offset=2]())
                lefts[i] = near.join(far)
            comptime for half in range(2):
                coming[2 * a + half] = weights(half, depth + AHEAD * stride)
            var factors = Floats(0)
            var offsets = Floats(0)
            comptime if has_norm:
                var at = min(depth, k - STEP) + part  # behind the end weights are zero
                factors = norm.unsafe_load[width=CHUNK, alignment=16](at)
                offsets = norm_bias.unsafe_load[width=CHUNK, alignment=16](at)
            comptime for group in range(groups):
                var xs = load(group, depth)
                comptime if has_norm:
                    xs = ((xs - means[group]) * scales[group]).fma(factors, offsets)
                var rights = xs.cast[type]()
                comptime for i in range(2):
                    add_product(sums[2 * group + i], lefts[i], rights.slice[4, offset = 4 * i]())

    # Of a lane's sums two are of output lane // 4 and two of the one 8 further on, for two rows of a group.
    var shared = stack_allocation[WARPS * OUTPUTS * rows, Float, address_space=AddressSpace.SHARED]()
    comptime for group in range(groups):
        var of_all = sums[2 * group] + sums[2 * group + 1]
        comptime for i in range(4):
            var at = (i // 2 * 8 + row) * rows + group * ROWS + lane % 4 * 2 + i % 2
            shared[unsafe_offset = thread // WARP_SIZE * OUTPUTS * rows + at] = of_all[i]
    barrier()
    for index in range(thread, OUTPUTS * rows, THREADS):
        var r = index // OUTPUTS
        var column = first + index % OUTPUTS
        if r < m and column < n:
            var value = Float(0)
            comptime for i in range(WARPS):
                value += shared[unsafe_offset = (i * OUTPUTS + index % OUTPUTS) * rows + r]
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
    """Launch `tensor_linear_block` for any number of rows, with as many groups as there are.

    Raises if the depth is not a whole number of steps.
    """
    if k % STEP != 0:
        raise Error("a linear layer's rows are not a multiple of 32 values")
    for row in range(0, m, MOST_ROWS):
        var rows = min(MOST_ROWS, m - row)
        var y_ = y.unsafe_offset(row * n)
        var x_ = x.unsafe_offset(row * k)
        var residual_ = residual.unsafe_offset(row * n if has_residual else 0)
        var m_ = Int32(rows)
        var n_ = Int32(n)
        var k_ = Int32(k)
        comptime for groups in [1, 2, MOST_GROUPS]:
            if groups // 2 * ROWS < rows and rows <= groups * ROWS:

                def kernel() {var}:
                    tensor_linear_block[groups, has_norm, has_bias, has_residual, has_gelu, overlaps](
                        y_, x_, norm, norm_bias, w, bias, residual_, Int(m_), Int(n_), Int(k_)
                    )

                ctx.enqueue_function(
                    kernel, grid_dim=ceildiv(n, OUTPUTS), block_dim=THREADS, attributes=early[overlaps]()
                )
