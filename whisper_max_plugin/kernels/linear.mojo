"""Linear layers of few rows: weights are read once, as they are stored, and accumulated in float32."""

import extensibility
from extensibility import InputTensor, OutputTensor
from extensibility import _MutableInputTensor as MutableInputTensor
from max.gpu.host import DeviceContext
from std.math import ceildiv
from std.sys import CompilationTarget, size_of

from .gpu_linear import linear_on_gpu
from .gpu_tensor_linear import tensor_linear_on_gpu
from .sharing import share
from .vectors import AHEAD, Finish, Floats, LINE, Numbers, Results, WIDTH, fetch, gelu, numbers, results, sum_each

comptime HAS_32_REGISTERS = CompilationTarget.has_avx512f() or CompilationTarget.has_neon()  # and not 16
comptime MOST_ROWS = 8 if HAS_32_REGISTERS else 5  # that read a weight together
comptime SUMS = 24 if HAS_32_REGISTERS else 12  # of rows and outputs
comptime CHUNK_BYTES = 64 * 1024  # of weights, for one task: small beside a cache, large beside the cost of a task


def outputs_of_tile(rows: Int) -> Int:
    """Return how many outputs are summed up together for some rows, so that the sums fill the registers."""
    var outputs = min(WIDTH, 8 if rows == 1 else 4)
    while rows * outputs > SUMS:
        outputs //= 2
    return outputs


