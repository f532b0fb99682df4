"""Input that no subject has seen before, the same for each of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from whisper_max_plugin.bench.cost import N_SAMPLES
from whisper_max_plugin.bench.protocol import Setup
from whisper_max_plugin.bench.stages import PROMPT_LENGTH

N_ORDINARY_TOKENS = 50_000  # the ids below are words' in every vocabulary


class Inputs:
    """A sequence of random windows; two calls never return the same."""

    def __init__(self, setup: Setup) -> None:
        self._dims = setup.dims
        self._random = np.random.default_rng(0)
        self.prompt: list[int] = np.random.default_rng(1).integers(N_ORDINARY_TOKENS, size=PROMPT_LENGTH).tolist()

    def samples(self) -> NDArray[np.float32]:
        """30 s of noise, shape = (n_samples,)."""
        return 0.1 * self._random.standard_normal(N_SAMPLES, dtype=np.float32)

    def mel(self) -> NDArray[np.float32]:
        """A spectrogram, shape = (1, n_mels, n_frames)."""
        shape = (1, self._dims["n_mels"], 2 * self._dims["n_audio_ctx"])
        return self._random.standard_normal(shape, dtype=np.float32)

    def audio_features(self) -> NDArray[np.float32]:
        """What an encoder might return, shape = (1, n_audio_ctx, n_audio_state)."""
        shape = (1, self._dims["n_audio_ctx"], self._dims["n_audio_state"])
        return self._random.standard_normal(shape, dtype=np.float32)

    def tokens(self, n_tokens: int) -> list[int]:
        """A text to align."""
        tokens: list[int] = self._random.integers(N_ORDINARY_TOKENS, size=n_tokens).tolist()
        return tokens


def recording(path: Path | None, seconds: float | None) -> NDArray[np.float32]:
    """Return the recording that `Setup.samples` names, or its beginning; 16 kHz, shape = (n_samples,)."""
    if path is None:
        raise ValueError("there is no recording to transcribe")
    samples: NDArray[np.float32] = np.load(path)
    return samples if seconds is None else samples[: round(16_000 * seconds)]
