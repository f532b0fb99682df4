"""The noise of samples, computed a second time: Philox 4x32-10 (Salmon et al. 2011), and Gumbel's distribution."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Words = npt.NDArray[np.uint64]

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
KEY_STEPS = 0x9E3779B9, 0xBB67AE85
LOW = np.uint64(0xFFFFFFFF)


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]) -> tuple[Words, Words, Words, Words]:
    """Return the four words of 32 bits that belong to a counter and a key."""
    for round_ in range(10):
        first, second = np.uint64(MULTIPLIERS[0]) * counter[0], np.uint64(MULTIPLIERS[1]) * counter[2]
        keys = [(word + np.uint64(round_ * step)) & LOW for word, step in zip(key, KEY_STEPS, strict=True)]
        high_first, high_second = first >> np.uint64(32), second >> np.uint64(32)
        counter = high_second ^ counter[1] ^ keys[0], second & LOW, high_first ^ counter[3] ^ keys[1], first & LOW
    return counter


def gumbel(seeds: npt.ArrayLike, n_vocab: int) -> npt.NDArray[np.float64]:
    """Return the noise of each token, shape (len(seeds), n_vocab)."""
    seed, token = np.asarray(seeds, dtype=np.uint64)[:, None], np.arange(n_vocab, dtype=np.uint64)[None]
    nothing = np.zeros((seed.size, n_vocab), dtype=np.uint64)
    words = philox((nothing, nothing, token + nothing, nothing), (seed & LOW, seed >> np.uint64(32)))
    uniform = ((words[0] >> np.uint64(9)).astype(np.float64) + 0.5) / 2**23
    return -np.log(-np.log1p(-uniform))


def assert_samples(ids: Tensor, filtered: Tensor, temperature: float, seeds: Tensor) -> None:
    """Check that tokens ids (batch) are what their seeds choose of logits (batch, n_vocab), whose filters have run."""
    scores = filtered.double() + temperature * torch.from_numpy(gumbel(seeds.numpy(), filtered.shape[1]))
    taken = scores.gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(taken, scores.max(dim=1).values, rtol=0, atol=1e-4)  # as float32 rounds