@always_inline
def tile[
    type: DType, of_x: DType, //, rows: Int, outputs: Int
](
    x: Pointer[Scalar[of_x], ...],
    w: Pointer[Scalar[type], ...],
    k: Int,
) -> Array[SIMD[DType.float32, outputs], rows]:
    """Products of `rows` rows of x and `outputs` rows of w, each of length k."""
    comptime of_line = max(WIDTH, LINE // size_of[type]())  # values
    var sums = Array[Floats, rows * outputs](fill=Floats(0))
    var vector_end = k - k % WIDTH
    for j in range(0, vector_end, WIDTH):
        var xs = Array[Floats, rows](fill=Floats(0))
        comptime for m in range(rows):
            xs[m] = x.unsafe_load[width=WIDTH](m * k + j).cast[DType.float32]()
        comptime for n in range(outputs):
            var ws = w.unsafe_load[width=WIDTH](n * k + j).cast[DType.float32]()
            if j % of_line == 0:
                fetch[WIDTH](w.unsafe_offset(n * k + j + AHEAD // size_of[type]()))
            comptime for m in range(rows):
                sums[m * outputs + n] = ws.fma(xs[m], sums[m * outputs + n])
    var result = Array[SIMD[DType.float32, outputs], rows](fill=SIMD[DType.float32, outputs](0))
    comptime for m in range(rows):
        result[m] = sum_each[outputs](sums, m * outputs)
        for j in range(vector_end, k):
            comptime for n in range(outputs):
                var factor = x[unsafe_offset = m * k + j].cast[DType.float32]()
                result[m][n] += w[unsafe_offset = n * k + j].cast[DType.float32]() * factor
    return result^


@no_inline
def gelu_apart[width: Int](x: SIMD[DType.float32, width]) -> SIMD[DType.float32, width]:
    """Return `gelu`, whose code would take most of the time that linear layers take to compile, were it everywhere."""
    return gelu(x)


@always_inline
def outputs_of_task[type: DType](k: Int, bytes: Int = CHUNK_BYTES) -> Int:
    """Return how many outputs of a linear layer are one task, so that it reads about `bytes`."""
    return max(8, bytes // (k * size_of[type]()) // 8 * 8)


@no_inline
def linear_part[
    type: DType, of_x: DType, out: DType, //
](
    y: Results[out],
    x: Numbers[of_x],
    w: Numbers[type],
    scales: Numbers[],
    finish: Finish,
    m: Int,
    n: Int,
    k: Int,
    first: Int,
    last: Int,
):
    """Compute the outputs from `first` to `last` of what `linear` computes."""

    @always_inline
    def write[outputs: Int](row: Int, output: Int, products: SIMD[DType.float32, outputs]) {imm}:
        var values = products
        comptime if type == DType.int8:
            values *= scales.unsafe_load[width=outputs](output)
        if finish.has_bias:
            values += finish.bias.unsafe_load[width=outputs](output)
        if finish.has_gelu:
            values = gelu_apart(values)
        if finish.has_residual:
            values += finish.residual.unsafe_load[width=outputs](row * n + output)
        y.unsafe_store(row * n + output, values.cast[out]())

    @always_inline
    def block[rows: Int, outputs: Int](row: Int, output: Int) {imm}:
        var products = tile[rows, outputs](x.unsafe_offset(row * k), w.unsafe_offset(output * k), k)
        comptime for i in range(rows):
            write[outputs](row + i, output, products[i])

    var rows_at_once = ceildiv(m, ceildiv(m, MOST_ROWS))  # 8 rows as 4 and 4, and not as 5 and 3
    var row = 0
    while row < m:  # the weights stay in a cache for further rows
        var rows = min(rows_at_once, m - row)
        comptime for r in range(1, MOST_ROWS + 1):
            if rows == r:
                comptime outputs = outputs_of_tile(r)
                var output = first
                while output + outputs <= last:
                    block[r, outputs](row, output)
                    output += outputs
                while output < last:
                    for i in range(r):
                        block[1, 1](row + i, output)
                    output += 1
        row += rows


@no_inline
def linear[
    type: DType, of_x: DType, out: DType, //
](
    y: Results[out],
    x: Numbers[of_x],
    w: Numbers[type],
    scales: Numbers[],
    finish: Finish,
    m: Int,
    n: Int,
    k: Int,
) raises:
    """Compute y (m, n) = x (m, k) @ w (n, k).T, with a `finish`; w of int8 is multiplied by scales (n)."""
    var per_task = outputs_of_task[type](k)

    def work(task: Int) raises {imm}:
        var first = task * per_task
        linear_part(y, x, w, scales, finish, m, n, k, first, min(n, first + per_task))

    share(work, ceildiv(n, per_task))


@always_inline
def linear_for[
    type: DType, of_x: DType, out: DType, //, target: StaticString, has_bias: Bool, has_residual: Bool, has_gelu: Bool
](
    y: Pointer[mut=True, Scalar[out], ...],
    x: Pointer[mut=False, Scalar[of_x], ...],
    w: Pointer[mut=False, Scalar[type], ...],
    bias: Pointer[mut=False, Scalar[DType.float32], ...],
    residual: Pointer[mut=False, Scalar[DType.float32], ...],
    m: Int,
    n: Int,
    k: Int,
    ctx: DeviceContext,
) raises:
    """Do what `linear` does, on the graph's device."""
    comptime if target == "cpu":
        var finish = Finish(numbers(bias), numbers(residual), has_bias, has_gelu, has_residual)
        linear(results(y), numbers(x), numbers(w), numbers(bias), finish, m, n, k)
    elif of_x == DType.float32:
        linear_on_gpu[
            has_norm=False, has_bias=has_bias, has_residual=has_residual, has_gelu=has_gelu, overlaps=False
        ](y, x, bias, bias, w, bias, residual, m, n, k, ctx)
    else:
        tensor_linear_on_gpu[
            has_norm=False, has_bias=has_bias, has_residual=has_residual, has_gelu=has_gelu, overlaps=False
        ](y, x, bias, bias, w, bias, residual, m, n, k, ctx)


@extensibility.register("whisper_project")
struct Project:
    """Write ``x @ w.T`` to memory that is there, so that it can be filtered in place."""

    @staticmethod
    def execute[
        type: DType, target: StaticString
    ](
        y: MutableInputTensor[dtype=DType.float32, rank=2, ...],
        x: InputTensor[dtype=DType.float32, rank=2, ...],
        w: InputTensor[dtype=type, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        var p = x.unsafe_ptr()
        linear_for[target, False, False, False](
            y.unsafe_ptr(), p, w.unsafe_ptr(), p, p, x.dim_size(0), w.dim_size(0), w.dim_size(1), ctx
        )
