"""The operations of a step that are a GPU's alone: a CPU computes all layers in one, and its search in another."""

import extensibility
from extensibility import InputTensor, OutputTensor
from extensibility import _MutableInputTensor as MutableInputTensor
from max.gpu.host import DeviceContext
from std.math import ceildiv

from .gpu_embed import embed_on_gpu
from .gpu_linear import linear_on_gpu
from .gpu_search import PART, search_merge_on_gpu, search_parts_on_gpu
from .gpu_tensor_linear import tensor_linear_on_gpu
from .vectors import Float


@extensibility.register("whisper_embed")
struct Embed:
    """Read a step's tokens (n_audio, n_group) and positions (batch), which its end overwrites.

    x (batch, n_state) gets for each token its embedding and that of its position, `at` (batch) the positions.
    """

    @staticmethod
    def execute[
        type: DType, target: StaticString
    ](
        x: OutputTensor[dtype=DType.float32, rank=2, ...],
        at: OutputTensor[dtype=DType.int64, rank=1, ...],
        tokens: MutableInputTensor[dtype=DType.int64, rank=2, ...],
        positions: MutableInputTensor[dtype=DType.int64, rank=1, ...],
        token_embedding: InputTensor[dtype=type, rank=2, ...],
        positional_embedding: InputTensor[dtype=DType.float32, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "gpu", "of a GPU's step"
        embed_on_gpu(
            x.unsafe_ptr(),
            at.unsafe_ptr(),
            tokens.unsafe_ptr(),
            positions.unsafe_ptr(),
            token_embedding.unsafe_ptr(),
            positional_embedding.unsafe_ptr(),
            x.dim_size(0),
            x.dim_size(1),
            ctx,
        )


@always_inline
def few_rows[
    type: DType,
    //,
    target: StaticString,
    rounded: Bool,
    has_norm: Bool = False,
    has_bias: Bool = True,
    has_residual: Bool = False,
    has_gelu: Bool = False,
](
    y: Pointer[mut=True, Float, ...],
    x: Pointer[mut=False, Float, ...],
    norm: Pointer[mut=False, Float, ...],
    norm_bias: Pointer[mut=False, Float, ...],
    w: InputTensor[dtype=type, rank=2, ...],
    bias: Pointer[mut=False, Float, ...],
    residual: Pointer[mut=False, Float, ...],
    m: Int,
    ctx: DeviceContext,
) raises:
    """Compute y (m, n) of x (m, k) and w (n, k); `rounded` to the type of w, x is multiplied on tensor cores."""
    comptime assert target == "gpu", "of a GPU's step"
    var n = w.dim_size(0)
    var k = w.dim_size(1)
    comptime if rounded:
        tensor_linear_on_gpu[has_norm, has_bias, has_residual, has_gelu, overlaps=True](
            y, x, norm, norm_bias, w.unsafe_ptr(), bias, residual, m, n, k, ctx
        )
    else:
        linear_on_gpu[has_norm, has_bias, has_residual, has_gelu, overlaps=True](
            y, x, norm, norm_bias, w.unsafe_ptr(), bias, residual, m, n, k, ctx
        )


@extensibility.register("whisper_norm_linear")
struct NormLinear[rounded: Bool]:
    """A layer norm and a linear layer: y (m, n) = layer_norm(x) (m, k) @ w (n, k).T + bias."""

    @staticmethod
    def execute[
        type: DType, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        x: InputTensor[dtype=DType.float32, rank=2, ...],
        norm: InputTensor[dtype=DType.float32, rank=1, ...],
        norm_bias: InputTensor[dtype=DType.float32, rank=1, ...],
        w: InputTensor[dtype=type, rank=2, ...],
        bias: InputTensor[dtype=DType.float32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        var b = bias.unsafe_ptr()
        few_rows[target, Self.rounded, has_norm=True](
            y.unsafe_ptr(), x.unsafe_ptr(), norm.unsafe_ptr(), norm_bias.unsafe_ptr(), w, b, b, x.dim_size(0), ctx
        )


@extensibility.register("whisper_norm_linear_gelu")
struct NormLinearGelu[rounded: Bool]:
    """A layer norm, a linear layer, then GELU."""

    @staticmethod
    def execute[
        type: DType, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        x: InputTensor[dtype=DType.float32, rank=2, ...],
        norm: InputTensor[dtype=DType.float32, rank=1, ...],
        norm_bias: InputTensor[dtype=DType.float32, rank=1, ...],
        w: InputTensor[dtype=type, rank=2, ...],
        bias: InputTensor[dtype=DType.float32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        var b = bias.unsafe_ptr()
        few_rows[target, Self.rounded, has_norm=True, has_gelu=True](
            y.unsafe_ptr(), x.unsafe_ptr(), norm.unsafe_ptr(), norm_bias.unsafe_ptr(), w, b, b, x.dim_size(0), ctx
        )


@extensibility.register("whisper_linear_add")
struct LinearAdd[rounded: Bool]:
    """A linear layer, and a residual (m, n) added to it."""

    @staticmethod
    def execute[
        type: DType, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        x: InputTensor[dtype=DType.float32, rank=2, ...],
        w: InputTensor[dtype=type, rank=2, ...],
        bias: InputTensor[dtype=DType.float32, rank=1, ...],
        residual: InputTensor[dtype=DType.float32, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        var b = bias.unsafe_ptr()
        few_rows[target, Self.rounded, has_residual=True](
            y.unsafe_ptr(), x.unsafe_ptr(), b, b, w, b, residual.unsafe_ptr(), x.dim_size(0), ctx
        )


@extensibility.register("whisper_norm_project")
struct NormProject[rounded: Bool]:
    """A layer norm and a projection without bias, to memory that is there, so that it can be filtered in place."""

    @staticmethod
    def execute[
        type: DType, target: StaticString
    ](
        y: MutableInputTensor[dtype=DType.float32, rank=2, ...],
        x: InputTensor[dtype=DType.float32, rank=2, ...],
        norm: InputTensor[dtype=DType.float32, rank=1, ...],
        norm_bias: InputTensor[dtype=DType.float32, rank=1, ...],
        w: InputTensor[dtype=type, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        var b = norm_bias.unsafe_ptr()
        few_rows[target, Self.rounded, has_norm=True, has_bias=False](
            y.unsafe_ptr(), x.unsafe_ptr(), norm.unsafe_ptr(), b, w, b, b, x.dim_size(0), ctx
        )


@extensibility.register("whisper_search_parts")
struct SearchParts:
    """The first half of `Search`: each block filters and ranks `PART` tokens of a row, its text and its timestamps apart.

    totals (batch, n_parts, 2, 2): of each kind the largest logit, and the sum of ``exp(logit - largest)``; best and tokens
    (batch, n_parts, 2, k), the best first; logits and what follows as in `Search`.
    """

    @staticmethod
    def execute[
        target: StaticString
    ](
        totals: OutputTensor[dtype=DType.float32, rank=4, ...],
        best: OutputTensor[dtype=DType.float32, rank=4, ...],
        tokens: OutputTensor[dtype=DType.int32, rank=4, ...],
        logits: MutableInputTensor[dtype=DType.float32, rank=2, ...],
        suppressed: InputTensor[dtype=DType.int64, rank=1, ...],
        ranges: InputTensor[dtype=DType.int64, rank=2, ...],
        temperatures: InputTensor[dtype=DType.float32, rank=1, ...],
        seeds: InputTensor[dtype=DType.int64, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "gpu", "a CPU takes `Search`"
        if totals.dim_size(1) != ceildiv(logits.dim_size(1), PART):
            raise Error("the graph has another number of parts of a row than the blocks that search them")
        search_parts_on_gpu(
            totals.unsafe_ptr(),
            best.unsafe_ptr(),
            tokens.unsafe_ptr(),
            logits.unsafe_ptr(),
            suppressed.unsafe_ptr(),
            ranges.unsafe_ptr(),
            temperatures.unsafe_ptr(),
            seeds.unsafe_ptr(),
            logits.dim_size(0),
            logits.dim_size(1),
            suppressed.dim_size(0),
            best.dim_size(3),
            ctx,
        )


@extensibility.register("whisper_search_merge")
struct SearchMerge:
    """The second half: whether timestamps alone are left, and each row's k best tokens with their log-probabilities."""

    @staticmethod
    def execute[
        target: StaticString
    ](
        ids: MutableInputTensor[dtype=DType.int64, rank=2, ...],
        logprobs: MutableInputTensor[dtype=DType.float32, rank=2, ...],
        logits: MutableInputTensor[dtype=DType.float32, rank=2, ...],
        totals: InputTensor[dtype=DType.float32, rank=4, ...],
        best: InputTensor[dtype=DType.float32, rank=4, ...],
        tokens: InputTensor[dtype=DType.int32, rank=4, ...],
        ranges: InputTensor[dtype=DType.int64, rank=2, ...],
        temperatures: InputTensor[dtype=DType.float32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "gpu", "a CPU takes `Search`"
        search_merge_on_gpu(
            ids.unsafe_ptr(),
            logprobs.unsafe_ptr(),
            logits.unsafe_ptr(),
            totals.unsafe_ptr(),
            best.unsafe_ptr(),
            tokens.unsafe_ptr(),
            ranges.unsafe_ptr(),
            temperatures.unsafe_ptr(),
            logits.dim_size(0),
            logits.dim_size(1),
            ids.dim_size(1),
            ctx,
        )
