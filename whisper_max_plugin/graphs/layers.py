"""The layers that Whisper's graphs are built from: weights, linear, layer norm, convolution, attention."""

from __future__ import annotations

from max.dtype import DType
from max.graph import DeviceRef, DimLike, Graph, TensorValue, Weight, ops

LAYER_NORM_EPS = 1e-5  # torch.nn.LayerNorm's default, which upstream keeps


class Weights:
    """Declares the external weights of one graph, each once, under the checkpoint's own names.

    The values are bound when a compiled graph is initialised, so one artifact serves every checkpoint of the
    same dimensions.
    """

    def __init__(self, dtype: DType, device: DeviceRef) -> None:
        self.dtype = dtype
        self.device = device
        self._declared: dict[str, TensorValue] = {}

    def __call__(self, name: str, *shape: int) -> TensorValue:
        if name not in self._declared:
            self._declared[name] = Graph.current.add_weight(Weight(name, self.dtype, shape, self.device))
        return self._declared[name]


def layer_norm(x: TensorValue, weights: Weights, name: str, n_state: int) -> TensorValue:
    """Mirror ``whisper.model.LayerNorm`` over the last dimension."""
    weight, bias = weights(f"{name}.weight", n_state), weights(f"{name}.bias", n_state)
    return ops.layer_norm(x, weight, bias, LAYER_NORM_EPS)


def linear(x: TensorValue, weights: Weights, name: str, n_in: int, n_out: int, *, bias: bool = True) -> TensorValue:
    """Mirror ``whisper.model.Linear``: ``x @ weight.T + bias``."""
    y = x @ ops.transpose(weights(f"{name}.weight", n_out, n_in), 0, 1)
    return y + weights(f"{name}.bias", n_out) if bias else y


def mlp(x: TensorValue, weights: Weights, name: str, n_state: int) -> TensorValue:
    """Mirror ``ResidualAttentionBlock.mlp``: linear, exact GELU, linear."""
    hidden = ops.gelu(linear(x, weights, f"{name}.0", n_state, 4 * n_state))
    return linear(hidden, weights, f"{name}.2", 4 * n_state, n_state)


def conv1d(x: TensorValue, weights: Weights, name: str, n_in: int, n_out: int, *, stride: int) -> TensorValue:
    """Mirror a ``Conv1d`` of width 3 and padding 1, over ``x`` of shape (B, T, n_in).

    It runs as a 2-D convolution of height 1. The weight ``name + ".filter"`` is the checkpoint's
    (n_out, n_in, 3) tensor laid out as (1, 3, n_in, n_out); see `whisper_max_plugin.engine.graph_weights`.
    """
    y = ops.conv2d(
        ops.unsqueeze(x, 1),  # (B, 1, T, n_in)
        weights(f"{name}.filter", 1, 3, n_in, n_out),
        stride=(1, stride),
        padding=(0, 0, 1, 1),
        bias=weights(f"{name}.bias", n_out),
    )
    return ops.squeeze(y, 1)  # (B, T / stride, n_out)


def split_heads(x: TensorValue, batch: DimLike, length: DimLike, n_head: int) -> TensorValue:
    """Reshape (batch, length, n_state) to (batch, n_head, length, head_dim)."""
    head_dim = int(x.shape[-1]) // n_head
    return ops.permute(ops.reshape(x, [batch, length, n_head, head_dim]), [0, 2, 1, 3])


def merge_heads(x: TensorValue) -> TensorValue:
    """Reshape (B, n_head, T, head_dim) to (B, T, n_state)."""
    batch, n_head, length, head_dim = x.shape
    return ops.reshape(ops.permute(x, [0, 2, 1, 3]), [batch, length, int(n_head) * int(head_dim)])


def attention_scores(q: TensorValue, k: TensorValue) -> TensorValue:
    """Scaled scores (B, n_head, T_q, T_k) of (B, n_head, T, head_dim) queries and keys, before the softmax."""
    return (q @ ops.transpose(k, 2, 3)) * (int(q.shape[-1]) ** -0.5)


def attention(q: TensorValue, k: TensorValue, v: TensorValue, mask: TensorValue | None = None) -> TensorValue:
    """Softmax attention over (B, n_head, T, head_dim), written in the form that MAX fuses on the CPU."""
    scores = attention_scores(q, k)
    if mask is not None:
        scores = scores + mask
    return ops.softmax(scores) @ v
