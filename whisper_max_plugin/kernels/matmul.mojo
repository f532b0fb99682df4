"""Linear layers and convolutions as operations of graphs, for any number of rows."""

import extensibility
from extensibility import InputTensor, OutputTensor
from max.gpu.host import DeviceContext

from .gemm import Float, Source, gemm
from .linear import linear

comptime FEW = 5  # rows that `linear` reads weights once for


@always_inline
def matmul[
    type: DType, has_bias: Bool, gelu: Bool, has_residual: Bool
](
    y: OutputTensor[dtype=DType.float32, rank=3, ...],
    x: InputTensor[dtype=DType.float32, rank=3, ...],
    w: InputTensor[dtype=type, rank=2, ...],
    bias: Pointer[Float, ...],
    residual: Pointer[Float, ...],
) raises:
    """Compute y (batch, length, n) = x (batch, length, k) @ w (n, k).T [+ bias (n)] [then GELU] [+ residual, like y].
    """
    var m = x.dim_size(0) * x.dim_size(1)
    var n = w.dim_size(0)
    var k = w.dim_size(1)
    if m <= FEW:
        linear[type, has_bias, has_residual, gelu](
            y.unsafe_ptr(), x.unsafe_ptr(), w.unsafe_ptr(), bias, residual, m, n, k
        )
    else:
        gemm[type, 1, has_bias, gelu, has_residual, False](
            y.unsafe_ptr(), x.unsafe_ptr(), w.unsafe_ptr(), bias, residual, m, n, Source(k, m, 1, m, 1)
        )


@extensibility.register("whisper_matmul")
struct Matmul:
    """A linear layer without bias."""

    @staticmethod
    def execute[
        type: DType, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=3, ...],
        x: InputTensor[dtype=DType.float32, rank=3, ...],
        w: InputTensor[dtype=type, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        matmul[type, False, False, False](y, x, w, x.unsafe_ptr(), x.unsafe_ptr())


@extensibility.register("whisper_matmul_bias")
struct MatmulBias:
    """A linear layer."""

    @staticmethod
    def execute[
        type: DType, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=3, ...],
        x: InputTensor[dtype=DType.float32, rank=3, ...],
        w: InputTensor[dtype=type, rank=2, ...],
        bias: InputTensor[dtype=DType.float32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        matmul[type, True, False, False](y, x, w, bias.unsafe_ptr(), x.unsafe_ptr())


@extensibility.register("whisper_matmul_bias_gelu")
struct MatmulBiasGelu:
    """A linear layer, then GELU."""

    @staticmethod
    def execute[
        type: DType, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=3, ...],
        x: InputTensor[dtype=DType.float32, rank=3, ...],
        w: InputTensor[dtype=type, rank=2, ...],
        bias: InputTensor[dtype=DType.float32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        matmul[type, True, True, False](y, x, w, bias.unsafe_ptr(), x.unsafe_ptr())


@extensibility.register("whisper_matmul_bias_add")
struct MatmulBiasAdd:
    """A linear layer, and a residual (batch, length, n) added to it."""

    @staticmethod
    def execute[
        type: DType, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=3, ...],
        x: InputTensor[dtype=DType.float32, rank=3, ...],
        w: InputTensor[dtype=type, rank=2, ...],
        bias: InputTensor[dtype=DType.float32, rank=1, ...],
        residual: InputTensor[dtype=DType.float32, rank=3, ...],
        ctx: DeviceContext,
    ) raises:
        matmul[type, True, False, True](y, x, w, bias.unsafe_ptr(), residual.unsafe_ptr())


@always_inline
def heads[
    type: DType, has_bias: Bool
](
    y: OutputTensor[dtype=DType.float32, rank=4, ...],
    x: InputTensor[dtype=DType.float32, rank=3, ...],
    w: InputTensor[dtype=type, rank=2, ...],
    bias: Pointer[Float, ...],
) raises:
    """Compute y (batch, n_head, length, head_dim) = x (batch, length, k) @ w (n, k).T [+ bias (n)], laid out by heads.
    """
    var length = x.dim_size(1)
    gemm[type, 1, has_bias, False, False, True](
        y.unsafe_ptr(),
        x.unsafe_ptr(),
        w.unsafe_ptr(),
        bias,
        x.unsafe_ptr(),
        x.dim_size(0) * length,
        w.dim_size(0),
        Source(x.dim_size(2), length, 1, length, y.dim_size(3)),
    )


@extensibility.register("whisper_heads")
struct Heads:
    """A linear layer without bias whose outputs are heads, which must be whole numbers of vectors."""

    @staticmethod
    def execute[
        type: DType, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=4, ...],
        x: InputTensor[dtype=DType.float32, rank=3, ...],
        w: InputTensor[dtype=type, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        heads[type, False](y, x, w, x.unsafe_ptr())


@extensibility.register("whisper_heads_bias")
struct HeadsBias:
    """A linear layer whose outputs are heads, which must be whole numbers of vectors."""

    @staticmethod
    def execute[
        type: DType, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=4, ...],
        x: InputTensor[dtype=DType.float32, rank=3, ...],
        w: InputTensor[dtype=type, rank=2, ...],
        bias: InputTensor[dtype=DType.float32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        heads[type, True](y, x, w, bias.unsafe_ptr())


@always_inline
def convolution[
    type: DType, has_positions: Bool
](
    y: OutputTensor[dtype=DType.float32, rank=3, ...],
    x: InputTensor[dtype=DType.float32, rank=3, ...],
    w: InputTensor[dtype=type, rank=3, ...],
    bias: Pointer[Float, ...],
    positions: Pointer[Float, ...],
    stride: Int,
) raises:
    """A convolution of width 3 and padding 1, then GELU [+ positions (length_out, n_out)].

    y (batch, length_out, n_out); x (batch, length, n_in); w (n_out, n_in, 3), as torch holds it
    """
    gemm[type, 3, True, True, has_positions, False](
        y.unsafe_ptr(),
        x.unsafe_ptr(),
        w.unsafe_ptr(),
        bias,
        positions,
        y.dim_size(0) * y.dim_size(1),
        y.dim_size(2),
        Source(x.dim_size(2), x.dim_size(1), stride, y.dim_size(1), 1),
    )


@extensibility.register("whisper_conv_gelu")
struct ConvGelu[stride: Int]:
    """A convolution of width 3, then GELU."""

    @staticmethod
    def execute[
        type: DType, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=3, ...],
        x: InputTensor[dtype=DType.float32, rank=3, ...],
        w: InputTensor[dtype=type, rank=3, ...],
        bias: InputTensor[dtype=DType.float32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        convolution[type, False](y, x, w, bias.unsafe_ptr(), x.unsafe_ptr(), Self.stride)


@extensibility.register("whisper_conv_gelu_add")
struct ConvGeluAdd[stride: Int]:
    """A convolution of width 3, then GELU, and the same positions (length_out, n_out) added to each of the batch."""

    @staticmethod
    def execute[
        type: DType, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=3, ...],
        x: InputTensor[dtype=DType.float32, rank=3, ...],
        w: InputTensor[dtype=type, rank=3, ...],
        bias: InputTensor[dtype=DType.float32, rank=1, ...],
        positions: InputTensor[dtype=DType.float32, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        convolution[type, True](y, x, w, bias.unsafe_ptr(), positions.unsafe_ptr(), Self.stride)
