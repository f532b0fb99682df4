"""The operations of a step as functions for graphs: one token per sequence, and the search over its logits.

Weights, keys and values may be of any type.
"""

from __future__ import annotations

from max.dtype import DType
from max.graph import BufferValue, DeviceRef, TensorType, TensorValue, ops

from whisper_max_plugin.graphs.types import Types

KEYS_OF_A_BLOCK = 256
"""``KEYS`` in gpu_attention.mojo: what one block of a GPU attends to in a step's cross-attention"""

TOKENS_OF_A_BLOCK = 2048
"""``PART`` in gpu_search.mojo: what one block of a GPU searches of a row of logits"""

ADDRESSES = 24
"""of a layer's parameters, which `decoder_layers` takes: weight and bias of three norms; of six products scales, too"""

Norm = tuple[TensorValue, TensorValue]
"""Weight and bias of a layer norm, (k) each."""


def decoder_layers(
    x: TensorValue,
    parameters: TensorValue,
    memory: TensorValue,
    holders: TensorValue,
    positions: TensorValue,
    types: Types,
    n_audio_ctx: int,
    head_dim: int,
) -> TensorValue:
    """Return what the decoder's layers make of one token per sequence, x (batch, n_state); on the CPU only.

    parameters (n_layer, ADDRESSES) int64, see `weights.addresses`; memory, holders and positions as in
    `self_attention`.
    """
    operands = [x, parameters, memory, holders, positions, _number(n_audio_ctx)]
    settings = {"type": types.stored, **_parameters(types.cache, head_dim)}
    return ops.custom("whisper_decoder_layers", x.device, operands, [x.type], parameters=settings)[0].tensor


def project(logits: BufferValue, x: TensorValue, weight: TensorValue, scales: TensorValue | None = None) -> None:
    """Write ``x @ weight.T`` to logits (m, n), for x (m, k) and weight (n, k), stored in any type.

    With scales (n) the weight is int8 and its rows are to be multiplied by them; on the CPU only.
    """
    operands = [logits, x, weight]
    if scales is None:
        ops.inplace_custom("whisper_project", x.device, operands)
    else:
        ops.inplace_custom("whisper_project_int8", x.device, [*operands, scales])


def embed(
    tokens: BufferValue, positions: BufferValue, token_embedding: TensorValue, positional_embedding: TensorValue
) -> tuple[TensorValue, TensorValue]:
    """Return the embeddings of tokens plus those of their positions, (batch, n_state), and the positions.

    On a GPU only. Both are read from memory that the graph writes later; MAX would load it by a kernel of its own.
    """
    device, batch = tokens.device, positions.shape[0]
    types = [
        TensorType(DType.float32, [batch, positional_embedding.shape[1]], device),
        TensorType(DType.int64, [batch], device),
    ]
    operands = [tokens, positions, token_embedding, positional_embedding]
    x, at = ops.inplace_custom("whisper_embed", device, operands, types)
    return x.tensor, at.tensor


def norm_project(logits: BufferValue, x: TensorValue, norm: Norm, weight: TensorValue, *, rounded: bool) -> None:
    """Do what `project` does for the layer norm of x, which is `rounded` to the type of the weight; on a GPU only."""
    parameters = {"rounded": rounded}
    ops.inplace_custom("whisper_norm_project", x.device, [logits, x, *norm, weight], parameters=parameters)


def norm_linear(x: TensorValue, norm: Norm, weight: TensorValue, bias: TensorValue, *, rounded: bool) -> TensorValue:
    """Return ``layer_norm(x) @ weight.T + bias``, for x (m, k), see `norm_project`."""
    return _few_rows("whisper_norm_linear", [x, *norm, weight, bias], _rows(x, weight), rounded)


def norm_linear_gelu(
    x: TensorValue, norm: Norm, weight: TensorValue, bias: TensorValue, *, rounded: bool
) -> TensorValue:
    """Return ``gelu(layer_norm(x) @ weight.T + bias)``, by the error function."""
    return _few_rows("whisper_norm_linear_gelu", [x, *norm, weight, bias], _rows(x, weight), rounded)


def linear_add(
    x: TensorValue, residual: TensorValue, weight: TensorValue, bias: TensorValue, *, rounded: bool
) -> TensorValue:
    """Return ``x @ weight.T + bias + residual``, with x rounded as in `norm_project`; on a GPU only."""
    return _few_rows("whisper_linear_add", [x, weight, bias, residual], residual.type, rounded)


