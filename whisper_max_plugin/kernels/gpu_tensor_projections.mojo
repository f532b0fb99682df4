"""What attention takes of the same rows, in one launch on the tensor cores of a GPU, which one product would not fill."""

import extensibility
from extensibility import InputTensor, OutputTensor
from max.gpu import block_idx
from max.gpu.host import DeviceContext
from std.math import ceildiv

from .gemm import Source
from .gpu_tensor_gemm import ENOUGH, THREADS, check_chunks, tensor_gemm_block
from .vectors import Numbers, Results, numbers, results


@fieldwise_init
struct Projection[type: DType](TrivialRegisterPassable):
    """One of the products: y (batch, n // head_dim, length, head_dim) = x @ w (n, k).T + bias (n)."""

    var y: Results[Self.type]
    var w: Numbers[Self.type]
    var bias: Numbers[]
    var head_dim: Int32


@always_inline
def projections_block[
    type: DType, //, side: Int
](
    first: Projection[type],
    second: Projection[type],
    third: Projection[type],
    x: Pointer[mut=False, Scalar[type], ...],
    m: Int,
    n: Int,
    k: Int,
    length: Int,
):
    """Compute one tile of one of the products of x (batch, length, k), of m rows."""
    var number = Int(block_idx.z)
    var it = first if number == 0 else (second if number == 1 else third)
    var source = Source(k, length, 1, length, Int(it.head_dim))
    tensor_gemm_block[1, side, True, False, False](it.y, x, it.w, it.bias, it.bias, m, n, source)


@always_inline
def project[
    type: DType, //
](
    first: Projection[type],
    second: Projection[type],
    third: Projection[type],
    count: Int,
    x: InputTensor[dtype=type, rank=3, ...],
    n: Int,
    ctx: DeviceContext,
) raises:
    """Launch the first `count` of the products, in large tiles where there are enough of them."""
    var m_ = Int32(x.dim_size(0) * x.dim_size(1))
    var n_ = Int32(n)
    var k_ = Int32(x.dim_size(2))
    var length_ = Int32(x.dim_size(1))
    check_chunks(x.dim_size(2))
    var xp = numbers(x.unsafe_ptr())
    comptime for side in [64, 128]:
        var large = ceildiv(Int(m_), 128) * ceildiv(n, 128) * count >= ENOUGH
        if large == (side == 128):

            def kernel() {var}:
                projections_block[side](first, second, third, xp, Int(m_), Int(n_), Int(k_), Int(length_))

            ctx.enqueue_function(
                kernel, grid_dim=(ceildiv(n, side), ceildiv(Int(m_), side), count), block_dim=THREADS
            )


@always_inline
def projection[
    type: DType, //
](
    y: OutputTensor[dtype=type, rank=4, ...],
    w: InputTensor[dtype=type, rank=2, ...],
    bias: InputTensor[dtype=DType.float32, rank=1, ...],
) -> Projection[type]:
    return Projection(
        results(y.unsafe_ptr()), numbers(w.unsafe_ptr()), numbers(bias.unsafe_ptr()), Int32(y.dim_size(3))
    )


@extensibility.register("whisper_query_key_value")
struct QueryKeyValue:
    """What a layer's self-attention takes; on a GPU, of half width."""

    @staticmethod
    def execute[
        type: DType, target: StaticString
    ](
        q: OutputTensor[dtype=type, rank=4, ...],
        keys: OutputTensor[dtype=type, rank=4, ...],
        values: OutputTensor[dtype=type, rank=4, ...],
        x: InputTensor[dtype=type, rank=3, ...],
        q_weight: InputTensor[dtype=type, rank=2, ...],
        q_bias: InputTensor[dtype=DType.float32, rank=1, ...],
        key_weight: InputTensor[dtype=type, rank=2, ...],
        key_bias: InputTensor[dtype=DType.float32, rank=1, ...],
        value_weight: InputTensor[dtype=type, rank=2, ...],
        value_bias: InputTensor[dtype=DType.float32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target != "cpu", "the CPU computes them one after the other"
        project(
            projection(q, q_weight, q_bias),
            projection(keys, key_weight, key_bias),
            projection(values, value_weight, value_bias),
            3,
            x,
            q_weight.dim_size(0),
            ctx,
        )


@extensibility.register("whisper_key_value")
struct KeyValue:
    """What a layer's cross-attention takes of the audio; on a GPU, of half width."""

    @staticmethod
    def execute[
        type: DType, target: StaticString
    ](
        keys: OutputTensor[dtype=type, rank=4, ...],
        values: OutputTensor[dtype=type, rank=4, ...],
        x: InputTensor[dtype=type, rank=3, ...],
        key_weight: InputTensor[dtype=type, rank=2, ...],
        key_bias: InputTensor[dtype=DType.float32, rank=1, ...],
        value_weight: InputTensor[dtype=type, rank=2, ...],
        value_bias: InputTensor[dtype=DType.float32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target != "cpu", "the CPU computes them one after the other"
        var of_values = projection(values, value_weight, value_bias)
        project(projection(keys, key_weight, key_bias), of_values, of_values, 2, x, key_weight.dim_size(0), ctx)
