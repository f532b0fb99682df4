"""Seeded inputs for models of any dimensions."""

from __future__ import annotations

import torch
from torch import Tensor
from whisper.model import ModelDimensions


def random_mel(dims: ModelDimensions, n_audio: int = 1, seed: int = 0) -> Tensor:
    """A mel spectrogram, shape = (n_audio, n_mels, 2 * n_audio_ctx), within the range of real ones."""
    shape = (n_audio, dims.n_mels, 2 * dims.n_audio_ctx)
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 1


def random_tokens(dims: ModelDimensions, *shape: int, seed: int = 0) -> Tensor:
    """Tokens from the whole vocabulary."""
    return torch.randint(dims.n_vocab, shape, generator=torch.Generator().manual_seed(seed))
