"""Background noise: white, smoothed, brown, or the recording's own."""

from __future__ import annotations

import random

import numpy as np

from .recording import BACKGROUND


def draw_noise(r: random.Random, n_samples: int, recording: np.ndarray, silent: bool) -> np.ndarray:
    """Draw noise of about unit power; the recording's own background is for windows without speech.

    Returns
    -------
    np.ndarray, shape = (n_samples,), dtype = float32
    """
    noise = np.random.default_rng(r.getrandbits(32)).standard_normal(n_samples, dtype=np.float32)
    colour = r.random()
    if colour < 0.35:
        return np.convolve(noise, np.ones(4, np.float32) / 2, "same")
    if colour < 0.6:
        return brown(noise, r.choice((400, 800, 1600)))
    if colour < 0.7 and silent:
        background = recording[BACKGROUND[0] : BACKGROUND[1]]
        return np.tile(background, n_samples // len(background) + 1)[:n_samples] / 0.01
    return noise


def brown(noise: np.ndarray, width: int) -> np.ndarray:
    """Integrate white noise and subtract its moving average over `width` samples."""
    walk = np.cumsum(noise)
    padded = np.cumsum(np.pad(walk, (width // 2 + 1, width - width // 2 - 1), "edge"))
    average = (padded[width:] - padded[:-width]) / width
    walk[1:] -= average[: len(walk) - 1]
    walk[0] = walk[1]
    scaled: np.ndarray = walk / walk.std()
    return scaled.astype(np.float32)
