"""Linear layers and convolutions as operations of graphs, for any number of rows."""

import extensibility
from extensibility import InputTensor, OutputTensor
from max.gpu.host import DeviceContext

from .gemm import Source, gemm
from .gpu_gemm import gemm_on_gpu, scores_on_gpu
from .gpu_tensor_gemm import tensor_gemm_on_gpu
from .gpu_tensor_linear import MOST_ROWS
from .linear import linear_for
from .vectors import Finish, Float, numbers, results, unread

comptime FEW = 15  # rows that `linear` has computed before a panel of w is laid out
comptime FEW_ON_GPU = 8  # of float32, that it reads weights once for


@always_inline
def gemm_for[
    type: DType,
    of_x: DType,
    out: DType,
    //,
    target: StaticString,
    taps: Int,
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
    ctx: DeviceContext,
) raises:
    """Do what `gemm` does, on the graph's device."""
    comptime if target == "cpu":
        var finish = Finish(numbers(bias), numbers(residual), has_bias, has_gelu, has_residual)
        gemm(results(y), numbers(x), numbers(w), finish, m, n, taps, source)
    elif of_x == DType.float32:
        gemm_on_gpu[taps, has_bias, has_gelu, has_residual](y, x, w, bias, residual, m, n, source, ctx)
    else:
        comptime assert type == of_x, "tensor cores take factors of the same type"
        var same = w.unsafe_bitcast[Scalar[of_x]]()
        tensor_gemm_on_gpu[taps, has_bias, has_gelu, has_residual](y, x, same, bias, residual, m, n, source, ctx)


@always_inline
def matmul[
    type: DType,
    of_x: DType,
    out: DType,
    //,
    target: StaticString,
    may_be_few: Bool,
    has_bias: Bool,
    has_gelu: Bool,
    has_residual: Bool,
](
    y: OutputTensor[dtype=out, rank=3, ...],
    x: InputTensor[dtype=of_x, rank=3, ...],
    w: InputTensor[dtype=type, rank=2, ...],
    bias: Pointer[mut=False, Float, ...],
    residual: Pointer[mut=False, Float, ...],
    ctx: DeviceContext,
) raises:
    """Compute y (batch, length, n) = x (batch, length, k) @ w (n, k).T [+ bias (n)] [then GELU] [+ residual, like y].

    On the tensor cores of a GPU, if x is of half width; w is of the same type then. Unless there `may_be_few` rows, the
    code that reads weights once for few of them is left out.
    """
    var m = x.dim_size(0) * x.dim_size(1)
    var n = w.dim_size(0)
    var k = w.dim_size(1)
    comptime few_on_gpu = FEW_ON_GPU if of_x == DType.float32 else MOST_ROWS
    comptime if may_be_few:
        if m <= (FEW if target == "cpu" else few_on_gpu):
            linear_for[target, has_bias, has_residual, has_gelu](
                y.unsafe_ptr(), x.unsafe_ptr(), w.unsafe_ptr(), bias, residual, m, n, k, ctx
            )
            return
    gemm_for[target, 1, has_bias, has_gelu, has_residual](
        y.unsafe_ptr(), x.unsafe_ptr(), w.unsafe_ptr(), bias, residual, m, n, Source(k, m, 1, m, 0), ctx
    )


