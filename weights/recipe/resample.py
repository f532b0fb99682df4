"""Change of the sampling rate by a ratio of integers, in float64 so that no machine rounds otherwise."""

from __future__ import annotations

import functools
import math

import numpy as np

HALF_WIDTH = 10  # the filter reaches this many samples of the lower rate to either side
KAISER_BETA = 5.0


def resample(samples: np.ndarray, up: int, down: int) -> np.ndarray:
    """Resample to up / down times the rate.

    The filter is the default of `scipy.signal.resample_poly`: a Kaiser-windowed sinc at the lower of both
    Nyquist frequencies.

    Parameters
    ----------
    samples : np.ndarray, shape = (n,)
    up, down : int
        The ratio of the new rate to the old one.

    Returns
    -------
    np.ndarray, shape = (ceil(n * up / down),), dtype = float32
    """
    common = math.gcd(up, down)
    up, down = up // common, down // common
    matrix, before = _matrix(up, down)
    width = len(matrix)
    n_blocks = -(-len(samples) // down)
    padded = np.zeros(n_blocks * down + width)
    padded[before : before + len(samples)] = samples
    blocks = np.lib.stride_tricks.sliding_window_view(padded, width)[: n_blocks * down : down]
    resampled: np.ndarray = (blocks @ matrix).ravel()[: -(-len(samples) * up // down)]
    return resampled.astype(np.float32)


@functools.cache
def _matrix(up: int, down: int) -> tuple[np.ndarray, int]:
    """Return the matrix that maps a block of inputs onto `up` outputs, and how many inputs precede the block.

    Every `down` inputs the filter meets the samples in the same way again: output j of a block lies at
    j * down / up inputs after the block's start.
    """
    slower = max(up, down)
    half = HALF_WIDTH * slower
    taps = np.sinc(np.arange(-half, half + 1) / slower) * np.kaiser(2 * half + 1, KAISER_BETA)
    taps *= up / taps.sum()
    before = after = half // up + 1
    inputs = np.arange(-before, down + after)[:, None]
    index = np.arange(up) * down - inputs * up + half  # (inputs, outputs)
    inside = (index >= 0) & (index < len(taps))
    return np.where(inside, taps[np.clip(index, 0, len(taps) - 1)], 0.0), before
