"""The operations in ``kernels/*.mojo`` as functions for graphs: those of many rows, and where their sources are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from max.dtype import DType
from max.graph import BufferValue, Dim, KernelLibrary, StaticDim, TensorType, TensorValue, ops

KERNELS = Path(__file__).parent.parent / "kernels"
"""The folder of the operations' sources."""

LARGEST_VECTOR = 16
"""float32 values in a register: what the attention kernels take a head to be a multiple of"""


def kernel_library() -> KernelLibrary:
    """Translate the operations, which takes seconds: once for all graphs of a module, and for its compiler."""
    library = KernelLibrary()
    library.load_paths([KERNELS])
    return library


def matmul(x: TensorValue, weight: TensorValue, out: DType | None = None) -> TensorValue:
    """Return ``x @ weight.T``, as x or `out`, for x (batch, length, k) of any number of rows, and weight (n, k).

    If x is of half width, on a GPU, tensor cores multiply, and weight is of the same type.
    """
    return _matmul("whisper_matmul", x, weight, out=out)


def matmul_bias(x: TensorValue, weight: TensorValue, bias: TensorValue, out: DType | None = None) -> TensorValue:
    """Return ``x @ weight.T + bias``."""
    return _matmul("whisper_matmul_bias", x, weight, bias, out=out)


def matmul_bias_gelu(x: TensorValue, weight: TensorValue, bias: TensorValue) -> TensorValue:
    """Return ``gelu(x @ weight.T + bias)``, by the error function."""
    return _matmul("whisper_matmul_bias_gelu", x, weight, bias)


def matmul_bias_add(x: TensorValue, weight: TensorValue, bias: TensorValue, residual: TensorValue) -> TensorValue:
    """Return ``x @ weight.T + bias + residual``, as the residual."""
    return _matmul("whisper_matmul_bias_add", x, weight, bias, residual, out=residual.dtype)


