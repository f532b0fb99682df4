"""Samples by noise are samples of the softmax; that kernels take this noise is checked where they search."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from ..noise import gumbel, philox


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # the known answers that come with Random123
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox(counter: list[int], key: list[int], words: list[int]) -> None:
    a, b, c, d = (np.array([word], dtype=np.uint64) for word in counter)
    e, f = (np.array([word], dtype=np.uint64) for word in key)
    assert [int(word[0]) for word in philox((a, b, c, d), (e, f))] == words


@pytest.mark.parametrize("seeds", [range(2000), [seed << 40 for seed in range(2000)]], ids=["low", "high"])
def test_noise_is_gumbels(seeds: list[int]) -> None:
    noise = gumbel(seeds, 300)
    for numbers in (noise.ravel(), noise[0], noise[:, 0]):
        assert stats.kstest(numbers, stats.gumbel_r.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]) < 0.01, "a seed and the next one are alike"


@pytest.mark.parametrize("temperature", [0.4, 1.0])
def test_tokens_are_as_frequent_as_likely(temperature: float) -> None:
    logits = 2 * torch.randn(40, generator=torch.Generator().manual_seed(0)).double()
    sampled = (logits.numpy() + temperature * gumbel(range(100_000), 40)).argmax(axis=1)
    expected = 100_000 * (logits / temperature).softmax(dim=0).numpy()
    often = expected > 20
    observed = np.bincount(sampled, minlength=40)
    rest = [observed[~often].sum()], [expected[~often].sum()]
    assert stats.chisquare([*observed[often], *rest[0]], [*expected[often], *rest[1]]).pvalue > 1e-3
