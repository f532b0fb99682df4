"""What "the same words as on upstream's model" means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pytest

from ..compare import PROBABILITY_ERROR


class Word(NamedTuple):
    """A word of a transcript: text, seconds and, if the package gives it, a probability."""

    text: str
    start: float
    end: float
    probability: float | None


def assert_same_words(actual: Sequence[Word], expected: Sequence[Word], *, digits: int | None = None) -> None:
    """Words and their times are equal; probabilities but for noise, and for the last of the `digits` that are given."""
    assert len(expected) > 0
    assert [word[:3] for word in actual] == [word[:3] for word in expected]
    error = PROBABILITY_ERROR + (0 if digits is None else 10**-digits)
    for word, wanted in zip(actual, expected, strict=True):
        if wanted.probability is None:
            assert word.probability is None
        else:
            assert word.probability == pytest.approx(wanted.probability, rel=0, abs=error), wanted