def heads(
    x: TensorValue, weight: TensorValue, bias: TensorValue | None, n_head: int, out: DType | None = None
) -> TensorValue:
    """Return ``x @ weight.T + bias`` as (batch, n_head, length, head_dim) of x (batch, length, k)."""
    batch, length, _ = x.shape
    result = TensorType(out or x.dtype, [batch, n_head, length, int(weight.shape[0]) // n_head], x.device)
    if bias is None:
        return ops.custom("whisper_heads", x.device, [x, weight], [result])[0].tensor
    return ops.custom("whisper_heads_bias", x.device, [x, weight, bias], [result])[0].tensor


def projections(x: TensorValue, parts: Sequence[tuple[TensorValue, TensorValue, int]]) -> list[TensorValue]:
    """Return `heads` of two or three weights (n, k), biases (n) and numbers of heads; on a GPU, in half width."""
    batch, length, _ = x.shape
    results = [
        TensorType(x.dtype, [batch, n_head, length, int(weight.shape[0]) // n_head], x.device)
        for weight, _, n_head in parts
    ]
    name = "whisper_query_key_value" if len(parts) == 3 else "whisper_key_value"
    operands = [x, *(operand for weight, bias, _ in parts for operand in (weight, bias))]
    return [result.tensor for result in ops.custom(name, x.device, operands, results)]


def conv_gelu(
    x: TensorValue, weight: TensorValue, bias: TensorValue, stride: int, positions: TensorValue | None
) -> TensorValue:
    """Return the GELU of a convolution of width 3 and padding 1, plus positions (length / stride, n_out), as those.

    x (batch, length, n_in), its length a multiple of the stride; weight (n_out, 3, n_in).
    """
    batch, length, _ = x.shape
    name, operands, dtype = "whisper_conv_gelu", [x, weight, bias], x.dtype
    if positions is not None:
        name, operands, dtype = "whisper_conv_gelu_add", [*operands, positions], positions.dtype
    out = TensorType(dtype, [batch, length // stride, weight.shape[0]], x.device)
    return ops.custom(name, x.device, operands, [out], parameters={"stride": stride})[0].tensor


def attention(q: TensorValue, keys: TensorValue, values: TensorValue) -> TensorValue:
    """Attend with q (n_audio, n_queries, n_state) to keys and values (n_audio, n_head, n_keys, head_dim)."""
    parameters = {"head_dim": int(keys.shape[3])}
    return ops.custom("whisper_attention", q.device, [q, keys, values], [q.type], parameters=parameters)[0].tensor


def scores(q: TensorValue, keys: TensorValue) -> TensorValue:
    """Return the products of q (n_audio, n_head, n_queries, head_dim) with keys (n_audio, n_head, n_keys, head_dim)."""
    out = TensorType(q.dtype, [*q.shape[:3], keys.shape[2]], q.device)
    return ops.custom("whisper_scores", q.device, [q, keys], [out])[0].tensor


def token_probs(logits: TensorValue, tokens: TensorValue, n_text: TensorValue) -> TensorValue:
    """Return the probability of each of tokens (m) in its row of logits (m, n_vocab), among the first `n_text` tokens.

    n_text is a scalar on the host.
    """
    out = TensorType(logits.dtype, [logits.shape[0]], logits.device)
    return ops.custom("whisper_token_probs", logits.device, [logits, tokens, n_text], [out])[0].tensor


def head_weights(scores: TensorValue, heads: TensorValue, n_frames: Dim) -> TensorValue:
    """Return the softmax of the first frames' scores (1, n_head, n_tokens, n_audio_ctx) of some heads (k).

    Returns (k, n_tokens, n_frames).
    """
    out = TensorType(scores.dtype, [heads.shape[0], scores.shape[2], n_frames], scores.device)
    return ops.custom("whisper_head_weights", scores.device, [scores, heads], [out])[0].tensor


def standardize(x: TensorValue) -> TensorValue:
    """Return x (k, n_tokens, n_frames) less its mean over the tokens, in units of its standard deviation."""
    return ops.custom("whisper_standardize", x.device, [x], [x.type])[0].tensor


def add_medians(matrix: BufferValue, x: TensorValue) -> None:
    """Add to matrix (n_tokens, n_frames) the median around each value of x (k, n_tokens, n_frames), for each k."""
    ops.inplace_custom("whisper_add_medians", x.device, [matrix, x])


def log_mel(
    mel: BufferValue,
    samples: TensorValue,
    window: TensorValue,
    filters: TensorValue,
    twiddles: TensorValue,
    padding: TensorValue,
) -> TensorValue:
    """Write the log-mel spectrogram of samples to mel (n_mels, n_frames), and return its largest value.

    On the CPU only; the operands are those of the graph, see `log_mel.build_log_mel`.
    """
    out = TensorType(mel.dtype, [1], mel.device)
    operands = [mel, samples, window, filters, twiddles, padding]
    return ops.inplace_custom("whisper_log_mel", mel.device, operands, [out])[0].tensor


def causal_attention(qkv: TensorValue, keys: BufferValue, values: BufferValue, head_dim: int) -> TensorValue:
    """Write tokens' keys and values to the end of a cache, and attend with each to all that does not come after it.

    qkv (batch, n_tokens, 3 * n_state); keys and values (n_filled, n_audio, n_group, n_copies, n_state), see
    `decoder.build_decoder`. Returns (batch, n_tokens, n_state).
    """
    out = TensorType(qkv.dtype, [*qkv.shape[:2], keys.shape[4]], qkv.device)
    operands = [qkv, keys, values]
    parameters = {"head_dim": head_dim}
    return ops.inplace_custom("whisper_causal_attention", qkv.device, operands, [out], parameters=parameters)[0].tensor


def _matmul(
    name: str, x: TensorValue, weight: TensorValue, *operands: TensorValue, out: DType | None = None
) -> TensorValue:
    result = TensorType(out or x.dtype, [*x.shape[:2], weight.shape[0]], x.device)
    # a length that is known is the encoder's: code for few rows, which would never run, takes seconds to compile
    parameters = {"may_be_few": not isinstance(x.shape[1], StaticDim)}
    return ops.custom(name, x.device, [x, weight, *operands], [result], parameters=parameters)[0].tensor
