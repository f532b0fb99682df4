"""The search over the vocabulary on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from whisper_max_plugin.execution.step_inputs import suppressed_tokens
from whisper_max_plugin.graphs.step_kernels import TOKENS_OF_A_BLOCK

from ..noise import assert_samples
from .fixtures import (
    NOISE,
    Kernels,
    assert_equal,
    blocks,
    kernels,
    seeded,
    unset,
)

__all__ = ["kernels", "seeded"]  # fixtures, found by name

N_VOCAB, TEXT_END, BEGIN = 5000, 2900, 3000  # timestamps begin there; blocks meet at 2048 and 4096
RANGES = {
    "text and timestamps": [0, TEXT_END, BEGIN, N_VOCAB],
    "no text": [TEXT_END, TEXT_END, BEGIN + 7, N_VOCAB],
    "the end of text and late timestamps": [TEXT_END - 1, TEXT_END, N_VOCAB - 60, N_VOCAB],
    "no timestamps": [0, TEXT_END, N_VOCAB, N_VOCAB],
    "timestamps up to some": [0, TEXT_END, BEGIN, BEGIN + 50],
}
SUPPRESSED = {
    "nothing": [],
    "some": list(range(3, 900, 11)),
    "some twice": [5, *range(40, 900, 9), 5, 40, BEGIN + 1, 5],
}


def filtered(logits: Tensor, suppressed: list[int], ranges: Tensor) -> Tensor:
    """Return what upstream's filters leave: timestamps alone where they together are likelier than any text."""
    left = torch.full_like(logits, -torch.inf)
    for row, (text, text_end, stamps, stamps_end) in enumerate(ranges.tolist()):
        for begin, end in ((text, text_end), (stamps, stamps_end)):
            left[row, begin:end] = logits[row, begin:end]
        left[row, suppressed] = -torch.inf
        likeliest = left[row, text:text_end].max() if text < text_end else -torch.inf
        if left[row, stamps:stamps_end].double().logsumexp(dim=0) > likeliest:
            left[row, text:text_end] = -torch.inf
    return left


