"""The step graph: the decoder on one token per sequence, the search over its logits, and what the next step takes."""

from __future__ import annotations

from max.dtype import DType
from max.graph import BufferType, DeviceRef, Graph, KernelLibrary, Module, TensorType, TensorValue, ops
from whisper.model import ModelDimensions

from whisper_max_plugin.graphs.layers import Weights, layer_norm
from whisper_max_plugin.graphs.step_kernels import (
    ADDRESSES,
    Norm,
    cross_attention,
    decoder_layers,
    embed,
    follow,
    linear_add,
    norm_linear,
    norm_linear_gelu,
    norm_project,
    project,
    search,
    self_attention,
)
from whisper_max_plugin.graphs.types import Types


def build_step(module: Module, dims: ModelDimensions, types: Types, device: DeviceRef, library: KernelLibrary) -> None:
    """Add the graph ``step`` to `module`: ``decoder`` for one token, which is most of what decoding does.

    A step reads every weight for a few rows, so memory is what it waits for: the linear layers' weights are read
    as they are stored, float16 for OpenAI's checkpoints, and multiplied and summed up in float32. Weights of int8
    have a scale for each row; the tokens' embeddings are the model's own then.

    Every input is memory that stays the same from step to step. A run writes all that the next one reads, so that
    steps that choose or sample a token follow each other without the host; for beams the host writes over it.

    Windows share nothing but the step: each is at a position of its own, and its keys and values lie where `memory`
    says. So windows of different recordings run together, and none of their memory is moved.

    Inputs
    ------
    tokens (n_audio, n_group) int64; positions (batch) int64, of these tokens, batch being n_audio * n_group; what the
    graph ``search`` takes, whose logits it computes; stamps, chosen, chosen_logprobs and rules, see `kernels.follow`;
    holders (batch, n_text_ctx) int32, the row of its window's cache that holds a sequence's keys and values at each
    position: beams that share their past share its entries, and a reorder moves nothing else; memory (n_audio,
    1 + 4 * n_text_layer) int64: how many rows the window's cache has at each position, and of each layer the addresses
    of the cache's keys and values (n_text_ctx, n_rows, n_text_state), and of those of the audio (n_text_head,
    n_audio_ctx, head_dim).
    """
    n_state, n_layer = dims.n_text_state, dims.n_text_layer
    head_dim = n_state // dims.n_text_head
    input_types = [
        BufferType(DType.int64, ["n_audio", "n_group"], device),
        BufferType(DType.int64, ["batch"], device),  # positions
        BufferType(DType.int64, ["batch", "k"], device),  # ids
        BufferType(DType.float32, ["batch", "k"], device),  # logprobs
        BufferType(DType.float32, ["batch", dims.n_vocab], device),  # logits
        BufferType(DType.int64, ["batch", 4], device),  # ranges
        BufferType(DType.int64, ["batch"], device),  # stamps
        BufferType(DType.int64, ["batch"], device),  # seeds
        BufferType(DType.int64, [dims.n_text_ctx, "batch"], device),  # chosen
        BufferType(DType.float32, [dims.n_text_ctx, "batch"], device),  # chosen_logprobs
        TensorType(DType.int64, ["n_suppressed"], device),
        TensorType(DType.float32, ["batch"], device),  # temperatures
        TensorType(DType.int64, [3], device),  # rules
        TensorType(DType.int32, ["batch", dims.n_text_ctx], device),  # holders
        TensorType(DType.int64, ["n_audio", 1 + 4 * n_layer], device),  # memory
    ]

    with Graph("step", input_types=input_types, module=module, kernel_library=library) as graph:
        weights, stored_weights = Weights(DType.float32, device), Weights(types.stored, device)
        buffers = [x.buffer for x in graph.inputs[:10]]
        tokens, positions, ids, logprobs, logits, ranges, stamps, seeds, chosen, chosen_logprobs = buffers
        suppressed, temperatures, rules, holders, memory = (x.tensor for x in graph.inputs[10:])
        batch = holders.shape[0]

        token_embedding = stored_weights("stored.token_embedding.weight", dims.n_vocab, n_state)
        projection = [token_embedding]
        if types.stored == DType.int8:
            projection.append(weights("stored.token_embedding.scales", dims.n_vocab))
            token_embedding = weights("decoder.token_embedding.weight", dims.n_vocab, n_state)
        position_table = weights("decoder.positional_embedding", dims.n_text_ctx, n_state)

        if device.is_cpu():
            x = ops.gather(token_embedding, ops.reshape(ops.buffer_load(tokens), [-1]), axis=0).cast(DType.float32)
            at = ops.buffer_load(positions)
            x = ops.rebind(x, [batch, n_state]) + ops.gather(position_table, at, axis=0)
            addresses = Weights(DType.int64, device)("stored.addresses", n_layer, ADDRESSES)
            x = decoder_layers(x, addresses, memory, holders, at, types, dims.n_audio_ctx, head_dim)
            project(logits, layer_norm(x, weights, "decoder.ln", n_state), *projection)
        else:
            x, at = embed(tokens, positions, token_embedding, position_table)
            of_text = memory, holders, at
            for layer in range(n_layer):
                x = _layer(x, layer, weights, stored_weights, *of_text, types, dims.n_audio_ctx, head_dim)
            norm = _norm(weights, "decoder.ln", n_state)
            norm_project(logits, x, norm, token_embedding, rounded=types.are_half)
        search(ids, logprobs, logits, suppressed, ops.buffer_load(ranges), temperatures, ops.buffer_load(seeds))
        follow(tokens, positions, ranges, stamps, seeds, chosen, chosen_logprobs, ids, logprobs, rules)
        graph.output()


def _layer(
    x: TensorValue,
    layer: int,
    weights: Weights,
    stored: Weights,
    memory: TensorValue,
    holders: TensorValue,
    positions: TensorValue,
    types: Types,
    n_audio_ctx: int,
    head_dim: int,
) -> TensorValue:
    """Return what a layer makes of x (batch, n_state), by an operation for each part, as a GPU is given its work."""
    name, n_state, rounded = f"blocks.{layer}", int(x.shape[1]), types.are_half

    def norm(part: str) -> Norm:
        return _norm(weights, f"decoder.{name}.{part}", n_state)

    def product(part: str, n_out: int, n_in: int) -> tuple[TensorValue, TensorValue]:
        # three layers in one are laid out for this graph
        bias = f"stored.{name}.{part}.bias" if part == "attn.qkv" else f"decoder.{name}.{part}.bias"
        return stored(f"stored.{name}.{part}.weight", n_out, n_in), weights(bias, n_out)

    qkv = norm_linear(x, norm("attn_ln"), *product("attn.qkv", 3 * n_state, n_state), rounded=rounded)
    a = self_attention(qkv, memory, holders, positions, types.cache, layer, head_dim)
    x = linear_add(a, x, *product("attn.out", n_state, n_state), rounded=rounded)

    q = norm_linear(x, norm("cross_attn_ln"), *product("cross_attn.query", n_state, n_state), rounded=rounded)
    a = cross_attention(q, memory, types.cache, layer, n_audio_ctx, head_dim)
    x = linear_add(a, x, *product("cross_attn.out", n_state, n_state), rounded=rounded)

    h = norm_linear_gelu(x, norm("mlp_ln"), *product("mlp.0", 4 * n_state, n_state), rounded=rounded)
    return linear_add(h, x, *product("mlp.2", n_state, 4 * n_state), rounded=rounded)


def _norm(weights: Weights, name: str, n_state: int) -> Norm:
    return weights(f"{name}.weight", n_state), weights(f"{name}.bias", n_state)
