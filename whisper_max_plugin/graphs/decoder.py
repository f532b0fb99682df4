"""The decoder graph: one graph for prefill, step and alignment, whose cache is written in place."""

from __future__ import annotations

from max.dtype import DType
from max.graph import BufferType, DeviceRef, Graph, Module, TensorType, TensorValue, ops
from whisper.model import ModelDimensions

from .kernels import KERNELS, project
from .layers import Weights, attention, layer_norm, linear, merge_heads, mlp, split_heads


def build_decoder(
    module: Module, dims: ModelDimensions, dtype: DType, device: DeviceRef, stored: DType | None = None
) -> None:
    """Add the graph ``decoder`` to `module`; it mirrors ``whisper.model.TextDecoder.forward``.

    Every length is dynamic, so the same graph runs the prefill (many tokens), a step (one token) and the
    teacher-forced pass of word alignment. A batch is ``n_audio * n_group`` sequences: the group (beams, or
    best-of samples) of one audio shares its cross-attention keys and values, which are read once for all of them.

    With `stored`, the vocabulary is read in that type, by a kernel for few rows, as in the graph ``step``.

    Inputs
    ------
    tokens (n_audio, n_group, n_tokens) int64; offset () int64 on the host, the position of the first token;
    mask (n_tokens, n_filled), 0 or -inf, n_filled being offset + n_tokens; rows (n_rows) int64, the positions
    among the tokens whose logits are wanted; 2 * n_text_layer self-attention buffers (n_filled, n_audio, n_group,
    n_text_state), key 0, value 0, …: the filled front of the preallocated cache, whose last n_tokens entries
    this run writes; 2 * n_text_layer cross-attention tensors as the graph ``cross_kv`` returns them.

    Outputs
    -------
    logits (n_audio * n_group, n_rows, n_vocab); then, for forward hooks, each (n_audio * n_group, n_tokens,
    n_text_state): what ``ln`` takes, and per layer what ``cross_attn`` takes and returns.
    """
    n_state, n_head, n_layer = dims.n_text_state, dims.n_text_head, dims.n_text_layer
    head_dim = n_state // n_head
    cache_type = BufferType(dtype, ["n_filled", "n_audio", "n_group", n_state], device)
    cross_type = TensorType(dtype, ["n_audio", n_head, dims.n_audio_ctx, head_dim], device)
    input_types = [
        TensorType(DType.int64, ["n_audio", "n_group", "n_tokens"], device),
        TensorType(DType.int64, [], DeviceRef.CPU()),
        TensorType(dtype, ["n_tokens", "n_filled"], device),
        TensorType(DType.int64, ["n_rows"], device),
        *[cache_type] * (2 * n_layer),
        *[cross_type] * (2 * n_layer),
    ]

    with Graph("decoder", input_types=input_types, module=module, custom_extensions=[KERNELS]) as graph:
        weights = Weights(dtype, device)
        tokens, offset, mask, rows = (value.tensor for value in graph.inputs[:4])
        caches = [value.buffer for value in graph.inputs[4 : 4 + 2 * n_layer]]
        cross_kv = [value.tensor for value in graph.inputs[4 + 2 * n_layer :]]
        n_audio, n_group, n_tokens = tokens.shape
        n_filled = mask.shape[1]
        batch = n_audio * n_group
        new = (slice(offset, offset + _host_scalar(n_tokens)), n_tokens)

        def extend_cache(index: int, x: TensorValue) -> TensorValue:
            """Write (batch, n_tokens, n_state) behind the cache; return (batch, n_head, n_filled, head_dim)."""
            latest = ops.permute(ops.reshape(x, [n_audio, n_group, n_tokens, n_state]), [2, 0, 1, 3])
            ops.buffer_store_slice(caches[index], latest, [new, slice(None), slice(None), slice(None)])
            filled = ops.reshape(ops.buffer_load(caches[index]), [n_filled, batch, n_head, head_dim])
            return ops.permute(filled, [1, 2, 0, 3])

        part, vocabulary = ("decoder", weights) if stored is None else ("stored", Weights(stored, device))
        token_embedding = vocabulary(f"{part}.token_embedding.weight", dims.n_vocab, n_state)
        positions = weights("decoder.positional_embedding", dims.n_text_ctx, n_state)
        x = ops.gather(token_embedding, tokens, axis=0).cast(dtype) + ops.slice_tensor(positions, [new, slice(None)])
        x = ops.reshape(x, [batch, n_tokens, n_state])

        traces: list[TensorValue] = []
        for layer in range(n_layer):
            name = f"decoder.blocks.{layer}"
            h = layer_norm(x, weights, f"{name}.attn_ln", n_state)
            q, k, v = (
                linear(h, weights, f"{name}.attn.{part}", n_state, n_state, bias=part != "key")
                for part in ("query", "key", "value")
            )
            a = attention(
                split_heads(q, batch, n_tokens, n_head),
                extend_cache(2 * layer, k),
                extend_cache(2 * layer + 1, v),
                mask,
            )
            x = x + linear(merge_heads(a), weights, f"{name}.attn.out", n_state, n_state)

            h = layer_norm(x, weights, f"{name}.cross_attn_ln", n_state)
            q = linear(h, weights, f"{name}.cross_attn.query", n_state, n_state)
            # the sequences of a group become rows of one query: (n_audio, n_head, n_group * n_tokens, head_dim)
            q = split_heads(ops.reshape(q, [n_audio, n_group * n_tokens, n_state]), n_audio, n_group * n_tokens, n_head)
            a = merge_heads(attention(q, cross_kv[2 * layer], cross_kv[2 * layer + 1]))
            a = linear(ops.reshape(a, [batch, n_tokens, n_state]), weights, f"{name}.cross_attn.out", n_state, n_state)
            traces += [h, a]
            x = x + a
            x = x + mlp(layer_norm(x, weights, f"{name}.mlp_ln", n_state), weights, f"{name}.mlp", n_state)

        read = layer_norm(ops.gather(x, rows, axis=1), weights, "decoder.ln", n_state)
        if stored is None:
            logits = read @ ops.transpose(token_embedding, 0, 1)
        else:
            n_rows = rows.shape[0]
            logits = project(ops.reshape(read, [batch * n_rows, n_state]), token_embedding)
            logits = ops.reshape(logits, [batch, n_rows, dims.n_vocab])
        graph.output(logits, x, *traces)


def _host_scalar(dim: object) -> TensorValue:
    """A dimension's run-time value as an int64 scalar on the host."""
    return ops.reshape(ops.shape_to_tensor([dim]), []).cast(DType.int64)