def run_search(
    kernels: Kernels,
    logits: Tensor,
    suppressed: list[int],
    ranges: Tensor,
    k: int,
    temperature: float | Tensor = 0,
    seeds: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids and log-probabilities of the `k` best, or of samples, and the logits that are left."""
    left, (batch, n_vocab) = logits.clone(), logits.shape
    n_parts = blocks(n_vocab, TOKENS_OF_A_BLOCK)
    totals, best = unset(batch, n_parts, 2, 2), unset(batch, n_parts, 2, k)
    tokens = torch.full((batch, n_parts, 2, k), -1, dtype=torch.int32)
    temperatures = torch.as_tensor(temperature, dtype=torch.float32).expand(batch).contiguous()
    seeds = torch.zeros(batch, dtype=torch.int64) if seeds is None else seeds
    inputs = [suppressed_tokens(suppressed), ranges, temperatures, seeds]
    sizes = n_vocab, len(inputs[0]), k
    kernels.run("search parts", (n_parts, batch), 256, [totals, best, tokens, left], inputs, *sizes, settled=inputs)
    ids, logprobs = torch.full((batch, k), -1), unset(batch, k)
    inputs = [totals, best, tokens, ranges, temperatures]
    kernels.run("search merge", batch, 256, [ids, logprobs, left], inputs, n_vocab, k, settled=[temperatures])
    return ids, logprobs, left


def assert_search_is_upstreams(kernels: Kernels, logits: Tensor, suppressed: list[int], ranges: Tensor, k: int) -> None:
    ids, logprobs, left = run_search(kernels, logits, suppressed, ranges, k)
    expected_left = filtered(logits, suppressed, ranges)
    assert_equal(left, expected_left)
    expected, expected_ids = expected_left.double().log_softmax(dim=1).sort(dim=1, descending=True, stable=True)
    impossible = expected[:, :k] == -torch.inf
    assert_equal(ids, expected_ids[:, :k].masked_fill(impossible, 0))
    torch.testing.assert_close(logprobs.double(), expected[:, :k], rtol=0, atol=NOISE["float32"])


@pytest.mark.parametrize("k", [1, 7])
@pytest.mark.parametrize("suppressed", SUPPRESSED.values(), ids=SUPPRESSED)
@pytest.mark.parametrize("timestamps_likelier_by", [-8.0, 0.0, 8.0])
def test_search(kernels: Kernels, k: int, suppressed: list[int], timestamps_likelier_by: float) -> None:
    ranges = torch.tensor([*RANGES.values()])
    logits = 3 * torch.randn(len(ranges), N_VOCAB)
    logits[:, BEGIN:] += timestamps_likelier_by
    assert_search_is_upstreams(kernels, logits, suppressed, ranges, k)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("timestamps_likelier_by", [-8.0, 0.0, 8.0])
@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_samples(kernels: Kernels, k: int, timestamps_likelier_by: float, temperature: float) -> None:
    ranges = torch.tensor([*RANGES.values()])
    logits = 3 * torch.randn(len(ranges), N_VOCAB)
    logits[:, BEGIN:] += timestamps_likelier_by
    seeds = torch.randint(2**62, (len(ranges),))
    ids, logprobs, left = run_search(kernels, logits, SUPPRESSED["some"], ranges, k, temperature, seeds)
    expected_left = filtered(logits, SUPPRESSED["some"], ranges)
    assert_equal(left, expected_left)
    remaining = left.clone()
    for place in range(k):  # without repetition
        assert_samples(ids[:, place], remaining, temperature, seeds)
        remaining.scatter_(1, ids[:, place, None], -torch.inf)
    expected = expected_left.double().log_softmax(dim=1).gather(1, ids)
    torch.testing.assert_close(logprobs.double(), expected, rtol=0, atol=NOISE["float32"])


def test_each_row_has_a_temperature_of_its_own(kernels: Kernels) -> None:
    ranges = torch.tensor([RANGES["text and timestamps"]] * 2)
    logits, seeds = torch.randn(2, N_VOCAB), torch.tensor([11, 11])
    temperatures = torch.tensor([0.0, 1.0])
    ids, logprobs, left = run_search(kernels, logits, [], ranges, 1, temperatures, seeds)
    assert ids[0] == left[0].argmax()
    assert_samples(ids[1], left[1:], 1.0, seeds[1:])
    torch.testing.assert_close(logprobs, left.log_softmax(dim=1).gather(1, ids))


def test_of_equal_tokens_the_first_is_the_best(kernels: Kernels) -> None:
    ranges = torch.tensor([*RANGES.values()])
    logits = torch.randint(0, 3, (len(ranges), N_VOCAB)).float()
    logits[:, BEGIN:] -= 20
    assert_search_is_upstreams(kernels, logits, SUPPRESSED["some"], ranges, 7)


def test_what_cannot_be_chosen_is_no_candidate(kernels: Kernels) -> None:
    ranges = torch.tensor([RANGES["text and timestamps"], [7, 10, N_VOCAB, N_VOCAB]])
    logits = torch.full((2, N_VOCAB), -torch.inf)
    logits[:, [8, 9, TEXT_END - 1]] = torch.randn(2, 3)
    assert_search_is_upstreams(kernels, logits, [9], ranges, 7)


def test_nan_is_never_ranked(kernels: Kernels) -> None:
    ranges = torch.tensor([RANGES["text and timestamps"]] * 2)
    logits = torch.randn(2, N_VOCAB)
    logits[0, [3, BEGIN]] = torch.nan
    ids, logprobs, _ = run_search(kernels, logits, [], ranges, 7)
    assert not {3, BEGIN} & set(ids[0].tolist())
    assert bool(logprobs[0].isnan().all())
    assert bool(logprobs[1].isfinite().all())
