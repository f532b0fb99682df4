"""Matrix products of many rows: weights are read where they lie, and the rows are laid out for vectors."""

from std.math import ceildiv, erf
from std.sys import CompilationTarget, num_physical_cores, simd_width_of, size_of

from .sharing import share

comptime Float = Scalar[DType.float32]
comptime WIDTH = simd_width_of[DType.float32]()
comptime Floats = SIMD[DType.float32, WIDTH]
# A tile of sums fills the registers: TILE_ROWS times LANES vectors, with one each of LANES and one more to multiply.
comptime TILE_ROWS = 8 if WIDTH == 16 or CompilationTarget.has_neon() else 4
comptime LANES = 3
comptime PANEL = LANES * WIDTH  # rows of x side by side
comptime GROUP = max(TILE_ROWS, WIDTH)  # rows of w, whose products with a panel are written together
comptime DEPTH = 384  # of a product at a time: a group of w stays in the first cache, a block of x in the second
comptime PANELS = 8  # of a block at most


@always_inline
def multiply[
    rows: Int, lanes: Int, start: Bool = True
](
    c: Pointer[mut=True, Float, ...],
    a: Pointer[Float, ...],
    b: Pointer[Float, ...],
    a_row: Int,
    a_step: Int,
    depth: Int,
    b_step: Int = lanes * WIDTH,
    c_row: Int = lanes * WIDTH,
):
    """Compute c (rows, lanes * WIDTH) = or += a (rows, depth) @ b (depth, lanes * WIDTH).

    A row of a is `a_row` behind the one before, a column `a_step`; a row of b is `b_step` behind the one before, and
    of c `c_row`.
    """
    var sums = Array[Floats, rows * lanes](fill=Floats(0))
    comptime if not start:
        comptime for r in range(rows):
            comptime for l in range(lanes):
                sums[r * lanes + l] = c.unsafe_load[width=WIDTH](r * c_row + l * WIDTH)
    for j in range(depth):
        var bs = Array[Floats, lanes](fill=Floats(0))
        comptime for l in range(lanes):
            bs[l] = b.unsafe_load[width=WIDTH](j * b_step + l * WIDTH)
        comptime for r in range(rows):
            var factor = Floats(a[unsafe_offset = r * a_row + j * a_step])
            comptime for l in range(lanes):
                sums[r * lanes + l] = factor.fma(bs[l], sums[r * lanes + l])
    comptime for r in range(rows):
        comptime for l in range(lanes):
            c.unsafe_store(r * c_row + l * WIDTH, sums[r * lanes + l])


