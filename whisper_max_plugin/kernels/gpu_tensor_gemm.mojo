"""Matrix products of many rows on the tensor cores of a GPU: factors of half width, sums in float32."""

from max.gpu import WARP_SIZE, barrier, block_idx, lane_id, thread_idx
from max.gpu.host import DeviceContext
from max.gpu.memory import async_copy_commit_group, async_copy_wait_group
from std.math import ceildiv
from std.sys import size_of

from .gemm import Source, quotient
from .gpu_tensor import CHUNK, Sums, Tile, add_product
from .vectors import Float, gelu

comptime THREADS = 128  # two by two warps, of which each has a quarter of a block's tile
comptime DEPTH = 32  # of a product at a time
comptime STAGES = 3  # of that depth, of which one is multiplied while the others arrive
comptime ENOUGH = 100  # large tiles to keep a GPU busy


@always_inline
def tensor_gemm_block[
    type: DType, out: DType, //, taps: Int, side: Int, has_bias: Bool, has_gelu: Bool, has_residual: Bool
](
    y: Pointer[mut=True, Scalar[out], ...],
    x: Pointer[mut=False, Scalar[type], ...],
    w: Pointer[mut=False, Scalar[type], ...],
    bias: Pointer[mut=False, Float, ...],
    residual: Pointer[mut=False, Float, ...],
    m: Int,
    n: Int,
    source: Source,
):
    """Compute one tile of what `gemm` computes, `side` rows and columns; rows are whole numbers of chunks."""
    comptime Part = Tile[type, side, DEPTH]
    comptime own = side // 2  # rows and columns of a warp
    var xs = Part.allocate[STAGES]()
    var ws = Part.allocate[STAGES]()
    var thread = Int(thread_idx.x)
    var lane = Int(lane_id())
    var first_row = Int(block_idx.y) * side
    var first_column = Int(block_idx.x) * side
    var k = source.n_in * taps
    var n_steps = ceildiv(k, DEPTH)

    @always_inline
    def row_in_x(row: Int) {imm} -> Int:
        """Return which row of x a row of the product begins with; for the first one of a sequence, the one before it."""
        comptime if taps == 1:
            return row
        return quotient(row, source.length_out) * source.length + source.row_of_sequence(row) * source.stride - 1

    # What a thread brings for each step: a chunk of these rows of x, and of w, counted from the tile's first. Numbers are of
    # 32 bits: with those of 64 their arithmetic would be half of what a step does beside its products, and registers would
    # not suffice.
    var first_of_x = max(row_in_x(first_row), 0)
    var of_x = x.unsafe_offset(first_of_x * source.n_in)
    var of_w = w.unsafe_offset(first_column * k)
    comptime brings = side * DEPTH // CHUNK // THREADS
    var chunk = thread % (DEPTH // CHUNK)
    var begins = Array[Int32, brings](fill=0)  # of a convolution's windows, of which the first is before its sequence
    var rows_of_x = Array[Int32, brings](fill=0)
    var rows_of_w = Array[Int32, brings](fill=0)
    comptime for i in range(brings):
        var tile_row = (i * THREADS + thread) // (DEPTH // CHUNK)
        var row = min(first_row + tile_row, m - 1)
        comptime if taps > 1:
            begins[i] = Int32(source.row_of_sequence(row) * source.stride - 1)
        rows_of_x[i] = Int32((row_in_x(row) - first_of_x) * source.n_in)
        rows_of_w[i] = Int32(min(tile_row, n - 1 - first_column) * k)

    @always_inline
    def fetch(step: Int, stage: Int) {imm}:
        """Begin to copy what a step multiplies, zeros behind the last one."""
        var column = Int32(step * DEPTH + chunk * CHUNK)
        var inside = column < Int32(k)
        var x_tile = Part(xs.unsafe_offset(stage * Part.SIZE))
        var w_tile = Part(ws.unsafe_offset(stage * Part.SIZE))
        comptime for i in range(brings):
            var tile_row = (i * THREADS + thread) // (DEPTH // CHUNK)
            var valid = inside
            comptime if taps > 1:
                # The channels of neighbours lie side by side, so a window is a row of its own.
                var at = begins[i]
                comptime for tap in range(1, taps):
                    at += Int32(column >= Int32(tap * source.n_in))
                valid = inside and at >= 0 and at < Int32(source.length)
            var from_x = rows_of_x[i] + column if valid else Int32(0)
            var from_w = rows_of_w[i] + column if inside else Int32(0)
            x_tile.fetch(tile_row, chunk, of_x.unsafe_offset(Int(from_x)), valid)
            w_tile.fetch(tile_row, chunk, of_w.unsafe_offset(Int(from_w)), inside)

    comptime downs = own // 16  # products of a warp below each other
    comptime pairs = own // 16  # and pairs of them side by side
    var sums = Array[Sums, downs * pairs * 2](fill=Sums(0))
    var row_of_warp = thread // WARP_SIZE // 2 * own
    var column_of_warp = thread // WARP_SIZE % 2 * own

    comptime for step in range(STAGES - 1):
        fetch(step, step)
        async_copy_commit_group()
    var stage = 0
    for step in range(n_steps):
        async_copy_wait_group(STAGES - 2)  # this step's has come
        barrier()  # for all, and what the last step multiplied is not needed any more
        var x_tile = Part(xs.unsafe_offset(stage * Part.SIZE))
        var w_tile = Part(ws.unsafe_offset(stage * Part.SIZE))
        var last = stage - 1 if stage > 0 else STAGES - 1
        comptime for depth in range(0, DEPTH, 16):
            var lefts = Array[SIMD[type, 8], downs](fill=SIMD[type, 8](0))
            comptime for i in range(downs):
                lefts[i] = x_tile.left(row_of_warp + i * 16, depth)
            comptime for j in range(pairs):
                var rights = w_tile.right(column_of_warp + j * 16, depth)
                comptime for i in range(downs):
                    comptime at = (i * pairs + j) * 2
                    add_product(sums[at], lefts[i], rights.slice[4]())
                    add_product(sums[at + 1], lefts[i], rights.slice[4, offset=4]())
            comptime if depth == 0:  # while tensor cores are busy; without a branch, so that the assembler may mix both
                fetch(step + STAGES - 1, last)
                async_copy_commit_group()
        stage = stage + 1 if stage < STAGES - 1 else 0
    async_copy_wait_group(0)

    @always_inline
    def write[width: Int](place: Int, of_residual: Int, products: SIMD[DType.float32, width]) {imm}:
        """Write neighbours in a row to y, with what is added to them."""
        var values = products
        comptime if has_residual:
            values += residual.unsafe_load[width=width, alignment = 4 * width](of_residual)
        y.unsafe_store[alignment = size_of[out]() * width](place, values.cast[out]())

    # Of a lane's sums two are of a row, and two of the one 8 further on; columns come in pairs.
    var places = Array[Int, pairs * 2](fill=0)
    comptime for j in range(pairs * 2):
        places[j] = source.place_of_column(first_column + column_of_warp + j * 8 + lane % 4 * 2)
    comptime for i in range(downs):
        comptime for half in range(2):
            var row = first_row + row_of_warp + i * 16 + half * 8 + lane // 4
            if row < m:
                var of_row = source.place_of_row(row, n)
                var row_of_residual = source.row_of_sequence(row) * n
                comptime for j in range(pairs * 2):
                    var column = first_column + column_of_warp + j * 8 + lane % 4 * 2
                    if column < n:
                        var values = sums[i * pairs * 2 + j].slice[2, offset = 2 * half]()
                        comptime if has_bias:
                            values[0] += bias[unsafe_offset=column]
                            values[1] += bias[unsafe_offset = min(column + 1, n - 1)]
                        comptime if has_gelu:
                            values = gelu[2](values)
                        var place = of_row + places[j]
                        var of_residual = row_of_residual + column
                        if n % 2 == 0:
                            write[2](place, of_residual, values)
                        else:
                            write[1](place, of_residual, values[0])
                            if column + 1 < n:
                                write[1](place + 1, of_residual + 1, values[1])


def check_chunks(n_in: Int) raises:
    """Raise if rows of x are not whole numbers of chunks."""
    if n_in % CHUNK != 0:
        raise Error("a matrix product's rows are not a multiple of 8 values")


@always_inline
def tensor_gemm_on_gpu[
    type: DType, out: DType, //, taps: Int, has_bias: Bool, has_gelu: Bool, has_residual: Bool
](
    y: Pointer[mut=True, Scalar[out], ...],
    x: Pointer[mut=False, Scalar[type], ...],
    w: Pointer[mut=False, Scalar[type], ...],
    bias: Pointer[mut=False, Float, ...],
    residual: Pointer[mut=False, Float, ...],
    m: Int,
    n: Int,
    source: Source,
    ctx: DeviceContext,
) raises:
    """Launch `tensor_gemm_block`, which does what `gemm` does, in large tiles where there are enough of them."""
    check_chunks(source.n_in)
    comptime for side in [64, 128]:
        var large = ceildiv(m, 128) * ceildiv(n, 128) >= ENOUGH
        if large == (side == 128):
            var m_ = Int32(m)
            var n_ = Int32(n)
            var n_in = Int32(source.n_in)
            var length = Int32(source.length)
            var stride = Int32(source.stride)
            var length_out = Int32(source.length_out)
            var head_dim = Int32(source.head_dim)

            def kernel() {var}:
                tensor_gemm_block[taps, side, has_bias, has_gelu, has_residual](
                    y,
                    x,
                    w,
                    bias,
                    residual,
                    Int(m_),
                    Int(n_),
                    Source(Int(n_in), Int(length), Int(stride), Int(length_out), Int(head_dim)),
                )

            ctx.enqueue_function(kernel, grid_dim=(ceildiv(n, side), ceildiv(m, side)), block_dim=THREADS)
