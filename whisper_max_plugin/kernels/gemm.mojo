"""Matrix products of many rows: weights are laid out for vectors as they are needed, rows are read where they lie."""

from std.math import ceildiv
from std.sys import CompilationTarget, size_of

from .pairs import HAS_PAIRS, Halves, as_pairs, multiply_add
from .sharing import n_cores, share
from .vectors import Finish, Float, Floats, Numbers, Results, WIDTH, gelu, results

# A tile of sums fills the registers: TILE_ROWS times LANES vectors, with one each of LANES and one more to multiply.
comptime TILE_ROWS = 8 if WIDTH == 16 or CompilationTarget.has_neon() else 4
comptime LANES = 3
comptime PANEL = LANES * WIDTH  # rows of w side by side
comptime DEPTH = 768  # of a product at a time, so that a panel of w stays in the second cache
comptime TASKS = 8  # for each core, so that all are ready at about the same time
comptime LEAST_ROWS = 96  # of a task: a panel is laid out for them


@always_inline
def multiply[
    type: DType, //, rows: Int, lanes: Int, pairs: Bool = False, start: Bool = True
](
    c: Pointer[mut=True, Float, ...],
    a: Pointer[Scalar[type], ...],
    b: Pointer[Float, ...],
    a_row: Int,
    a_step: Int,
    depth: Int,
    b_step: Int = lanes * WIDTH,
    c_row: Int = lanes * WIDTH,
):
    """Compute c (rows, lanes * WIDTH) = or += a (rows, depth) @ b (depth, lanes * WIDTH), of numbers or pairs.

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
            var factor = Floats(a[unsafe_offset = r * a_row + j * a_step].cast[DType.float32]())
            comptime for l in range(lanes):
                sums[r * lanes + l] = multiply_add[pairs](factor, bs[l], sums[r * lanes + l])
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
def load[full: Bool, type: DType, pairs: Bool = False](p: Pointer[Scalar[type], ...], count: Int) -> Floats:
    """Load a vector as float32, or as pairs, or its first `count` values or pairs, the others being zero."""
    comptime if pairs:
        comptime if full:
            return as_pairs(p.unsafe_load[width=2 * WIDTH](0))
        var halves = Halves(0)
        for i in range(2 * count):
            halves[i] = p[unsafe_offset=i].cast[DType.bfloat16]()
        return as_pairs(halves)
    comptime if full:
        return p.unsafe_load[width=WIDTH](0).cast[DType.float32]()
    var result = Floats(0)
    for i in range(count):
        result[i] = p[unsafe_offset=i].cast[DType.float32]()
    return result


@always_inline
def store[full: Bool, type: DType](p: Pointer[mut=True, Scalar[type], ...], values: Floats, count: Int):
    """Store a vector as another type, or its first `count` values."""
    comptime if full:
        p.unsafe_store(0, values.cast[type]())
    else:
        for i in range(count):
            p[unsafe_offset=i] = values[i].cast[type]()


struct Scratch:
    """Memory of one task, at an address that vectors are loaded from at once."""

    var memory: List[Float]

    def __init__(out self, size: Int):
        self.memory = List[Float](unsafe_uninit_length=size + WIDTH)

    def pointer(ref self) -> Pointer[Float, origin_of(self.memory)]:
        var start = self.memory.unsafe_ptr()
        return start.unsafe_offset(-(Int(start) // size_of[Float]()) % WIDTH)


@always_inline
def quotient(a: Int, b: Int) -> Int:
    """Divide numbers of 32 bits without a sign: a GPU takes a tenth of what it takes for those of 64."""
    return Int(UInt32(a) // UInt32(b))


@fieldwise_init
struct Source(TrivialRegisterPassable):
    """Where the rows of x lie, one by one or as the windows of a convolution, and where those of the product do.

    With three taps, row t of the product is made of the rows t * stride - 1, t * stride and t * stride + 1 of the
    n_in channels of its sequence, those outside being zero, one behind the other. Divisions take as long as a good part
    of a row's products: places are asked for once for each row and column, not for each value.
    """

    var n_in: Int
    var length: Int  # of a sequence
    var stride: Int
    var length_out: Int  # of a sequence in the product
    var head_dim: Int  # where the product's columns are heads, else 0

    @always_inline
    def offset(self, taps: Int, row: Int, tap: Int) -> Int:
        """Return where the row lies in x, or -1 for a row of zeros."""
        if taps == 1:
            return row * self.n_in
        var sequence = quotient(row, self.length_out)
        var t = (row - sequence * self.length_out) * self.stride + tap - 1
        if t < 0 or t >= self.length:
            return -1
        return (sequence * self.length + t) * self.n_in

    @always_inline
    def row_of_sequence(self, row: Int) -> Int:
        """Return which row of its sequence a row of the product is."""
        return row - quotient(row, self.length_out) * self.length_out

    @always_inline
    def place_of_row(self, row: Int, n: Int) -> Int:
        """Return where a row of products begins in y; with heads, where it does in the first head."""
        if self.head_dim > 0:
            var sequence = quotient(row, self.length_out)
            return sequence * self.length_out * n + (row - sequence * self.length_out) * self.head_dim
        return row * n

    @always_inline
    def place_of_column(self, column: Int) -> Int:
        """Return how far behind that a column lies."""
        if self.head_dim > 0:
            var head = quotient(column, self.head_dim)
            return head * self.length_out * self.head_dim + (column - head * self.head_dim)
        return column


@no_inline
def lay_out[
    type: DType, //, pairs: Bool = False
](
    panel: Results[],
    w: Numbers[type],
    row: Int,
    last_row: Int,
    stride: Int,
    depth: Int,
    lanes: Int,
):
    """Lay out `depth` columns of rows of w, which are `stride` apart, as float32 (depth, lanes * WIDTH).

    Of `pairs`, a column is two of w.
    """
    comptime of_column = 2 if pairs else 1

    @always_inline
    def square[full: Bool](lane: Int, first: Int) {imm}:
        var count = min(WIDTH, depth - first)
        var rows = Array[Floats, WIDTH](fill=Floats(0))
        comptime for i in range(WIDTH):
            var of_row = min(row + lane * WIDTH + i, last_row)
            rows[i] = load[full, type, pairs](w.unsafe_offset(of_row * stride + first * of_column), count)
        var columns = transpose(rows)
        comptime for i in range(WIDTH):
            if full or i < count:
                panel.unsafe_store(((first + i) * lanes + lane) * WIDTH, columns[i])

    for lane in range(lanes):
        for first in range(0, depth, WIDTH):
            if first + WIDTH <= depth:
                square[True](lane, first)
            else:
                square[False](lane, first)


@no_inline
def gemm[
    type: DType, of_x: DType, out: DType, //
](
    y: Results[out],
    x: Numbers[of_x],
    w: Numbers[type],
    finish: Finish,
    m: Int,
    n: Int,
    taps: Int,
    source: Source,
) raises:
    """Compute y (m, n) = x (m, k) @ w (n, k).T, with a `finish`, k being taps * n_in.

    The m rows are those of sequences of length_out rows each, to each of which the residual (length_out, n) is added. If
    there are heads, y is written as (m // length_out, n // head_dim, length_out, head_dim). Where x is bfloat16 and the
    CPU multiplies pairs of it, w is rounded as well, and n_in has to be even.
    """
    comptime pairs = of_x == DType.bfloat16 and HAS_PAIRS
    comptime of_column = 2 if pairs else 1  # values that are multiplied together
    comptime Column = DType.float32 if pairs else of_x
    if source.n_in % of_column != 0:
        raise Error("products of bfloat16 take pairs, and there are ", source.n_in, " columns")
    var n_in = source.n_in // of_column  # columns, as are channels below
    var k = n_in * taps
    var chunk = ceildiv(ceildiv(n_in, ceildiv(k, DEPTH)), WIDTH) * WIDTH  # channels

    var n_panels = ceildiv(n, PANEL)
    var n_blocks = max(1, min(ceildiv(TASKS * n_cores(), n_panels), m // LEAST_ROWS))
    var n_tiles = ceildiv(ceildiv(m, TILE_ROWS), n_blocks)  # of a block

    comptime Tile = Array[Floats, TILE_ROWS * LANES]

    @always_inline
    def multiply_rows(mut sums: Tile, addresses: Array[Int, TILE_ROWS], panel: Pointer[Float, ...], depth: Int) {imm}:
        for j in range(depth):
            var ws = Array[Floats, LANES](fill=Floats(0))
            comptime for l in range(LANES):
                ws[l] = panel.unsafe_load[width=WIDTH](j * PANEL + l * WIDTH)
            comptime for r in range(TILE_ROWS):
                var row = Numbers[Column](unsafe_from_address=addresses[r])
                var factor = Floats(row[unsafe_offset=j].cast[DType.float32]())
                comptime for l in range(LANES):
                    sums[r * LANES + l] = multiply_add[pairs](factor, ws[l], sums[r * LANES + l])

    @always_inline
    def write[full: Bool](values: Floats, of_residual: Int, column: Int, place: Int) {imm}:
        """Write products of one row, as many as there are from `column` on, to their place in y."""
        var count = n - column
        var value = values
        if finish.has_bias:
            value += load[full](finish.bias.unsafe_offset(column), count)
        if finish.has_gelu:
            value = gelu(value)
        if finish.has_residual:
            value += load[full](finish.residual.unsafe_offset(of_residual + column), count)
        store[full](y.unsafe_offset(place), value, count)

    def work(task: Int) raises {imm}:
        var column = task % n_panels * PANEL
        var first_row = task // n_panels * n_tiles * TILE_ROWS
        var tiles = min(n_tiles, ceildiv(m - first_row, TILE_ROWS))
        var of_panel = Scratch(min(k, chunk * taps) * PANEL)
        var of_sums = Scratch((tiles if chunk < n_in else 1) * TILE_ROWS * PANEL)
        var zeros = List[Scalar[of_x]](length=chunk * of_column if taps > 1 else 0, fill=0)
        var panel = of_panel.pointer()
        var places = Array[Int, LANES](fill=0)
        comptime for l in range(LANES):
            places[l] = source.place_of_column(column + l * WIDTH)
        for channel in range(0, n_in, chunk):
            var n_channels = min(chunk, n_in - channel)
            for tap in range(taps):
                var of_tap = w.unsafe_offset((tap * n_in + channel) * of_column)
                var to = panel.unsafe_offset(tap * n_channels * PANEL)
                lay_out[pairs](results(to), of_tap, column, n - 1, k * of_column, n_channels, LANES)
            for tile in range(tiles):
                var row = first_row + tile * TILE_ROWS
                var kept = of_sums.pointer().unsafe_offset(tile * TILE_ROWS * PANEL if chunk < n_in else 0)
                var sums = Tile(fill=Floats(0))
                if channel > 0:
                    comptime for i in range(TILE_ROWS * LANES):
                        sums[i] = kept.unsafe_load[width=WIDTH](i * WIDTH)
                for tap in range(taps):
                    var addresses = Array[Int, TILE_ROWS](fill=0)
                    comptime for r in range(TILE_ROWS):
                        var at = source.offset(taps, min(row + r, m - 1), tap)
                        addresses[r] = Int(zeros.unsafe_ptr()) if at < 0 else Int(x.unsafe_offset(at + channel * of_column))
                    multiply_rows(sums, addresses, panel.unsafe_offset(tap * n_channels * PANEL), n_channels)
                comptime for i in range(TILE_ROWS * LANES):
                    kept.unsafe_store(i * WIDTH, sums[i])
                if channel + n_channels < n_in:
                    continue
                for r in range(TILE_ROWS):  # not unrolled: most of the code would be GELU's, and take its time to compile
                    var of_row = min(row + r, m - 1)
                    var place = source.place_of_row(of_row, n)
                    var of_residual = source.row_of_sequence(of_row) * n if finish.has_residual else 0
                    for l in range(LANES):
                        var values = kept.unsafe_load[width=WIDTH]((r * LANES + l) * WIDTH)
                        var first = column + l * WIDTH
                        if first + WIDTH <= n:
                            write[True](values, of_residual, first, place + places[l])
                        elif first < n:
                            write[False](values, of_residual, first, place + places[l])

    share(work, n_panels * n_blocks)