@always_inline
def transpose(rows: Array[Floats, WIDTH]) -> Array[Floats, WIDTH]:
    """Transpose a square of values, by as many perfect shuffles as the width has bits."""
    var current = rows.copy()
    comptime for bit in range(8):
        comptime if 1 << bit < WIDTH:
            var next = Array[Floats, WIDTH](fill=Floats(0))
            comptime for i in range(WIDTH // 2):
                var pair = current[i].interleave(current[i + WIDTH // 2])
                next[2 * i] = pair.slice[WIDTH]()
                next[2 * i + 1] = pair.slice[WIDTH, offset=WIDTH]()
            current = next^
    return current^


@always_inline
def load[full: Bool](p: Pointer[Float, ...], count: Int) -> Floats:
    """Load a vector, or its first `count` values, the others being zero."""
    comptime if full:
        return p.unsafe_load[width=WIDTH](0)
    var result = Floats(0)
    for i in range(count):
        result[i] = p[unsafe_offset=i]
    return result


@always_inline
def store[full: Bool](p: Pointer[mut=True, Float, ...], values: Floats, count: Int):
    """Store a vector, or its first `count` values."""
    comptime if full:
        p.unsafe_store(0, values)
    else:
        for i in range(count):
            p[unsafe_offset=i] = values[i]


struct Scratch:
    """Memory of one task, at an address that vectors are loaded from at once."""

    var memory: List[Float]

    def __init__(out self, size: Int):
        self.memory = List[Float](unsafe_uninit_length=size + WIDTH)

    def pointer(ref self) -> Pointer[Float, origin_of(self.memory)]:
        var start = self.memory.unsafe_ptr()
        return start.unsafe_offset(-(Int(start) // size_of[Float]()) % WIDTH)


@fieldwise_init
struct Source(TrivialRegisterPassable):
    """Where the rows of x lie: one by one, or as the windows of a convolution.

    With three taps, row t of the product is made of the rows t * stride - 1, t * stride and t * stride + 1 of the
    n_in channels of its sequence, those outside being zero, in the order (n_in, 3) of the filters.
    """

    var n_in: Int
    var length: Int  # of a sequence
    var stride: Int
    var length_out: Int  # of a sequence in the product
    var head_dim: Int  # where the product's columns are heads

    @always_inline
    def offset[taps: Int](self, row: Int, tap: Int) -> Int:
        """Return where the row lies in x, or -1 for a row of zeros."""
        comptime if taps == 1:
            return row * self.n_in
        var t = row % self.length_out * self.stride + tap - 1
        if t < 0 or t >= self.length:
            return -1
        return (row // self.length_out * self.length + t) * self.n_in


@always_inline
def pack[
    taps: Int
](
    panel: Pointer[mut=True, Float, ...],
    x: Pointer[Float, ...],
    source: Source,
    row: Int,
    last_row: Int,
    channel: Int,
    n_channels: Int,
    lanes: Int,
):
    """Lay out `n_channels` channels of `lanes` vectors of rows of x with the rows side by side."""

    @always_inline
    def square[full: Bool](offsets: Array[Int, WIDTH], at: Int, c: Int) {imm}:
        var count = min(WIDTH, n_channels - c)
        var rows = Array[Floats, WIDTH](fill=Floats(0))
        comptime for i in range(WIDTH):
            if taps == 1 or offsets[i] >= 0:
                rows[i] = load[full](x.unsafe_offset(offsets[i] + channel + c), count)
        var columns = transpose(rows)
        comptime for i in range(WIDTH):
            if full or i < count:
                panel.unsafe_store(at + i * taps * lanes * WIDTH, columns[i])

    for tap in range(taps):
        for lane in range(lanes):
            var offsets = Array[Int, WIDTH](fill=0)
            comptime for i in range(WIDTH):
                offsets[i] = source.offset[taps](min(row + lane * WIDTH + i, last_row), tap)
            for c in range(0, n_channels, WIDTH):
                var at = (c * taps + tap) * lanes * WIDTH + lane * WIDTH
                if c + WIDTH <= n_channels:
                    square[True](offsets, at, c)
                else:
                    square[False](offsets, at, c)


@always_inline
def widen[
    type: DType
](
    a: Pointer[mut=True, Float, ...],
    w: Pointer[Scalar[type], ...],
    row: Int,
    last_row: Int,
    k: Int,
    column: Int,
    depth: Int,
):
    """Copy `depth` columns of a group of rows of w as float32."""
    var end = depth - depth % WIDTH
    for r in range(GROUP):
        var from_ = w.unsafe_offset(min(row + r, last_row) * k + column)
        var to = a.unsafe_offset(r * DEPTH)
        for j in range(0, end, WIDTH):
            to.unsafe_store(j, from_.unsafe_load[width=WIDTH](j).cast[DType.float32]())
        for j in range(end, depth):
            to[unsafe_offset=j] = from_[unsafe_offset=j].cast[DType.float32]()


@always_inline
def gemm[
    type: DType, taps: Int, has_bias: Bool, gelu: Bool, has_residual: Bool, heads: Bool
](
    y: Pointer[mut=True, Float, ...],
    x: Pointer[Float, ...],
    w: Pointer[Scalar[type], ...],
    bias: Pointer[Float, ...],
    residual: Pointer[Float, ...],
    m: Int,
    n: Int,
    source: Source,
) raises:
    """Compute y (m, n) = x (m, k) @ w (n, k).T [+ bias (n)] [then GELU] [+ residual (length_out, n)].

    The m rows are those of sequences of length_out rows each, to each of which the residual is added. With `heads`, y
    is written as (m // length_out, n // head_dim, length_out, head_dim).
    """
    var n_in = source.n_in
    var k = n_in * taps
    var chunks = ceildiv(k, DEPTH)
    var chunk = ceildiv(ceildiv(n_in, chunks), WIDTH) * WIDTH  # channels
    comptime assert DEPTH % (3 * WIDTH) == 0, "a chunk is not a whole number of vectors of three taps"

    # blocks of panels, large first and small last, so that the cores are ready at about the same time
    var cores = num_physical_cores()
    var n_panels = ceildiv(m, PANEL)
    var blocks = List[Int](length=1, fill=0)
    while blocks[len(blocks) - 1] < n_panels:
        var left = n_panels - blocks[len(blocks) - 1]
        blocks.append(n_panels - left + min(PANELS, ceildiv(left, 2 * cores)))
    var m_blocks = len(blocks) - 1
    var n_groups = ceildiv(n, GROUP)
    var groups = ceildiv(n_groups, min(n_groups, ceildiv(4 * cores, m_blocks)))
    var n_blocks = ceildiv(n_groups, groups)

    @always_inline
    def finish[full: Bool](rows: Pointer[Float, ...], row: Int, column: Int, first: Bool, last: Bool) {imm}:
        """Write the products of WIDTH rows and columns."""
        var count = min(WIDTH, n - column)
        var sequence = row // source.length_out
        var t = row % source.length_out
        var head = column // source.head_dim
        var biases = Floats(0)
        comptime if has_bias:
            biases = load[full](bias.unsafe_offset(column), count)
        for i in range(min(WIDTH, m - row)):
            var at = (row + i) * n + column
            comptime if heads:
                var rows_before = (sequence * (n // source.head_dim) + head) * source.length_out + t
                at = rows_before * source.head_dim + column - head * source.head_dim
            var value = rows.unsafe_load[width=WIDTH](i * WIDTH)
            if not first:
                value += load[full](y.unsafe_offset(at), count)
            if last:
                value += biases
                comptime if gelu:
                    value = 0.5 * value * (1 + erf(value * 0.7071067811865476))
                comptime if has_residual:
                    value += load[full](residual.unsafe_offset(t * n + column), count)
            store[full](y.unsafe_offset(at), value, count)
            t += 1
            if t == source.length_out:
                t = 0
                sequence += 1

    def work(task: Int) raises {imm}:
        var n_block = task % n_blocks
        var first_panel = blocks[task // n_blocks]
        var end_panel = blocks[task // n_blocks + 1]
        var of_panels = Scratch((end_panel - first_panel) * PANEL * DEPTH)
        var of_weights = Scratch(GROUP * DEPTH)
        var of_tile = Scratch(GROUP * PANEL)
        var of_rows = Scratch(WIDTH * WIDTH)
        var panels = of_panels.pointer()
        var a = of_weights.pointer()
        var tile = of_tile.pointer()
        var rows = of_rows.pointer()
        for channel in range(0, n_in, chunk):
            var channels = min(chunk, n_in - channel)
            var depth = channels * taps
            for p in range(first_panel, end_panel):
                var row = p * PANEL
                var lanes = min(LANES, ceildiv(m - row, WIDTH))
                var panel = panels.unsafe_offset((p - first_panel) * PANEL * DEPTH)
                pack[taps](panel, x, source, row, m - 1, channel, channels, lanes)
            for g in range(n_block * groups, min(n_groups, (n_block + 1) * groups)):
                widen(a, w, g * GROUP, n - 1, k, channel * taps, depth)
                for p in range(first_panel, end_panel):
                    var row = p * PANEL
                    var panel = panels.unsafe_offset((p - first_panel) * PANEL * DEPTH)
                    var lanes = min(LANES, ceildiv(m - row, WIDTH))
                    comptime for l in range(1, LANES + 1):
                        if lanes == l:
                            for r in range(0, GROUP, TILE_ROWS):
                                multiply[TILE_ROWS, l](
                                    tile.unsafe_offset(r * l * WIDTH), a.unsafe_offset(r * DEPTH), panel, DEPTH, 1, depth
                                )
                    for part in range(0, GROUP, WIDTH):
                        var column = g * GROUP + part
                        if column < n:
                            for lane in range(lanes):
                                var first_row = row + lane * WIDTH
                                var square = Array[Floats, WIDTH](fill=Floats(0))
                                comptime for i in range(WIDTH):
                                    square[i] = tile.unsafe_load[width=WIDTH](
                                        ((part + i) * lanes + lane) * WIDTH
                                    )
                                var transposed = transpose(square)
                                comptime for i in range(WIDTH):
                                    rows.unsafe_store(i * WIDTH, transposed[i])
                                var first = channel == 0
                                var last = channel + channels == n_in
                                if column + WIDTH <= n:
                                    finish[True](rows, first_row, column, first, last)
                                else:
                                    finish[False](rows, first_row, column, first, last)

    share(work, m_blocks * n_blocks)
