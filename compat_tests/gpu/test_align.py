"""The kernels behind words' times on a GPU."""

from __future__ import annotations

import pytest
import torch

from ..aligned import head_weights, median_filter, standardized, token_probs
from .fixtures import Kernels, assert_close, blocks, kernels, seeded, unset

__all__ = ["kernels", "seeded"]  # fixtures, found by name

THREADS = 256
N_HEAD, N_AUDIO_CTX = 4, 700
N_FRAMES = [4, 255, 700]
HEADS = [3, 1]


@pytest.mark.parametrize("n_text", [1, 300, 2900])
def test_token_probs(kernels: Kernels, n_text: int) -> None:
    logits = 5 * torch.randn(3, 3000)
    tokens = torch.randint(n_text, (3,))
    probs = unset(3)
    kernels.run("token probs", 3, THREADS, [probs], [logits, tokens], 3000, n_text)
    assert_close(probs, token_probs(logits, tokens, n_text))


@pytest.mark.parametrize("n_frames", N_FRAMES)
def test_head_weights(kernels: Kernels, n_frames: int) -> None:
    n_tokens = 3
    scores = 3 * torch.randn(1, N_HEAD, n_tokens, N_AUDIO_CTX)
    weights = unset(len(HEADS), n_tokens, n_frames)
    inputs = [scores, torch.tensor(HEADS)]
    kernels.run("head weights", (n_tokens, len(HEADS)), THREADS, [weights], inputs, n_tokens, n_frames, N_AUDIO_CTX)
    assert_close(weights, head_weights(scores, HEADS, n_frames))


@pytest.mark.parametrize("n_frames", N_FRAMES)
def test_standardized_over_tokens(kernels: Kernels, n_frames: int) -> None:
    x = torch.rand(len(HEADS), 5, n_frames)
    y = unset(len(HEADS), 5, n_frames)
    kernels.run("standardize", (blocks(n_frames, THREADS), len(HEADS)), THREADS, [y], [x], 5, n_frames)
    assert_close(y, standardized(x))


@pytest.mark.parametrize("n_frames", N_FRAMES)
def test_medians_along_frames(kernels: Kernels, n_frames: int) -> None:
    x, matrix = torch.randn(len(HEADS), 3, n_frames), torch.randn(3, n_frames)
    expected = matrix.double() + median_filter(x.double(), 7).sum(dim=0)
    grid = blocks(n_frames, THREADS), 3
    kernels.run("add medians", grid, THREADS, [matrix], [x], len(HEADS), 3, n_frames)
    assert_close(matrix, expected)


@pytest.mark.parametrize("frame", [0, 100, 299])
def test_what_is_undefined_is_not_hidden_by_medians(kernels: Kernels, frame: int) -> None:
    x, matrix = torch.randn(1, 1, 300), torch.zeros(1, 300)
    x[0, 0, frame] = torch.nan
    kernels.run("add medians", (2, 1), THREADS, [matrix], [x], 1, 1, 300)
    assert matrix.isnan().nonzero().tolist() == [[0, frame]]
