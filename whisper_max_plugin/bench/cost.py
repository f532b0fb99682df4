"""What each stage must move and compute at least: a pure function of the model's dimensions.

Counted are the matrices, the keys and values and each stage's input and output, once each; a multiplication with its
addition is two operations. Left out are biases, norms and activations that a cache can hold, which is under 2 % of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from whisper.model import ModelDimensions

    from whisper_max_plugin.graphs import Types

N_SAMPLES = 480_000  # 30 s at 16 kHz, as the constants of `whisper.audio`
N_FRAMES = 3000
N_FFT = 400
FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class Storage:
    """Bytes that a subject reads for each value.

    Attributes
    ----------
    weights : float
        of a matrix, in stages of many rows: encoder, cross-attention's keys and values, prompts, alignment
    step_weights : float
        of a matrix, in decoding steps
    kv : float
        of a key or a value
    half_products : bool
        whether matrices are multiplied as float16, for which GPUs have faster units
    """

    weights: float = FLOAT32
    step_weights: float = FLOAT32
    kv: float = FLOAT32
    half_products: bool = False

    @classmethod
    def of_graphs(cls, types: Types) -> Storage:
        """Return what graphs of `types` read."""
        return cls(types.matrices.size_in_bytes, types.stored.size_in_bytes, types.cache.size_in_bytes, types.are_half)


@dataclass(frozen=True)
class Cost:
    """Bytes that a stage must move, and floating-point operations that it must compute."""

    n_bytes: float
    flops: float

    def seconds(self, bytes_per_second: float, flops_per_second: float | None) -> float:
        """Return the time below which no machine of these limits can be; None is for a speed that nobody measured."""
        moving = self.n_bytes / bytes_per_second
        return moving if flops_per_second is None else max(moving, self.flops / flops_per_second)

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.n_bytes + other.n_bytes, self.flops + other.flops)


def of_mel(dims: ModelDimensions) -> Cost:
    """The spectrogram of 30 s: windowed FFTs, and the mel filters as a matrix."""
    n_bins = N_FFT // 2 + 1
    fft = 5 * N_FFT * math.log2(N_FFT)
    filters = 2 * dims.n_mels * n_bins
    return Cost(FLOAT32 * (N_SAMPLES + dims.n_mels * N_FRAMES), N_FRAMES * (fft + filters))


def of_encoder(dims: ModelDimensions, storage: Storage) -> Cost:
    """The audio features of one window."""
    n_ctx, n_state = dims.n_audio_ctx, dims.n_audio_state
    conv1, conv2 = 3 * dims.n_mels * n_state, 3 * n_state**2
    block = 12 * n_state**2  # four projections, and the MLP of four times the width
    attention = 4 * n_ctx**2 * n_state  # scores, and the sum of values
    flops = 2 * 2 * n_ctx * conv1 + 2 * n_ctx * conv2 + dims.n_audio_layer * (2 * n_ctx * block + attention)
    weights = conv1 + conv2 + dims.n_audio_layer * block
    values = 2 * n_ctx * dims.n_mels + n_ctx * n_state
    return Cost(storage.weights * weights + FLOAT32 * values, flops)


def of_cross_kv(dims: ModelDimensions, storage: Storage) -> Cost:
    """The keys and values of cross-attention of one window, for all layers."""
    weights = 2 * dims.n_text_layer * dims.n_audio_state * dims.n_text_state
    n_bytes = (
        storage.weights * weights + FLOAT32 * dims.n_audio_ctx * dims.n_audio_state + _cross_kv_bytes(dims, storage)
    )
    return Cost(n_bytes, 2 * dims.n_audio_ctx * weights)


def of_pass(dims: ModelDimensions, storage: Storage, n_tokens: int, n_rows: int) -> Cost:
    """One decoder pass over `n_tokens` tokens from an empty cache, with logits for `n_rows` of them."""
    n_state, n_layer = dims.n_text_state, dims.n_text_layer
    blocks, vocabulary = n_layer * _block(dims), dims.n_vocab * n_state
    attention = n_layer * n_state * (2 * n_tokens * (n_tokens + 1) + 4 * n_tokens * dims.n_audio_ctx)
    flops = 2 * n_tokens * blocks + 2 * n_rows * vocabulary + attention
    values = n_tokens * n_state + n_rows * dims.n_vocab
    n_bytes = storage.weights * (blocks + vocabulary) + FLOAT32 * values + _cross_kv_bytes(dims, storage)
    return Cost(n_bytes + storage.kv * 2 * n_layer * n_tokens * n_state, flops)


def of_step(dims: ModelDimensions, storage: Storage, n_before: float, n_beams: int) -> Cost:
    """One decoding step of `n_beams` beams behind `n_before` tokens; they share the keys and values of their audio."""
    n_state, n_layer = dims.n_text_state, dims.n_text_layer
    weights = n_layer * _block(dims) + dims.n_vocab * n_state
    attention = 4 * n_layer * n_state * (n_before + 1 + dims.n_audio_ctx)
    self_kv = storage.kv * 2 * n_layer * n_beams * (n_before + 1) * n_state
    n_bytes = (
        storage.step_weights * weights + _cross_kv_bytes(dims, storage) + self_kv + FLOAT32 * n_beams * dims.n_vocab
    )
    return Cost(n_bytes, n_beams * (2 * weights + attention))


def _block(dims: ModelDimensions) -> int:
    """Values in the matrices of one decoder layer, without cross-attention's keys and values."""
    return 14 * dims.n_text_state**2


def _cross_kv_bytes(dims: ModelDimensions, storage: Storage) -> float:
    return storage.kv * 2 * dims.n_text_layer * dims.n_audio_ctx * dims.n_text_state
