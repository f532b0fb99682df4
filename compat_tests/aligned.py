"""What upstream's ``find_alignment`` computes of scores and logits, in float64."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
import whisper.timing
from torch import Tensor

median_filter = inspect.unwrap(whisper.timing.median_filter)


def head_weights(scores: Tensor, heads: Sequence[int], n_frames: int) -> Tensor:
    """Return the attention of heads to a window's first frames; of scores (1, n_head, n_tokens, n_audio_ctx)."""
    return scores[0, list(heads), :, :n_frames].double().softmax(dim=-1)


def standardized(weights: Tensor) -> Tensor:
    """Return weights (n_heads, n_tokens, n_frames) less their mean over tokens, in standard deviations."""
    std, mean = torch.std_mean(weights.double(), dim=-2, keepdim=True, unbiased=False)
    return (weights - mean) / std


def filtered(scores: Tensor, heads: Sequence[int], n_frames: int) -> Tensor:
    """Return medians along the frames of what is standardized, (n_heads, n_tokens, n_frames)."""
    return median_filter(standardized(head_weights(scores, heads, n_frames)), 7)


def token_probs(logits: Tensor, tokens: Tensor, n_text: int) -> Tensor:
    """Return the probability of one token in each row of logits (n_rows, n_vocab), of the first `n_text`."""
    return logits[:, :n_text].double().softmax(dim=-1)[torch.arange(len(tokens)), tokens]
