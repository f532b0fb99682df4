"""The decoder graph: one graph for prefill, step and alignment, whose cache is written in place."""

from __future__ import annotations

from max.dtype import DType
from max.graph import BufferType, DeviceRef, Graph, KernelLibrary, Module, TensorType, TensorValue, ops
from whisper.model import ModelDimensions

from whisper_max_plugin.graphs.kernel_layers import layers_for
from whisper_max_plugin.graphs.types import Types


def build_decoder(
    module: Module, dims: ModelDimensions, types: Types, device: DeviceRef, library: KernelLibrary
) -> None:
    """Add the graph ``decoder`` to `module`; it mirrors ``whisper.model.TextDecoder.forward``.

    Every length is dynamic, so the same graph runs the prefill (many tokens), a step (one token) and the
    teacher-forced pass of word alignment. A batch is ``n_audio * n_group`` sequences: the group (beams, or
    best-of samples) of one audio shares its cross-attention keys and values, which are read once for all of them.

    The weights are those that the graph ``step`` reads, see `layers_for`.

    Inputs
    ------
    tokens (n_audio, n_group, n_tokens) int64; positions (n_tokens) int64, of the tokens in the text; rows (n_rows)
    int64, those of the tokens whose logits are wanted; 2 * n_text_layer self-attention buffers (n_filled, n_audio,
    n_group, n_copies, n_text_state), key 0, value 0, …: the filled front of the preallocated cache, whose last n_tokens
    entries this run writes, to the first of n_copies rows, the others being for sequences that start from it later;
    2 * n_text_layer cross-attention tensors as the graph ``cross_kv`` returns them.

    Outputs
    -------
    logits (n_audio * n_group, n_rows, n_vocab); then, for forward hooks, each (n_audio * n_group, n_tokens,
    n_text_state): what ``ln`` takes, and per layer what ``cross_attn`` takes and returns.
    """
    n_state, n_head, n_layer = dims.n_text_state, dims.n_text_head, dims.n_text_layer
    head_dim = n_state // n_head
    cache_type = BufferType(types.cache, ["n_filled", "n_audio", "n_group", "n_copies", n_state], device)
    cross_type = TensorType(types.cache, ["n_audio", n_head, dims.n_audio_ctx, head_dim], device)
    input_types = [
        TensorType(DType.int64, ["n_audio", "n_group", "n_tokens"], device),
        TensorType(DType.int64, ["n_tokens"], device),
        TensorType(DType.int64, ["n_rows"], device),
        *[cache_type] * (2 * n_layer),
        *[cross_type] * (2 * n_layer),
    ]

    layers = layers_for(dims, types, device)
    weights = layers.weights

    with Graph("decoder", input_types=input_types, module=module, kernel_library=library) as graph:
        tokens, positions, rows = (value.tensor for value in graph.inputs[:3])
        caches = [value.buffer for value in graph.inputs[3 : 3 + 2 * n_layer]]
        cross_kv = [value.tensor for value in graph.inputs[3 + 2 * n_layer :]]
        n_audio, n_group, n_tokens = tokens.shape
        batch = n_audio * n_group

        token_embedding = layers.token_embedding(dims.n_vocab, n_state)
        position_table = weights("decoder.positional_embedding", dims.n_text_ctx, n_state)
        x = ops.gather(token_embedding, tokens, axis=0).cast(DType.float32)
        x = x + ops.gather(position_table, positions, axis=0)
        x = ops.reshape(x, [batch, n_tokens, n_state])

        traces: list[TensorValue] = []
        for layer in range(n_layer):
            name = f"decoder.blocks.{layer}"
            keys, values = caches[2 * layer : 2 * layer + 2]
            h = layers.norm(x, f"{name}.attn_ln", n_state)
            a = layers.causal_attention(h, f"{name}.attn", n_head, keys, values, positions)
            x = layers.linear_add(a, f"{name}.attn.out", n_state, n_state, x)

            h = layers.norm(x, f"{name}.cross_attn_ln", n_state)
            q = layers.linear(h, f"{name}.cross_attn.query", n_state, n_state)
            # the sequences of a group become rows of one query
            q = ops.reshape(q, [n_audio, n_group * n_tokens, n_state])
            a = ops.reshape(layers.attention(q, *cross_kv[2 * layer : 2 * layer + 2]), [batch, n_tokens, n_state])
            a = layers.linear(a, f"{name}.cross_attn.out", n_state, n_state, out=DType.float32)
            traces += [h.cast(DType.float32), a]
            x = x + a
            x = layers.mlp_add(layers.norm(x, f"{name}.mlp_ln", n_state), f"{name}.mlp", n_state, x)

        read = layers.norm(ops.gather(x, rows, axis=1), "decoder.ln", n_state)
        graph.output(layers.logits(read, token_embedding), x, *traces)
