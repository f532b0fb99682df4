"""Proves that two results differ because upstream had a tie to break: to it both choices were equally good.

Most of nano's token rows are zero, so that the logits of these tokens are equal to the bit. In beam search each beam's
cumulated log-probability is added, and float32 noise in that sum ranks what differs in nothing else. The alignment of
words to a text that is not in the audio can have several best paths, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import whisper.timing
from torch import Tensor
from whisper.decoding import BeamSearchDecoder, GreedyDecoder, MaximumLikelihoodRanker, TokenDecoder

TIE = 1e-4  # a difference of log-probabilities, or of the costs of two paths, that is float32 noise


@dataclass(frozen=True)
class Decision:
    """The tokens that one step of decoding chose, the best of the finished sequences, or the path through attention.

    Attributes
    ----------
    given : what was there before: the tokens, the number of sequences, or the shape of the matrix
    choice : the tokens, or the path
    price : by how much another choice is worse, judged by what this one was made from
    """

    given: Tensor
    choice: Tensor
    price: Callable[[Tensor], float]


def price_of_the_other_choice(ours: Callable[[], object], theirs: Callable[[], object]) -> float | None:
    """Run both calls, and return by how much `theirs` preferred its choice where they first chose differently.

    None if they chose the same all along.
    """
    choices: list[tuple[Tensor, Tensor]] = []
    prices: list[float] = []

    def record(decision: Decision) -> None:
        choices.append((decision.given, decision.choice))

    def compare(decision: Decision) -> None:
        if prices:
            return
        given, choice = next(remaining, (torch.empty(0), torch.empty(0)))
        assert torch.equal(decision.given, given), "the calls part between two decisions"
        if not torch.equal(decision.choice, choice):
            prices.append(decision.price(choice))

    with _decisions_shown_to(record):
        ours()
    remaining = iter(choices)
    with _decisions_shown_to(compare):
        theirs()
    return prices[0] if prices else None


@contextmanager
def _decisions_shown_to(see: Callable[[Decision], None]) -> Iterator[None]:
    """Call `see` at each step of decoding and at each alignment of words."""

    def watched(update: Callable[..., Any]) -> Callable[..., Any]:
        def watched_update(decoder: TokenDecoder, tokens: Tensor, logits: Tensor, sum_logprobs: Tensor) -> Any:
            sums, random_state = sum_logprobs.clone(), torch.get_rng_state()
            result = update(decoder, tokens, logits, sum_logprobs)
            chosen: Tensor = result[0]
            if isinstance(decoder, BeamSearchDecoder):
                see(Decision(tokens, chosen, lambda other: _price_of_beams(tokens, logits, sums, chosen, other)))
            elif isinstance(decoder, GreedyDecoder):
                heat = decoder.temperature
                see(Decision(tokens, chosen, lambda other: _price_of_tokens(logits, heat, random_state, chosen, other)))
            return result

        return watched_update

    def watched_rank(ranker: MaximumLikelihoodRanker, tokens: list[list[Tensor]], sums: list[list[float]]) -> list[int]:
        selected = rank(ranker, tokens, sums)
        for candidates, own_sums, index in zip(tokens, sums, selected, strict=True):
            see(_ranking(candidates, own_sums, index, ranker.length_penalty))
        return selected

    def watched_dtw(matrix: Tensor) -> np.ndarray:
        path = align(matrix)
        chosen = torch.from_numpy(np.array(path))
        see(Decision(torch.tensor(matrix.shape), chosen, lambda other: _cost(matrix, other) - _cost(matrix, chosen)))
        return path

    rank, align = MaximumLikelihoodRanker.rank, whisper.timing.dtw
    with pytest.MonkeyPatch.context() as patch:
        for cls in (GreedyDecoder, BeamSearchDecoder):
            patch.setattr(cls, "update", watched(cls.update))
        patch.setattr(MaximumLikelihoodRanker, "rank", watched_rank)
        patch.setattr(whisper.timing, "dtw", watched_dtw)
        yield


def _price_of_beams(tokens: Tensor, logits: Tensor, sum_logprobs: Tensor, chosen: Tensor, other: Tensor) -> float:
    """Compare the beams rank by rank."""
    scores = logits.float().log_softmax(dim=-1) + sum_logprobs[:, None]
    rows = {tuple(sequence): row for row, sequence in enumerate(tokens.tolist())}
    return max(
        abs(float(scores[rows[tuple(own[:-1])], own[-1]] - scores[rows[tuple(theirs[:-1])], theirs[-1]]))
        for own, theirs in zip(chosen.tolist(), other.tolist(), strict=True)
    )


def _price_of_tokens(logits: Tensor, temperature: float, random_state: Tensor, chosen: Tensor, other: Tensor) -> float:
    """Compare the next token of each sequence; to draw one, torch divides probabilities by exponential numbers."""
    scores = logits
    if temperature > 0:
        generator = torch.Generator()
        generator.set_state(random_state)
        draws = torch.empty_like(logits).exponential_(1, generator=generator)
        scores = (logits / temperature).log_softmax(dim=-1) - draws.log()
    return float((scores.gather(1, chosen[:, -1:]) - scores.gather(1, other[:, -1:])).abs().max())


def _ranking(sequences: list[Tensor], sums: list[float], index: int, length_penalty: float | None) -> Decision:
    """Return the decision for sequence `index`, by log-probability over length or over a penalty of it."""
    lengths = [len(sequence) for sequence in sequences]
    penalties = lengths if length_penalty is None else [((5 + length) / 6) ** length_penalty for length in lengths]
    scores = {
        tuple(sequence.tolist()): total / penalty
        for sequence, total, penalty in zip(sequences, sums, penalties, strict=True)
    }
    chosen = sequences[index]

    def price(other: Tensor) -> float:
        return scores[tuple(chosen.tolist())] - scores.get(tuple(other.tolist()), -math.inf)

    return Decision(torch.tensor(len(sequences)), chosen, price)


def _cost(matrix: Tensor, path: Tensor) -> float:
    return float(matrix.double()[path[0], path[1]].sum())
