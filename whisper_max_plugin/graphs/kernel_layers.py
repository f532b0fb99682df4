"""The layers of kernels of our own: weights are read where they lie, and nothing is transposed."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from max.dtype import DType
from max.graph import BufferValue, DeviceRef, TensorValue, ops
from whisper.model import ModelDimensions

from whisper_max_plugin.graphs import kernels
from whisper_max_plugin.graphs.kernels import LARGEST_VECTOR
from whisper_max_plugin.graphs.layers import Layers, Weights, split_heads
from whisper_max_plugin.graphs.types import Types


def layers_for(dims: ModelDimensions, types: Types, device: DeviceRef) -> Layers:
    """Return the layers of one graph: of kernels where they can serve, as they can OpenAI's heads of 64."""
    if not has_kernels(dims):
        return Layers(types, device)
    if types.are_half and device.is_gpu():
        return TensorCoreLayers(types, device)
    # What runs once for a window has time for the model's own weights, which are there anyway.
    return OwnWeightLayers(types, device) if types.stored == DType.int8 else KernelLayers(types, device)


def has_kernels(dims: ModelDimensions) -> bool:
    """Tell whether kernels can serve a model of `dims`."""
    heads = dims.n_audio_state // dims.n_audio_head, dims.n_text_state // dims.n_text_head
    return not any(head_dim % LARGEST_VECTOR for head_dim in heads)


