"""What a log-mel spectrogram is made with, beside the samples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from whisper.audio import N_FFT, mel_filters


@dataclass(frozen=True)
class MelTables:
    """Upstream's window and filters, and the factors of the transform.

    Attributes
    ----------
    window : Tensor, shape = (N_FFT,)
    filters : Tensor, shape = (n_mels, N_FFT / 2 + 1)
    twiddles : Tensor, shape = (N_FFT, 2)
        ``exp(-2j * pi * i / N_FFT)``
    """

    window: Tensor
    filters: Tensor
    twiddles: Tensor


@cache
def mel_tables(n_mels: int) -> MelTables:
    """Return the tables for 80 or 128 mels.

    Raises
    ------
    AssertionError
        upstream's, for another number
    """
    angles = 2 * np.pi * np.arange(N_FFT) / N_FFT
    twiddles = np.stack([np.cos(angles), -np.sin(angles)], axis=1).astype(np.float32)
    window = torch.hann_window(N_FFT, dtype=torch.float32)
    return MelTables(window, mel_filters("cpu", n_mels), torch.from_numpy(twiddles))
