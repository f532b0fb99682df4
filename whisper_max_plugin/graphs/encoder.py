"""The encoder graph: conv stem, sinusoid positions, self-attention blocks, final layer norm."""

from __future__ import annotations

from max.dtype import DType
from max.graph import DeviceRef, Graph, Module, TensorType, ops
from whisper.model import ModelDimensions

from .layers import Weights, attention, conv1d, layer_norm, linear, merge_heads, mlp, split_heads


def build_encoder(module: Module, dims: ModelDimensions, dtype: DType, device: DeviceRef) -> None:
    """Add the graph ``encoder`` to `module`; it mirrors ``whisper.model.AudioEncoder.forward``.

    Input: mel (batch, n_mels, 2 * n_audio_ctx). Output: audio_features (batch, n_audio_ctx, n_audio_state).
    """
    n_state, n_head = dims.n_audio_state, dims.n_audio_head
    mel_type = TensorType(dtype, ["batch", dims.n_mels, 2 * dims.n_audio_ctx], device)

    with Graph("encoder", input_types=[mel_type], module=module) as graph:
        weights = Weights(dtype, device)
        x = ops.permute(graph.inputs[0].tensor, [0, 2, 1])  # (B, frames, n_mels)
        x = ops.gelu(conv1d(x, weights, "encoder.conv1", dims.n_mels, n_state, stride=1))
        x = ops.gelu(conv1d(x, weights, "encoder.conv2", n_state, n_state, stride=2))
        x = x + weights("encoder.positional_embedding", dims.n_audio_ctx, n_state)  # (B, n_audio_ctx, n_state)

        for layer in range(dims.n_audio_layer):
            name = f"encoder.blocks.{layer}"
            h = layer_norm(x, weights, f"{name}.attn_ln", n_state)
            q, k, v = (
                split_heads(
                    linear(h, weights, f"{name}.attn.{part}", n_state, n_state, bias=part != "key"),
                    x.shape[0],
                    x.shape[1],
                    n_head,
                )
                for part in ("query", "key", "value")
            )
            x = x + linear(merge_heads(attention(q, k, v)), weights, f"{name}.attn.out", n_state, n_state)
            x = x + mlp(layer_norm(x, weights, f"{name}.mlp_ln", n_state), weights, f"{name}.mlp", n_state)

        graph.output(layer_norm(x, weights, "encoder.ln_post", n_state))