def self_attention(
    qkv: TensorValue,
    memory: TensorValue,
    holders: TensorValue,
    positions: TensorValue,
    cache: DType,
    layer: int,
    head_dim: int,
) -> TensorValue:
    """Write one token's keys and values into the caches, of the type `cache`, and attend to all up to it.

    qkv (batch, 3 * n_state); memory (n_audio, 1 + 4 * n_layer) int64, see `step_inputs.StepInputs`; holders (batch,
    n_text_ctx) int32, the row of the cache that holds a sequence's entry at each position; positions (batch) int64.
    Returns (batch, n_state).
    """
    out = TensorType(qkv.dtype, [qkv.shape[0], int(qkv.shape[1]) // 3], qkv.device)
    operands = [qkv, memory, holders, positions, _number(layer)]
    parameters = _parameters(cache, head_dim)
    return ops.custom("whisper_self_attention", qkv.device, operands, [out], parameters=parameters)[0].tensor


def cross_attention(
    q: TensorValue, memory: TensorValue, cache: DType, layer: int, n_audio_ctx: int, head_dim: int
) -> TensorValue:
    """Attend with q (batch, n_state) to the audio of windows; memory and cache as in `self_attention`."""
    parameters = _parameters(cache, head_dim)
    operands = [q, memory, _number(layer), _number(n_audio_ctx)]
    if not q.device.is_gpu():
        return ops.custom("whisper_cross_attention", q.device, operands, [q.type], parameters=parameters)[0].tensor
    # a head has too few queries to keep a GPU busy, so that blocks share its keys
    n_audio, n_head = memory.shape[0], int(q.shape[1]) // head_dim
    n_parts = -(-n_audio_ctx // KEYS_OF_A_BLOCK)
    parts = TensorType(q.dtype, [n_audio * n_head, n_parts, q.shape[0] // n_audio, head_dim + 2], q.device)
    (merged,) = ops.custom("whisper_cross_attention_parts", q.device, operands, [parts], parameters=parameters)
    merge = {"head_dim": head_dim}
    return ops.custom("whisper_cross_attention_merge", q.device, [merged], [q.type], parameters=merge)[0].tensor


def search(
    ids: BufferValue,
    logprobs: BufferValue,
    logits: BufferValue,
    suppressed: TensorValue,
    ranges: TensorValue,
    temperatures: TensorValue,
    seeds: TensorValue,
) -> None:
    """Filter logits (batch, n_vocab) in place, and write each row's k best tokens to ids and logprobs (batch, k).

    suppressed (n) int64, negative where there is none; ranges (batch, 4) int64: of text, [0] <= token < [1] may be
    found, and of timestamps, [2] <= token < [3]; temperatures (batch) float32: above 0 the best are samples, by the
    noise of seeds (batch) int64.
    """
    if not logits.device.is_gpu():
        operands = [ids, logprobs, logits, suppressed, ranges, temperatures, seeds]
        ops.inplace_custom("whisper_search", logits.device, operands)
        return
    # a row would keep one block of a GPU busy, so that many blocks share it
    (batch, k), n_parts = ids.shape, -(-int(logits.shape[1]) // TOKENS_OF_A_BLOCK)
    of_each_kind = [batch, n_parts, 2]
    types = [
        TensorType(DType.float32, [*of_each_kind, 2], logits.device),
        TensorType(DType.float32, [*of_each_kind, k], logits.device),
        TensorType(DType.int32, [*of_each_kind, k], logits.device),
    ]
    asked = [logits, suppressed, ranges, temperatures, seeds]
    parts = ops.inplace_custom("whisper_search_parts", logits.device, asked, types)
    operands = [ids, logprobs, logits, *(part.tensor for part in parts), ranges, temperatures]
    ops.inplace_custom("whisper_search_merge", logits.device, operands)


def follow(
    tokens: BufferValue,
    positions: BufferValue,
    ranges: BufferValue,
    stamps: BufferValue,
    seeds: BufferValue,
    chosen: BufferValue,
    chosen_logprobs: BufferValue,
    ids: BufferValue,
    logprobs: BufferValue,
    rules: TensorValue,
) -> None:
    """Let every sequence continue with the best token: write what the next step reads, and note what was chosen.

    tokens (n_audio, n_group), positions (batch), ranges (batch, 4), stamps (batch), the latest timestamps, and seeds
    (batch), int64; chosen int64 and chosen_logprobs (n_text_ctx, batch); ids and logprobs (batch, k), as `search`
    writes them; rules (3) int64: the token that ends a text, the first timestamp, the size of the vocabulary.
    """
    operands = [tokens, positions, ranges, stamps, seeds, chosen, chosen_logprobs, ids, logprobs, rules]
    ops.inplace_custom("whisper_follow", tokens.device, operands)


def _few_rows(name: str, operands: list[TensorValue], out: TensorType, rounded: bool) -> TensorValue:
    return ops.custom(name, out.device, operands, [out], parameters={"rounded": rounded})[0].tensor


def _rows(x: TensorValue, weight: TensorValue) -> TensorType:
    return TensorType(x.dtype, [x.shape[0], weight.shape[0]], x.device)


def _parameters(cache: DType, head_dim: int) -> dict[str, bool | int | str | DType]:
    return {"of_kv": cache, "head_dim": head_dim}


def _number(value: int) -> TensorValue:
    """What an operation takes as a scalar; the host reads it when it starts the operation."""
    return ops.constant(value, DType.int32, device=DeviceRef.CPU())
