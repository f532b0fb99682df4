"""Linear layers of few rows on the tensor cores of a GPU: up to eight rows of x take the instructions of one.

A product m16n8k16 is of 16 rows of x, two groups of eight, and 8 rows of weights. Which values of a row meet at which place of
its depth makes no difference, as long as those of w and x are the same; so each lane multiplies what it reads with one load,
eight values side by side, and weights go from global memory to the tensor cores as they are stored. More rows, as of windows
that are decoded together, are up to four groups, which are multiplied with the same registers of weights.
"""

from max.gpu import MAX_THREADS_PER_BLOCK_METADATA, WARP_SIZE, barrier, block_idx, lane_id, thread_idx
from max.gpu.host import DeviceContext
from max.gpu.memory import AddressSpace, async_copy, async_copy_commit_group, async_copy_wait_group
from max.gpu.primitives import warp
from std.math import ceildiv, rsqrt
from std.memory import stack_allocation
from std.sys import size_of
from std.utils import StaticTuple

from .gpu_overlap import changing, early, wait_for_last
from .gpu_tensor import CHUNK, Sums, add_product
from .vectors import EPSILON, Float, gelu

comptime ROWS = 8  # of x, that make a group
comptime MOST_GROUPS = 4  # of a launch
comptime MOST_ROWS = MOST_GROUPS * ROWS  # that weights are read once for
comptime OUTPUTS = 16  # of a block
comptime WARPS = 8  # of a block, that share the depth; twice as many where it is deep
comptime STEP = 4 * CHUNK  # of the depth, that a warp multiplies at a time
comptime AHEAD = 5  # steps of a warp, whose weights are on their way
comptime FLOATS = 4  # that are copied to shared memory at once
comptime LOADS = 5  # of a lane, of a row that is normed, at a time
comptime MOST_NORMED = AHEAD * WARPS * STEP  # values of a row, with a norm: all of their weights are on their way at a time


@always_inline
def mean_and_scale[type: DType](x: Pointer[mut=True, Scalar[type], ...], k: Int) -> SIMD[DType.float32, 2]:
    """Return of a row what a layer norm subtracts and multiplies by, which one warp computes; k is a multiple of `FLOATS`."""
    comptime Part = SIMD[DType.float32, FLOATS]
    var lane = Int(lane_id())

    @always_inline
    def total[power: Int](mean: Float) {imm} -> Float:
        var sum = Part(0)
        for first in range(lane * FLOATS, k, LOADS * WARP_SIZE * FLOATS):
            var parts = Array[Part, LOADS](fill=Part(0))
            comptime for i in range(LOADS):  # all on their way at a time
                var at = min(first + i * WARP_SIZE * FLOATS, k - FLOATS)
                parts[i] = x.unsafe_load[width=FLOATS, alignment=FLOATS * size_of[type]()](at).cast[DType.float32]()
            comptime for i in range(LOADS):
                var differences = parts[i] - mean
                comptime if power == 2:
                    differences *= differences
                sum += differences if first + i * WARP_SIZE * FLOATS < k else Part(0)
        return warp.sum(sum.reduce_add())

    var mean = total[1](0) / Float(k)
    return SIMD[DType.float32, 2](mean, rsqrt(total[2](mean) / Float(k) + EPSILON))