class KernelLayers(Layers):
    """`Layers` whose products and attention are kernels.

    The encoder's weights are the model's own, or on a GPU of half width. The decoder's are read as they are stored for
    the step.
    """

    def __init__(self, types: Types, device: DeviceRef) -> None:
        super().__init__(types, device)
        self._matrices = Weights(types.matrices, device)
        self._stored = Weights(types.stored, device)

    @property
    def decoder_matrix(self) -> DType:
        return self.types.stored

    def _matrix(self, name: str, n_in: int, n_out: int) -> TensorValue:
        if name.startswith("decoder.") and not name.endswith((".cross_attn.key", ".cross_attn.value")):
            return self._stored(f"{name.replace('decoder.', 'stored.', 1)}.weight", n_out, n_in)
        return self._matrices(f"{name}.weight", n_out, n_in)

    def norm(self, x: TensorValue, name: str, n_state: int) -> TensorValue:
        return super().norm(x, name, n_state).cast(self.types.operands)

    def conv_gelu(
        self, x: TensorValue, name: str, n_in: int, n_out: int, *, stride: int, positions: TensorValue | None = None
    ) -> TensorValue:
        weight, bias = self._matrices(f"{name}.weight", n_out, 3, n_in), self.weights(f"{name}.bias", n_out)
        return kernels.conv_gelu(x.cast(self.types.operands), weight, bias, stride, positions)

    def linear(
        self, x: TensorValue, name: str, n_in: int, n_out: int, *, bias: bool = True, out: DType | None = None
    ) -> TensorValue:
        weight = self._matrix(name, n_in, n_out)
        return self.product(x, weight, self.weights(f"{name}.bias", n_out) if bias else None, out)

    def product(
        self, x: TensorValue, weight: TensorValue, bias: TensorValue | None, out: DType | None = None
    ) -> TensorValue:
        return kernels.matmul(x, weight, out) if bias is None else kernels.matmul_bias(x, weight, bias, out)

    def linear_add(self, x: TensorValue, name: str, n_in: int, n_out: int, residual: TensorValue) -> TensorValue:
        return kernels.matmul_bias_add(
            x, self._matrix(name, n_in, n_out), self.weights(f"{name}.bias", n_out), residual
        )

    def mlp_add(self, x: TensorValue, name: str, n_state: int, residual: TensorValue) -> TensorValue:
        weight, bias = self._matrix(f"{name}.0", n_state, 4 * n_state), self.weights(f"{name}.0.bias", 4 * n_state)
        hidden = kernels.matmul_bias_gelu(x, weight, bias)
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
        weight = self._matrix(name, n_in, n_out)
        return kernels.heads(x, weight, self.weights(f"{name}.bias", n_out) if bias else None, n_head, out)

    def attention(self, q: TensorValue, keys: TensorValue, values: TensorValue) -> TensorValue:
        return kernels.attention(q, keys, values)

    def causal_attention(
        self,
        x: TensorValue,
        name: str,
        n_head: int,
        keys: BufferValue,
        values: BufferValue,
        positions: TensorValue,
    ) -> TensorValue:
        return kernels.causal_attention(self._qkv(x, name), keys, values, int(x.shape[2]) // n_head)

    def _qkv(self, x: TensorValue, name: str) -> TensorValue:
        n_state, stored = int(x.shape[2]), name.replace("decoder.", "stored.", 1)  # the three in one
        bias = self.weights(f"{stored}.qkv.bias", 3 * n_state)
        return kernels.matmul_bias(x, self._stored(f"{stored}.qkv.weight", 3 * n_state, n_state), bias)

    def scores(self, q: TensorValue, keys: TensorValue) -> TensorValue:
        queries = split_heads(q * int(keys.shape[3]) ** -0.5, int(keys.shape[1]))
        return kernels.scores(queries, keys.cast(DType.float32))

    def token_embedding(self, n_vocab: int, n_state: int) -> TensorValue:
        return self._stored("stored.token_embedding.weight", n_vocab, n_state)

    def logits(self, x: TensorValue, token_embedding: TensorValue) -> TensorValue:
        return kernels.matmul(x, token_embedding, DType.float32)


class TensorCoreLayers(KernelLayers):
    """`KernelLayers` of half width on a GPU: products of the same rows are one launch, as one cannot keep it busy."""

    def query_key_value(
        self, x: TensorValue, name: str, n_state: int, n_head: int
    ) -> tuple[TensorValue, TensorValue, TensorValue]:
        parts = (f"{name}.query", 1), (f"{name}.key", n_head), (f"{name}.value", n_head)
        q, keys, values = self._projections(x, parts, n_state, n_state)
        return ops.squeeze(q, 1), keys, values

    def key_value(
        self, x: TensorValue, name: str, n_in: int, n_out: int, n_head: int, out: DType | None = None
    ) -> tuple[TensorValue, TensorValue]:
        keys, values = self._projections(x, ((f"{name}.key", n_head), (f"{name}.value", n_head)), n_in, n_out)
        return keys, values

    def _projections(
        self, x: TensorValue, parts: Iterable[tuple[str, int]], n_in: int, n_out: int
    ) -> list[TensorValue]:
        """Return linear layers of x, each as so many heads."""
        no_bias = ops.constant(np.zeros(n_out, np.float32), device=x.device)
        return kernels.projections(
            x,
            [
                (
                    self._matrix(name, n_in, n_out),
                    no_bias if name.endswith(".key") else self.weights(f"{name}.bias", n_out),
                    n_head,
                )
                for name, n_head in parts
            ],
        )


class OwnWeightLayers(KernelLayers):
    """`KernelLayers` that read the model's own weights, and none that are stored for the step."""

    @property
    def decoder_matrix(self) -> DType:
        return DType.float32

    def _matrix(self, name: str, n_in: int, n_out: int) -> TensorValue:
        return self.weights(f"{name}.weight", n_out, n_in)

    def _qkv(self, x: TensorValue, name: str) -> TensorValue:
        n_state, parts = int(x.shape[2]), ("query", "key", "value")
        return ops.concat([self.linear(x, f"{name}.{p}", n_state, n_state, bias=p != "key") for p in parts], axis=2)

    def token_embedding(self, n_vocab: int, n_state: int) -> TensorValue:
        return self.weights("decoder.token_embedding.weight", n_vocab, n_state)
