"""Word error rates, and by how much each greedy decision was won."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypedDict

import numpy as np
from torch import Tensor
from whisper.decoding import GreedyDecoder
from whisper.normalizers import BasicTextNormalizer, EnglishTextNormalizer


class WordErrors(TypedDict):
    """Edits that turn the reference's words into those of the transcript."""

    wer: float
    words: int
    edits: int
    exact: int


_normalise_english = EnglishTextNormalizer()
_normalise_other = BasicTextNormalizer()


def word_errors(references: Sequence[str], transcripts: Sequence[str], language: str = "en") -> WordErrors:
    """Compare transcripts with references, as Whisper's paper does: after normalising both.

    `exact` counts the transcripts that equal their reference as they are, capitals and marks included.
    """
    normalise: Callable[[str], str] = _normalise_english if language == "en" else _normalise_other
    words = edits = exact = 0
    for reference, transcript in zip(references, transcripts, strict=True):
        wanted = normalise(reference).split()
        words += len(wanted)
        edits += edit_distance(wanted, normalise(transcript).split())
        exact += reference.strip() == transcript.strip()
    return {"wer": round(edits / words, 4), "words": words, "edits": edits, "exact": exact}


def edit_distance(wanted: Sequence[str], got: Sequence[str]) -> int:
    """Return the least number of substitutions, deletions and insertions (Levenshtein)."""
    row = list(range(len(got) + 1))
    for i, word in enumerate(wanted, start=1):
        above_left, row[0] = row[0], i
        for j, other in enumerate(got, start=1):
            above = row[j]
            row[j] = min(above + 1, row[j - 1] + 1, above_left + (word != other))
            above_left = above
    return row[-1]


@contextmanager
def greedy_margins() -> Iterator[list[float]]:
    """Record, at each greedy step, how far the best filtered logit lies above the second best."""
    margins: list[float] = []
    original = GreedyDecoder.update

    def update(self: GreedyDecoder, tokens: Tensor, logits: Tensor, sum_logprobs: Tensor) -> tuple[Tensor, bool]:
        if self.temperature == 0:
            running = tokens[:, -1] != self.eot
            best = logits[running].topk(2).values
            steps = (best[:, 0] - best[:, 1]).tolist()
            margins.extend(margin for margin in steps if np.isfinite(margin))  # infinite: the rules left one token
        result: tuple[Tensor, bool] = original(self, tokens, logits, sum_logprobs)
        return result

    GreedyDecoder.update = update
    try:
        yield margins
    finally:
        GreedyDecoder.update = original


def summary(margins: Sequence[float]) -> dict[str, float]:
    """Return number, median, first percentile and minimum."""
    median, first, least = np.percentile(margins, [50, 1, 0])
    return {
        "n": len(margins),
        "median": round(float(median), 3),
        "p1": round(float(first), 3),
        "min": round(float(least), 3),
    }
