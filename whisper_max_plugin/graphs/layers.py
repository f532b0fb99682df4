"""The layers that Whisper's graphs are built from, of MAX's own operations: for any device and any size of heads."""

from __future__ import annotations

import math

from max.dtype import DType
from max.graph import BufferValue, DeviceRef, DimLike, Graph, TensorValue, Weight, ops

from whisper_max_plugin.graphs.types import Types

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
            weight = Weight(name, self.dtype, shape, self.device)
            # given where it is needed, once for all graphs, and not on the host for each to take along
            self._declared[name] = Graph.current.add_weight(weight, force_initial_weight_on_host=False)
        return self._declared[name]


class Layers:
    """One graph's layers, in float32.

    Activations are (batch, length, n_state), heads (batch, n_head, length, head_dim).
    `KernelLayers` computes the same with kernels of our own, and `layers_for` tells which a graph takes.
    """

    def __init__(self, types: Types, device: DeviceRef) -> None:
        self.types = types
        self.weights = Weights(DType.float32, device)

    @property
    def decoder_matrix(self) -> DType:
        """The type of the decoder's matrices."""
        return DType.float32

    def norm(self, x: TensorValue, name: str, n_state: int) -> TensorValue:
        """Return `layer_norm`, as what products are of."""
        return layer_norm(x, self.weights, name, n_state)

    def conv_gelu(
        self, x: TensorValue, name: str, n_in: int, n_out: int, *, stride: int, positions: TensorValue | None = None
    ) -> TensorValue:
        """Mirror a ``Conv1d`` of width 3 and padding 1, and ``F.gelu``; then add positions (length / stride, n_out).

        Its filters are (n_out, 3, n_in), so that what is multiplied lies side by side.
        """
        y = ops.conv2d(  # of height 1
            ops.unsqueeze(x, 1),
            ops.unsqueeze(ops.permute(self.weights(f"{name}.weight", n_out, 3, n_in), [1, 2, 0]), 0),
            stride=(1, stride),
            padding=(0, 0, 1, 1),
            bias=self.weights(f"{name}.bias", n_out),
        )
        y = ops.gelu(ops.squeeze(y, 1))
        return y if positions is None else y + positions

    def linear(
        self, x: TensorValue, name: str, n_in: int, n_out: int, *, bias: bool = True, out: DType | None = None
    ) -> TensorValue:
        """Mirror ``whisper.model.Linear``: ``x @ weight.T + bias``, as x or `out`."""
        weight = self.weights(f"{name}.weight", n_out, n_in)
        return self.product(x, weight, self.weights(f"{name}.bias", n_out) if bias else None, out)

    def product(
        self, x: TensorValue, weight: TensorValue, bias: TensorValue | None, out: DType | None = None
    ) -> TensorValue:
        """Return ``x @ weight.T + bias``, as x or `out`."""
        y = x @ ops.transpose(weight, 0, 1)
        return y if bias is None else y + bias

    def linear_add(self, x: TensorValue, name: str, n_in: int, n_out: int, residual: TensorValue) -> TensorValue:
        """Return `linear` plus `residual`."""
        return residual + self.linear(x, name, n_in, n_out)

    def mlp_add(self, x: TensorValue, name: str, n_state: int, residual: TensorValue) -> TensorValue:
        """Mirror ``ResidualAttentionBlock.mlp``, linear, exact GELU, linear, plus `residual`."""
        hidden = ops.gelu(self.linear(x, f"{name}.0", n_state, 4 * n_state))
        return self.linear_add(hidden, f"{name}.2", 4 * n_state, n_state, residual)

    def heads(
        self,
        x: TensorValue,
        name: str,
        n_in: int,
        n_out: int,
        n_head: int,
        *,
        bias: bool = True,
        out: DType | None = None,
    ) -> TensorValue:
        """Return `linear` as heads."""
        return split_heads(self.linear(x, name, n_in, n_out, bias=bias, out=out), n_head)

    def query_key_value(
        self, x: TensorValue, name: str, n_state: int, n_head: int
    ) -> tuple[TensorValue, TensorValue, TensorValue]:
        """Return what `attention` takes in self-attention."""
        return self.linear(x, f"{name}.query", n_state, n_state), *self.key_value(x, name, n_state, n_state, n_head)

    def key_value(
        self, x: TensorValue, name: str, n_in: int, n_out: int, n_head: int, out: DType | None = None
    ) -> tuple[TensorValue, TensorValue]:
        """Return the keys and values that `attention` takes."""
        keys = self.heads(x, f"{name}.key", n_in, n_out, n_head, bias=False, out=out)
        return keys, self.heads(x, f"{name}.value", n_in, n_out, n_head, out=out)

    def attention(self, q: TensorValue, keys: TensorValue, values: TensorValue) -> TensorValue:
        """Softmax attention of q (batch, length, n_state) to the heads `keys` and `values`."""
        return merge_heads(attention(split_heads(q, int(keys.shape[1])), keys, values))

    def causal_attention(
        self,
        x: TensorValue,
        name: str,
        n_head: int,
        keys: BufferValue,
        values: BufferValue,
        positions: TensorValue,
    ) -> TensorValue:
        """Mirror the decoder's self-attention up to its ``out``, with a cache.

        The keys and values of x (batch, n_tokens, n_state) are written to the end of the caches (n_filled, n_audio,
        n_group, n_copies, n_state), where `positions` (n_tokens) says that they belong.
        """
        n_filled, n_audio, n_group, _, n_state = keys.shape
        batch, n_tokens, _ = x.shape
        filled_so_far = host_scalar(n_filled) - host_scalar(n_tokens)
        new = (slice(filled_so_far, host_scalar(n_filled)), n_tokens)
        of_each = [slice(None), slice(None), (slice(0, 1), 1), slice(None)]
        filled = []
        for part, cache in (("key", keys), ("value", values)):
            latest = self.linear(x, f"{name}.{part}", int(n_state), int(n_state), bias=part != "key")
            latest = ops.permute(ops.reshape(latest, [n_audio, n_group, 1, n_tokens, n_state]), [3, 0, 1, 2, 4])
            ops.buffer_store_slice(cache, latest, [new, *of_each])
            all_filled = ops.slice_tensor(ops.buffer_load(cache), [slice(None), *of_each])
            heads = ops.reshape(all_filled, [n_filled, batch, n_head, int(n_state) // n_head])
            filled.append(ops.permute(heads, [1, 2, 0, 3]))
        q = split_heads(self.linear(x, f"{name}.query", int(n_state), int(n_state)), n_head)
        every = ops.range(0, host_scalar(n_filled), out_dim=n_filled, dtype=DType.int64, device=x.device)
        is_later = ops.greater(ops.unsqueeze(every, 0), ops.unsqueeze(positions, 1))  # (n_tokens, n_filled)
        zero, hidden = (ops.constant(value, DType.float32, device=x.device) for value in (0.0, -math.inf))
        return merge_heads(attention(q, filled[0], filled[1], ops.where(is_later, hidden, zero)))

    def scores(self, q: TensorValue, keys: TensorValue) -> TensorValue:
        """Return what `attention` takes the softmax of, (batch, n_head, length, n_keys)."""
        return attention_scores(split_heads(q, int(keys.shape[1])), keys)

    def token_embedding(self, n_vocab: int, n_state: int) -> TensorValue:
        """Return the vocabulary (n_vocab, n_state), of any type."""
        return self.weights("decoder.token_embedding.weight", n_vocab, n_state)

    def logits(self, x: TensorValue, token_embedding: TensorValue) -> TensorValue:
        """Return ``x @ token_embedding.T``."""
        return x @ ops.transpose(token_embedding, 0, 1)


def layer_norm(x: TensorValue, weights: Weights, name: str, n_state: int) -> TensorValue:
    """Mirror ``whisper.model.LayerNorm`` over the last dimension."""
    weight, bias = weights(f"{name}.weight", n_state), weights(f"{name}.bias", n_state)
    return ops.layer_norm(x, weight, bias, LAYER_NORM_EPS)


def split_heads(x: TensorValue, n_head: int) -> TensorValue:
    """Reshape (batch, length, n_state) to (batch, n_head, length, head_dim)."""
    batch, length, n_state = x.shape
    return ops.permute(ops.reshape(x, [batch, length, n_head, int(n_state) // n_head]), [0, 2, 1, 3])


def merge_heads(x: TensorValue) -> TensorValue:
    """Reshape (batch, n_head, length, head_dim) to (batch, length, n_state)."""
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


def host_scalar(dim: DimLike) -> TensorValue:
    """A dimension's run-time value as an int64 scalar on the host."""
    return ops.reshape(ops.shape_to_tensor([dim]), []).cast(DType.int64)
