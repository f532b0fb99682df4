"""Matrix products of many rows on a GPU, in float32: tiles in shared memory, sums in registers, no tensor cores.

Tensor cores would round float32 to 10 bits of mantissa, and tokens would no longer be upstream's.
"""

from max.gpu import barrier, block_idx, thread_idx
from max.gpu.host import DeviceContext
from max.gpu.memory import AddressSpace
from std.math import ceildiv
from std.memory import stack_allocation
from std.sys import size_of

from .gemm import Source, quotient
from .vectors import Float, gelu

comptime THREADS = 256  # 16 by 16, of which each has SIDE by SIDE sums
comptime DEPTH = 16  # of a product at a time
comptime ENOUGH = 100  # large tiles to keep a GPU busy
comptime Four = SIMD[DType.float32, 4]


@always_inline
def load_four[type: DType](p: Pointer[Scalar[type], ...], at: Int) -> Four:
    """Load four values of any type, whose place is a multiple of four."""
    return p.unsafe_load[width=4, alignment = 4 * size_of[type]()](at).cast[DType.float32]()


@always_inline
def gemm_block[
    type: DType,
    of_x: DType,
    out: DType,
    //,
    taps: Int,
    side: Int,
    has_bias: Bool,
    has_gelu: Bool,
    has_residual: Bool,
](
    y: Pointer[mut=True, Scalar[out], ...],
    x: Pointer[mut=False, Scalar[of_x], ...],
    w: Pointer[mut=False, Scalar[type], ...],
    bias: Pointer[mut=False, Float, ...],
    residual: Pointer[mut=False, Float, ...],
    m: Int,
    n: Int,
    source: Source,
):
    """Compute one tile of what `gemm` computes, 16 * `side` rows and columns; n_in is a multiple of `DEPTH`."""
    comptime tile = 16 * side
    comptime stride = tile + 4  # against conflicts of banks
    comptime loads = tile * DEPTH // 4 // THREADS
    var xs = stack_allocation[DEPTH * stride, Float, address_space=AddressSpace.SHARED, alignment=16]()
    var ws = stack_allocation[DEPTH * stride, Float, address_space=AddressSpace.SHARED, alignment=16]()
    var thread = Int(thread_idx.x)
    var first_row = Int(block_idx.y) * tile
    var first_column = Int(block_idx.x) * tile
    var k = source.n_in * taps

    # Four values each of a row of x and of w, which the thread brings for every `DEPTH`.
    var x_next = Array[Four, loads](fill=Four(0))
    var w_next = Array[Four, loads](fill=Four(0))

    @always_inline
    def fetch(depth: Int) {mut x_next, mut w_next, imm}:
        comptime for i in range(loads):
            var index = i * THREADS + thread
            var column = depth + index % (DEPTH // 4) * 4
            var row = min(first_row + index // (DEPTH // 4), m - 1)
            comptime if taps == 1:
                x_next[i] = load_four(x, row * source.n_in + column)
            else:
                var tap = quotient(column, source.n_in)
                var at = source.offset(taps, row, tap)
                x_next[i] = Four(0)
                if at >= 0:
                    x_next[i] = load_four(x, at + column - tap * source.n_in)
            var output = min(first_column + index // (DEPTH // 4), n - 1)
            w_next[i] = load_four(w, output * k + column)

    comptime groups = side // 4
    var sums = Array[Four, side * groups](fill=Four(0))
    var x_at = thread // 16 * 4
    var w_at = thread % 16 * 4
    fetch(0)
    for depth in range(0, k, DEPTH):
        barrier()
        comptime for i in range(loads):
            var index = i * THREADS + thread
            comptime for j in range(4):
                var at = (index % (DEPTH // 4) * 4 + j) * stride + index // (DEPTH // 4)
                xs[unsafe_offset=at] = x_next[i][j]
                ws[unsafe_offset=at] = w_next[i][j]
        barrier()
        if depth + DEPTH < k:
            fetch(depth + DEPTH)
        comptime for d in range(DEPTH):
            var columns = Array[Four, groups](fill=Four(0))
            comptime for g in range(groups):
                columns[g] = ws.unsafe_load[width=4, alignment=16](d * stride + g * 64 + w_at)
            comptime for h in range(groups):
                var rows = xs.unsafe_load[width=4, alignment=16](d * stride + h * 64 + x_at)
                comptime for i in range(4):
                    comptime for g in range(groups):
                        comptime at = (h * 4 + i) * groups + g
                        sums[at] = Four(rows[i]).fma(columns[g], sums[at])

    var places = Array[Int, side](fill=0)
    comptime for g in range(groups):
        comptime for j in range(4):
            places[g * 4 + j] = source.place_of_column(first_column + g * 64 + w_at + j)
    comptime for h in range(groups):
        comptime for i in range(4):
            var row = first_row + h * 64 + x_at + i
            if row < m:
                var place = source.place_of_row(row, n)
                var of_residual = source.row_of_sequence(row) * n
                comptime for g in range(groups):
                    comptime for j in range(4):
                        var column = first_column + g * 64 + w_at + j
                        if column < n:
                            var value = sums[(h * 4 + i) * groups + g][j]
                            comptime if has_bias:
                                value += bias[unsafe_offset=column]
                            comptime if has_gelu:
                                value = gelu[1](value)
                            comptime if has_residual:
                                value += residual[unsafe_offset = of_residual + column]
                            y[unsafe_offset = place + places[g * 4 + j]] = value.cast[out]()


@always_inline
def gemm_on_gpu[
    type: DType, of_x: DType, out: DType, //, taps: Int, has_bias: Bool, has_gelu: Bool, has_residual: Bool
](
    y: Pointer[mut=True, Scalar[out], ...],
    x: Pointer[mut=False, Scalar[of_x], ...],
    w: Pointer[mut=False, Scalar[type], ...],
    bias: Pointer[mut=False, Float, ...],
    residual: Pointer[mut=False, Float, ...],
    m: Int,
    n: Int,
    source: Source,
    ctx: DeviceContext,
) raises:
    """Launch `gemm_block`, which does what `gemm` does, in large tiles where there are enough of them.

    Raises if rows are not a whole number of steps of `DEPTH` values.
    """
    if source.n_in % DEPTH != 0:
        raise Error("a matrix product's rows are not a multiple of 16 values")
    comptime for side in [4, 8]:
        comptime tile = 16 * side
        var large = ceildiv(m, 128) * ceildiv(n, 128) >= ENOUGH
        if large == (side == 8):
            var m_ = Int32(m)
            var n_ = Int32(n)
            var n_in = Int32(source.n_in)
            var length = Int32(source.length)
            var stride = Int32(source.stride)
            var length_out = Int32(source.length_out)
            var head_dim = Int32(source.head_dim)

            def kernel() {var}:
                gemm_block[taps, side, has_bias, has_gelu, has_residual](
                    y,
                    x,
                    w,
                    bias,
                    residual,
                    Int(m_),
                    Int(n_),
                    Source(Int(n_in), Int(length), Int(stride), Int(length_out), Int(head_dim)),
                )

            ctx.enqueue_function(kernel, grid_dim=(ceildiv(n, tile), ceildiv(m, tile)), block_dim=THREADS)


@always_inline
def scores_block[
    side: Int
](
    y: Pointer[mut=True, Float, ...],
    q: Pointer[mut=False, Float, ...],
    keys: Pointer[mut=False, Float, ...],
    n_queries: Int,
    n_keys: Int,
    head_dim: Int,
):
    """Compute one tile of one head's products of queries with keys, see `Scores`."""
    var head = Int(block_idx.z)
    var source = Source(head_dim, n_queries, 1, n_queries, 0)
    gemm_block[1, side, False, False, False](
        y.unsafe_offset(head * n_queries * n_keys),
        q.unsafe_offset(head * n_queries * head_dim),
        keys.unsafe_offset(head * n_keys * head_dim),
        q,  # no bias
        q,  # no residual
        n_queries,
        n_keys,
        source,
    )


@always_inline
def scores_on_gpu(
    y: Pointer[mut=True, Float, ...],
    q: Pointer[mut=False, Float, ...],
    keys: Pointer[mut=False, Float, ...],
    n_heads: Int,
    n_queries: Int,
    n_keys: Int,
    head_dim: Int,
    ctx: DeviceContext,
) raises:
    """Launch `scores_block` for the `n_heads` heads of all audios."""
    var n_queries_ = Int32(n_queries)
    var n_keys_ = Int32(n_keys)
    var head_dim_ = Int32(head_dim)

    def kernel() {var}:
        scores_block[4](y, q, keys, Int(n_queries_), Int(n_keys_), Int(head_dim_))

    ctx.enqueue_function(kernel, grid_dim=(ceildiv(n_keys, 64), ceildiv(n_queries, 64), n_heads), block_dim=THREADS)