@always_inline
def tensor_linear_block[
    type: DType,
    of_x: DType,
    out: DType,
    //,
    groups: Int,
    warps: Int,
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
    """Compute `OUTPUTS` columns of what `linear_warp` computes, of m <= `groups * ROWS` rows; k is a multiple of `STEP`,
    and with a norm at most `MOST_NORMED`.

    x, or its layer norm, is rounded to the type of w.
    """
    comptime Values = SIMD[type, CHUNK]
    comptime Floats = SIMD[DType.float32, CHUNK]
    comptime OfGroups = SIMD[DType.float32, groups]
    comptime rows = groups * ROWS
    comptime threads = warps * WARP_SIZE
    var thread = Int(thread_idx.x)
    var lane = Int(lane_id())
    var row = lane // 4  # of each group of x, and of each eight of w
    var part = lane % 4 * CHUNK  # of a step
    var first = Int(block_idx.x) * OUTPUTS
    var begin = thread // WARP_SIZE * STEP  # of the depth, in which the warps take turns
    comptime stride = warps * STEP

    @always_inline
    def weights(half: Int, depth: Int) {imm} -> Values:
        """Return the lane's part of an output's weights; behind the end that of the last step, for which x is zero.

        Nothing is done to what has been loaded: a warp that touches it waits until it is there.
        """
        var output = min(first + half * 8 + row, n - 1)
        return changing(w).unsafe_load[width=CHUNK, alignment=16](output * k + min(depth, k - STEP) + part)

    # What no kernel before writes is on its way before the wait.
    var coming = Array[Values, AHEAD * 2](fill=Values(0))
    comptime for a in range(AHEAD):
        comptime for half in range(2):
            coming[2 * a + half] = weights(half, begin + a * stride)
    var factors = stack_allocation[MOST_NORMED, Float, address_space=AddressSpace.SHARED, alignment=16]()
    var offsets = stack_allocation[MOST_NORMED, Float, address_space=AddressSpace.SHARED, alignment=16]()
    comptime if has_norm:
        comptime for i in range(ceildiv(MOST_NORMED, threads * FLOATS)):
            var at = (i * threads + thread) * FLOATS
            if at < k:
                async_copy[16](changing(norm).unsafe_offset(at), factors.unsafe_offset(at))
                async_copy[16](changing(norm_bias).unsafe_offset(at), offsets.unsafe_offset(at))
        async_copy_commit_group()
    var column = first + thread % OUTPUTS  # of all outputs that the thread will write
    var added = Float(0)
    comptime if has_bias:
        added = changing(bias)[unsafe_offset = min(column, n - 1)]
    comptime if overlaps:
        wait_for_last()

    comptime writes = ceildiv(OUTPUTS * rows, threads)
    var row_of_y = thread // OUTPUTS
    var rest = Array[Float, writes](fill=Float(0))
    comptime if has_residual:
        comptime for i in range(writes):
            var r = min(i * (threads // OUTPUTS) + row_of_y, m - 1)
            rest[i] = changing(residual)[unsafe_offset = r * n + min(column, n - 1)]

    var means = OfGroups(0)
    var scales = OfGroups(1)
    comptime if has_norm:
        var of_rows = stack_allocation[rows * 2, Float, address_space=AddressSpace.SHARED, alignment=8]()
        for of_warp in range(thread // WARP_SIZE, m, warps):
            var found = mean_and_scale(changing(x).unsafe_offset(of_warp * k), k)
            if lane == 0:
                of_rows.unsafe_store(of_warp * 2, found)
        async_copy_wait_group(0)
        barrier()
        comptime for group in range(groups):
            var found = of_rows.unsafe_load[width=2](min(group * ROWS + row, m - 1) * 2)
            means[group] = found[0]
            scales[group] = found[1]

    @always_inline
    def load(group: Int, depth: Int) {imm} -> Floats:
        """Return the lane's part of its row of a group, normed, and zeros behind the end.

        Behind the last row it is that row once more: what becomes of it is not written. Without conditions, many loads
        are on their way at a time.
        """
        var at = min(depth, k - STEP) + part
        var of_row = min(group * ROWS + row, m - 1) * k
        var xs = changing(x).unsafe_load[width=CHUNK, alignment=16](of_row + at).cast[DType.float32]()
        comptime if has_norm:
            xs = ((xs - means[group]) * scales[group]).fma(
                factors.unsafe_load[width=CHUNK, alignment=16](at),
                offsets.unsafe_load[width=CHUNK, alignment=16](at),
            )
        return xs if depth < k else Floats(0)

    comptime pairs = ceildiv(groups, 2)  # of groups, above each other in a product
    var sums = Array[Sums, pairs * 2](fill=Sums(0))  # two of a pair, of eight outputs each

    @always_inline
    def multiply[is_last: Bool](depths: Int) {mut coming, mut sums, imm}:
        """Multiply the steps whose weights have come, and bring those of the next ones."""
        comptime for a in range(AHEAD):
            var depth = depths + a * stride
            comptime for pair in range(pairs):
                var xs = Array[Values, 2](fill=Values(0))  # of the pair's groups
                comptime for i in range(2):
                    comptime group = 2 * pair + i
                    comptime if group < groups:
                        xs[i] = load(group, depth).cast[type]()
                comptime for i in range(2):
                    var near = xs[0].slice[2, offset = 4 * i]().join(xs[1].slice[2, offset = 4 * i]())
                    var far = xs[0].slice[2, offset = 4 * i + 2]().join(xs[1].slice[2, offset = 4 * i + 2]())
                    comptime for half in range(2):
                        var right = coming[2 * a + half].slice[4, offset = 4 * i]()
                        add_product(sums[2 * pair + half], near.join(far), right)
            comptime if not is_last:
                comptime for half in range(2):
                    coming[2 * a + half] = weights(half, depth + AHEAD * stride)

    # By code of their own, steps that are all on their way: of a loop's registers some would be moved before it, and the
    # warp would wait for what they are to hold before it lets the next kernel begin.
    if k <= AHEAD * stride:
        multiply[is_last=True](begin)
    else:
        comptime if not has_norm:
            multiply[is_last=False](begin)
            var depths = begin + AHEAD * stride
            while depths + AHEAD * stride < k:
                multiply[is_last=False](depths)
                depths += AHEAD * stride
            multiply[is_last=True](depths)

    # Of a lane's sums two are of row lane // 4 of a group and two of that row of the next one, for neighbouring outputs.
    var shared = stack_allocation[warps * OUTPUTS * rows, Float, address_space=AddressSpace.SHARED]()
    comptime for pair in range(pairs):
        comptime for half in range(2):
            comptime for i in range(4):
                comptime group = 2 * pair + i // 2
                comptime if group < groups:
                    var at = (half * 8 + lane % 4 * 2 + i % 2) * rows + group * ROWS + row
                    shared[unsafe_offset = thread // WARP_SIZE * OUTPUTS * rows + at] = sums[2 * pair + half][i]
    barrier()
    comptime for i in range(writes):
        var r = i * (threads // OUTPUTS) + row_of_y
        if r < m and column < n:
            var value = added
            comptime for of_warp in range(warps):
                value += shared[unsafe_offset = (of_warp * OUTPUTS + column - first) * rows + r]
            comptime if has_gelu:
                value = gelu[1](value)
            y[unsafe_offset = r * n + column] = (value + rest[i]).cast[out]()


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

    Raises if the depth is not a whole number of steps, or more of them than are normed.
    """
    if k % STEP != 0:
        raise Error("a linear layer's rows are not a multiple of 32 values")
    if has_norm and k > MOST_NORMED:
        raise Error("a layer norm's rows are longer than 1280 values")
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
                comptime may_be_deep = not has_norm and groups == 1  # more have not enough registers
                comptime for twice in range(2 if may_be_deep else 1):
                    comptime warps = 2 * WARPS if twice else WARPS
                    if (may_be_deep and k > MOST_NORMED) == Bool(twice):

                        @__llvm_metadata(MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](Int32(warps * WARP_SIZE)))
                        def kernel() {var}:
                            tensor_linear_block[groups, warps, has_norm, has_bias, has_residual, has_gelu, overlaps](
                                y_, x_, norm, norm_bias, w, bias, residual_, Int(m_), Int(n_), Int(k_)
                            )

                        var threads = warps * WARP_SIZE
                        ctx.enqueue_function(
                            kernel, grid_dim=ceildiv(n, OUTPUTS), block_dim=threads, attributes=early[overlaps]()
                        )