@extensibility.register("whisper_matmul")
struct Matmul[may_be_few: Bool]:
    """A linear layer without bias."""

    @staticmethod
    def execute[
        type: DType, of_x: DType, out: DType, target: StaticString
    ](
        y: OutputTensor[dtype=out, rank=3, ...],
        x: InputTensor[dtype=of_x, rank=3, ...],
        w: InputTensor[dtype=type, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        var nothing = unread(x.unsafe_ptr())
        matmul[target, Self.may_be_few, False, False, False](y, x, w, nothing, nothing, ctx)


@extensibility.register("whisper_matmul_bias")
struct MatmulBias[may_be_few: Bool]:
    """A linear layer."""

    @staticmethod
    def execute[
        type: DType, of_x: DType, out: DType, target: StaticString
    ](
        y: OutputTensor[dtype=out, rank=3, ...],
        x: InputTensor[dtype=of_x, rank=3, ...],
        w: InputTensor[dtype=type, rank=2, ...],
        bias: InputTensor[dtype=DType.float32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        matmul[target, Self.may_be_few, True, False, False](y, x, w, bias.unsafe_ptr(), unread(x.unsafe_ptr()), ctx)


@extensibility.register("whisper_matmul_bias_gelu")
struct MatmulBiasGelu[may_be_few: Bool]:
    """A linear layer, then GELU."""

    @staticmethod
    def execute[
        type: DType, of_x: DType, out: DType, target: StaticString
    ](
        y: OutputTensor[dtype=out, rank=3, ...],
        x: InputTensor[dtype=of_x, rank=3, ...],
        w: InputTensor[dtype=type, rank=2, ...],
        bias: InputTensor[dtype=DType.float32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        matmul[target, Self.may_be_few, True, True, False](y, x, w, bias.unsafe_ptr(), unread(x.unsafe_ptr()), ctx)


@extensibility.register("whisper_matmul_bias_add")
struct MatmulBiasAdd[may_be_few: Bool]:
    """A linear layer, and a residual (batch, length, n) added to it."""

    @staticmethod
    def execute[
        type: DType, of_x: DType, out: DType, target: StaticString
    ](
        y: OutputTensor[dtype=out, rank=3, ...],
        x: InputTensor[dtype=of_x, rank=3, ...],
        w: InputTensor[dtype=type, rank=2, ...],
        bias: InputTensor[dtype=DType.float32, rank=1, ...],
        residual: InputTensor[dtype=DType.float32, rank=3, ...],
        ctx: DeviceContext,
    ) raises:
        matmul[target, Self.may_be_few, True, False, True](y, x, w, bias.unsafe_ptr(), residual.unsafe_ptr(), ctx)


@always_inline
def heads[
    type: DType, of_x: DType, out: DType, //, target: StaticString, has_bias: Bool
](
    y: OutputTensor[dtype=out, rank=4, ...],
    x: InputTensor[dtype=of_x, rank=3, ...],
    w: InputTensor[dtype=type, rank=2, ...],
    bias: Pointer[mut=False, Float, ...],
    ctx: DeviceContext,
) raises:
    """Compute y (batch, n_head, length, head_dim) = x (batch, length, k) @ w (n, k).T [+ bias (n)], laid out by heads.
    """
    var length = x.dim_size(1)
    gemm_for[target, 1, has_bias, False, False](
        y.unsafe_ptr(),
        x.unsafe_ptr(),
        w.unsafe_ptr(),
        bias,
        unread(x.unsafe_ptr()),
        x.dim_size(0) * length,
        w.dim_size(0),
        Source(x.dim_size(2), length, 1, length, y.dim_size(3)),
        ctx,
    )


@extensibility.register("whisper_heads")
struct Heads:
    """A linear layer without bias whose outputs are heads, which must be whole numbers of vectors."""

    @staticmethod
    def execute[
        type: DType, of_x: DType, out: DType, target: StaticString
    ](
        y: OutputTensor[dtype=out, rank=4, ...],
        x: InputTensor[dtype=of_x, rank=3, ...],
        w: InputTensor[dtype=type, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        heads[target, False](y, x, w, unread(x.unsafe_ptr()), ctx)


@extensibility.register("whisper_heads_bias")
struct HeadsBias:
    """A linear layer whose outputs are heads, which must be whole numbers of vectors."""

    @staticmethod
    def execute[
        type: DType, of_x: DType, out: DType, target: StaticString
    ](
        y: OutputTensor[dtype=out, rank=4, ...],
        x: InputTensor[dtype=of_x, rank=3, ...],
        w: InputTensor[dtype=type, rank=2, ...],
        bias: InputTensor[dtype=DType.float32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        heads[target, True](y, x, w, bias.unsafe_ptr(), ctx)


@always_inline
def convolution[
    type: DType, of_x: DType, out: DType, //, target: StaticString, has_positions: Bool
](
    y: OutputTensor[dtype=out, rank=3, ...],
    x: InputTensor[dtype=of_x, rank=3, ...],
    w: InputTensor[dtype=type, rank=3, ...],
    bias: Pointer[mut=False, Float, ...],
    positions: Pointer[mut=False, Float, ...],
    stride: Int,
    ctx: DeviceContext,
) raises:
    """A convolution of width 3 and padding 1, then GELU [+ positions (length_out, n_out)].

    y (batch, length_out, n_out); x (batch, length, n_in); w (n_out, 3, n_in)
    """
    gemm_for[target, 3, True, True, has_positions](
        y.unsafe_ptr(),
        x.unsafe_ptr(),
        w.unsafe_ptr(),
        bias,
        positions,
        y.dim_size(0) * y.dim_size(1),
        y.dim_size(2),
        Source(x.dim_size(2), x.dim_size(1), stride, y.dim_size(1), 0),
        ctx,
    )


@extensibility.register("whisper_conv_gelu")
struct ConvGelu[stride: Int]:
    """A convolution of width 3, then GELU."""

    @staticmethod
    def execute[
        type: DType, of_x: DType, out: DType, target: StaticString
    ](
        y: OutputTensor[dtype=out, rank=3, ...],
        x: InputTensor[dtype=of_x, rank=3, ...],
        w: InputTensor[dtype=type, rank=3, ...],
        bias: InputTensor[dtype=DType.float32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        convolution[target, False](y, x, w, bias.unsafe_ptr(), unread(x.unsafe_ptr()), Self.stride, ctx)


@extensibility.register("whisper_conv_gelu_add")
struct ConvGeluAdd[stride: Int]:
    """A convolution of width 3, then GELU, and the same positions (length_out, n_out) added to each of the batch."""

    @staticmethod
    def execute[
        type: DType, of_x: DType, out: DType, target: StaticString
    ](
        y: OutputTensor[dtype=out, rank=3, ...],
        x: InputTensor[dtype=of_x, rank=3, ...],
        w: InputTensor[dtype=type, rank=3, ...],
        bias: InputTensor[dtype=DType.float32, rank=1, ...],
        positions: InputTensor[dtype=DType.float32, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        convolution[target, True](y, x, w, bias.unsafe_ptr(), positions.unsafe_ptr(), Self.stride, ctx)


@extensibility.register("whisper_scores")
struct Scores:
    """The products of queries with keys, head by head.

    y (n_audio, n_head, n_queries, n_keys); q (n_audio, n_head, n_queries, head_dim); keys (n_audio, n_head, n_keys,
    head_dim)
    """

    @staticmethod
    def execute[
        target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=4, ...],
        q: InputTensor[dtype=DType.float32, rank=4, ...],
        keys: InputTensor[dtype=DType.float32, rank=4, ...],
        ctx: DeviceContext,
    ) raises:
        var n_heads = q.dim_size(0) * q.dim_size(1)
        var n_queries = q.dim_size(2)
        var n_keys = keys.dim_size(2)
        var head_dim = q.dim_size(3)
        var yp = y.unsafe_ptr()
        var qp = q.unsafe_ptr()
        var kp = keys.unsafe_ptr()

        comptime if target == "cpu":
            var nothing = Finish(unread(qp), unread(qp), False, False, False)
            for head in range(n_heads):
                gemm(
                    results(yp.unsafe_offset(head * n_queries * n_keys)),
                    numbers(qp.unsafe_offset(head * n_queries * head_dim)),
                    numbers(kp.unsafe_offset(head * n_keys * head_dim)),
                    nothing,
                    n_queries,
                    n_keys,
                    1,
                    Source(head_dim, n_queries, 1, n_queries, 0),
                )
        else:
            scores_on_gpu(yp, qp, kp, n_heads, n_queries, n_keys, head_dim, ctx)
