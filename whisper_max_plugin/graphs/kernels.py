"""The operations in ``kernels/*.mojo`` as functions for graphs; on the CPU, in float32."""

from __future__ import annotations

from pathlib import Path

from max.graph import BufferValue, TensorType, TensorValue, ops

KERNELS = Path(__file__).parent.parent / "kernels"
"""What graphs take as ``custom_extensions``, and the compiler again for a module of graphs."""


def project(x: TensorValue, weight: TensorValue) -> TensorValue:
    """Return ``x @ weight.T`` for x (m, k) and weight (n, k), stored in any type."""
    return ops.custom("whisper_project", x.device, [x, weight], [_rows(x, weight)])[0].tensor


def linear(x: TensorValue, weight: TensorValue, bias: TensorValue) -> TensorValue:
    """Return ``x @ weight.T + bias``."""
    return ops.custom("whisper_linear", x.device, [x, weight, bias], [_rows(x, weight)])[0].tensor


def linear_gelu(x: TensorValue, weight: TensorValue, bias: TensorValue) -> TensorValue:
    """Return ``gelu(x @ weight.T + bias)``, by the error function."""
    return ops.custom("whisper_linear_gelu", x.device, [x, weight, bias], [_rows(x, weight)])[0].tensor


def linear_add(x: TensorValue, weight: TensorValue, bias: TensorValue, residual: TensorValue) -> TensorValue:
    """Return ``x @ weight.T + bias + residual``."""
    return ops.custom("whisper_linear_add", x.device, [x, weight, bias, residual], [residual.type])[0].tensor


def self_attention(
    qkv: TensorValue,
    keys: BufferValue,
    values: BufferValue,
    holders: TensorValue,
    position: TensorValue,
    head_dim: int,
) -> TensorValue:
    """Write one token's keys and values into a cache, and attend to all up to it.

    qkv (batch, 3 * n_state); keys and values (n_text_ctx, n_audio, n_group, n_state); holders (batch, n_text_ctx)
    int32, the row of the cache that holds a sequence's entry at each position; position (1) int64. Returns
    (batch, n_state).
    """
    out = TensorType(qkv.dtype, [qkv.shape[0], keys.shape[3]], qkv.device)
    operands = [qkv, keys, values, holders, position]
    parameters = {"head_dim": head_dim}
    return ops.inplace_custom("whisper_self_attention", qkv.device, operands, [out], parameters=parameters)[0].tensor


def cross_attention(q: TensorValue, keys: TensorValue, values: TensorValue) -> TensorValue:
    """Attend to the keys and values of windows, (n_audio, n_head, n_audio_ctx, head_dim), with q (batch, n_state)."""
    parameters = {"head_dim": int(keys.shape[3])}
    return ops.custom("whisper_cross_attention", q.device, [q, keys, values], [q.type], parameters=parameters)[0].tensor


def search(
    ids: BufferValue, logprobs: BufferValue, logits: BufferValue, suppressed: TensorValue, ranges: TensorValue
) -> None:
    """Filter logits (batch, n_vocab) in place, and write each row's k best tokens to ids and logprobs (batch, k).

    suppressed (n) int64; ranges (batch, 4) int64: the first and last but one token of text, and of timestamps.
    """
    ops.inplace_custom("whisper_search", logits.device, [ids, logprobs, logits, suppressed, ranges])


def _rows(x: TensorValue, weight: TensorValue) -> TensorType:
    return TensorType(x.dtype, [x.shape[0], weight.shape[0]], x.device)
