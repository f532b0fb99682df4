"""The encoder graph: conv stem, sinusoid positions, self-attention blocks, final layer norm."""

from __future__ import annotations

from max.dtype import DType
from max.graph import DeviceRef, Graph, KernelLibrary, Module, TensorType, ops
from whisper.model import ModelDimensions

from whisper_max_plugin.graphs.kernel_layers import layers_for
from whisper_max_plugin.graphs.layers import layer_norm
from whisper_max_plugin.graphs.types import Types


def build_encoder(
    module: Module, dims: ModelDimensions, types: Types, device: DeviceRef, library: KernelLibrary
) -> None:
    """Add the graph ``encoder`` to `module`; it mirrors ``whisper.model.AudioEncoder.forward``.

    Input: mel (batch, n_mels, 2 * n_audio_ctx).
    Output: audio_features (batch, n_audio_ctx, n_audio_state), of `Types.features`.
    """
    n_state, n_head = dims.n_audio_state, dims.n_audio_head
    mel_type = TensorType(DType.float32, ["batch", dims.n_mels, 2 * dims.n_audio_ctx], device)
    layers = layers_for(dims, types, device)
    weights = layers.weights

    with Graph("encoder", input_types=[mel_type], module=module, kernel_library=library) as graph:
        positions = weights("encoder.positional_embedding", dims.n_audio_ctx, n_state)
        x = ops.permute(graph.inputs[0].tensor, [0, 2, 1])  # (batch, frames, n_mels)
        x = layers.conv_gelu(x, "encoder.conv1", dims.n_mels, n_state, stride=1)
        x = layers.conv_gelu(x, "encoder.conv2", n_state, n_state, stride=2, positions=positions)

        for layer in range(dims.n_audio_layer):
            name = f"encoder.blocks.{layer}"
            h = layers.norm(x, f"{name}.attn_ln", n_state)
            q, k, v = layers.query_key_value(h, f"{name}.attn", n_state, n_head)
            x = layers.linear_add(layers.attention(q, k, v), f"{name}.attn.out", n_state, n_state, x)
            x = layers.mlp_add(layers.norm(x, f"{name}.mlp_ln", n_state), f"{name}.mlp", n_state, x)

        graph.output(layer_norm(x, weights, "encoder.ln_post", n_state).cast(types.features))
