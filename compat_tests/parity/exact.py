"""Results and files that are equal to the last character, but for the scores among them.

A score is made from float32 sums, whose last digits depend on the order of summation: upstream's own change with the
processor, by up to 2e-4 here. Everything else is tokens, text, times in hundredths and ratios of byte counts.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from ..compare import PROBABILITY_ERROR

SCORES = ("avg_logprob", "no_speech_prob", "probability")

_SCORE_IN_JSON = re.compile(rf'("(?:{"|".join(SCORES)})": )([^,}}\]]+)')


def assert_equal_but_for_scores(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """Two results of `transcribe()` are equal, their scores but for float32 noise."""
    scores: list[float] = []
    wanted: list[float] = []
    assert _without_scores(actual, scores) == _without_scores(expected, wanted)
    assert scores == pytest.approx(wanted, rel=0, abs=PROBABILITY_ERROR, nan_ok=True)


def assert_json_equal_but_for_scores(actual: str, expected: str) -> None:
    """Two JSON files are equal to the byte, their scores but for float32 noise."""
    assert _SCORE_IN_JSON.sub(r"\1", actual) == _SCORE_IN_JSON.sub(r"\1", expected)
    assert _scores(actual) == pytest.approx(_scores(expected), rel=0, abs=PROBABILITY_ERROR, nan_ok=True)


def difference_of_scores(actual: str, expected: str) -> float:
    """Return the largest difference of a score between two JSON files that are otherwise equal."""
    return max(abs(score - wanted) for score, wanted in zip(_scores(actual), _scores(expected), strict=True))


def _without_scores(value: Any, scores: list[float]) -> Any:
    """Return a result without its scores, which are appended to a list."""
    if isinstance(value, dict):
        scores += [value[key] for key in SCORES if key in value]
        return {key: _without_scores(part, scores) for key, part in value.items() if key not in SCORES}
    if isinstance(value, list):
        return [_without_scores(part, scores) for part in value]
    return value


def _scores(text: str) -> list[float]:
    return [float(found[2]) for found in _SCORE_IN_JSON.finditer(text)]
