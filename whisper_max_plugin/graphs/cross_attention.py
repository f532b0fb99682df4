"""The graphs around cross-attention that do not run once per token: its keys and values, and its scores."""

from __future__ import annotations

import itertools

from max.dtype import DType
from max.graph import DeviceRef, Graph, KernelLibrary, Module, TensorType
from whisper.model import ModelDimensions

from whisper_max_plugin.graphs.kernel_layers import layers_for
from whisper_max_plugin.graphs.types import Types


def build_cross_kv(
    module: Module, dims: ModelDimensions, types: Types, device: DeviceRef, library: KernelLibrary
) -> None:
    """Add the graph ``cross_kv`` to `module`: what every decoder layer attends to, once per window.

    Input: audio_features (n_audio, n_audio_ctx, n_audio_state), as the graph ``encoder`` returns them.
    Outputs: key 0, value 0, key 1, value 1, …, each (n_audio, n_text_head, n_audio_ctx, head_dim).
    """
    features_type = TensorType(types.features, ["n_audio", dims.n_audio_ctx, dims.n_audio_state], device)
    layers = layers_for(dims, types, device)

    with Graph("cross_kv", input_types=[features_type], module=module, kernel_library=library) as graph:
        xa = graph.inputs[0].tensor.cast(types.operands)
        graph.output(
            *itertools.chain.from_iterable(
                layers.key_value(
                    xa,
                    f"decoder.blocks.{layer}.cross_attn",
                    dims.n_audio_state,
                    dims.n_text_state,
                    dims.n_text_head,
                    types.cache,
                )
                for layer in range(dims.n_text_layer)
            )
        )


def build_cross_scores(
    module: Module, dims: ModelDimensions, types: Types, device: DeviceRef, library: KernelLibrary
) -> None:
    """Add the graph ``cross_scores`` to `module`: one layer's scores, for word timestamps.

    It mirrors the ``qk`` that ``MultiHeadAttention.qkv_attention`` returns without SDPA. The query projection is
    an input, so that one small graph serves every layer.

    Inputs: x (n_audio, n_query, n_text_state), the layer's cross_attn input; key (n_audio, n_text_head,
    n_audio_ctx, head_dim); the query projection's weight (n_text_state, n_text_state), of the type that the graph
    ``decoder`` reads, and bias (n_text_state).
    Output: scores (n_audio, n_text_head, n_query, n_audio_ctx).
    """
    n_state, n_head = dims.n_text_state, dims.n_text_head
    layers = layers_for(dims, types, device)
    input_types = [
        TensorType(DType.float32, ["n_audio", "n_query", n_state], device),
        TensorType(types.cache, ["n_audio", n_head, dims.n_audio_ctx, n_state // n_head], device),
        TensorType(layers.decoder_matrix, [n_state, n_state], device),
        TensorType(DType.float32, [n_state], device),
    ]

    with Graph("cross_scores", input_types=input_types, module=module, kernel_library=library) as graph:
        x, key, weight, bias = (value.tensor for value in graph.inputs)
        graph.output(layers.scores(layers.product(x, weight, bias), key))
