"""`transcribe()` gives upstream's result, to the last digit of a time, with each two options together.

Scores are compared but for float32 noise, see `exact`. Where anything else differs, upstream had a tie to break: that
is proved, see `ties`, and said in a warning. `pytest -m large` draws further rows from all combinations of options.
"""

from __future__ import annotations

import os
import warnings
from itertools import islice
from typing import Any

import numpy as np
import pytest

from ..conftest import Pair
from . import grid
from .exact import assert_equal_but_for_scores
from .ties import TIE, price_of_the_other_choice

pytestmark = pytest.mark.usefixtures("installed")

ROWS = grid.pairwise_rows()
RECORDINGS = grid.recordings()
DRAWS = int(os.environ.get("WHISPER_MAX_TEST_DRAWS", "300"))
PARTS = 10  # of the draws, each a test

IN_FULL: dict[str, dict[str, Any]] = {
    "default options": {},
    "beams, words": {"beam_size": 5, "word_timestamps": True},
}

REFUSED: list[dict[str, Any]] = [
    {"patience": 2.0},
    {"beam_size": 0},
    {"beam_size": 5, "patience": 0.01},
    {"length_penalty": 1.5},
    {"length_penalty": -0.1},
    {"language": "xx"},
    {"suppress_tokens": (1, 2)},
    {"suppress_tokens": "a,b"},
    {"temperature": "hot"},
    {"temperature": ()},
    {"clip_timestamps": "a"},
    {"beams": 5},
]
BESIDE: list[dict[str, Any]] = [
    {},
    {"word_timestamps": True, "language": "en"},
    {"best_of": 3, "temperature": grid.FALLBACK, "task": "translate"},
]


def assert_same_outcome(pair: Pair, audio: np.ndarray, options: dict[str, Any]) -> dict[str, Any]:
    """The accelerated model gives upstream's result or error, or upstream had a tie to break; return what it gave."""

    def ours() -> dict[str, Any]:
        return grid.transcribe(pair.max, audio, options)

    def theirs() -> dict[str, Any]:
        return grid.transcribe(pair.torch, audio, options)

    expected = theirs()
    try:
        assert_equal_but_for_scores(ours(), expected)
    except AssertionError:
        price = price_of_the_other_choice(ours, theirs)
        assert price is not None, f"no choice differs, but the results of {options}"
        assert price < TIE, f"upstream's choice is better by {price:.1e} with {options}"
        warnings.warn(f"upstream had a tie to break: its choice is better by {price:.1e}", stacklevel=2)
    return expected


@pytest.fixture(scope="module")
def texts() -> dict[int, str]:
    """The text of each row that was run."""
    return {}


def test_each_two_choices_are_together_in_a_row() -> None:
    assert set().union(*map(grid.pairs, ROWS)) == set(grid.all_pairs())
    assert len(ROWS) < 1.2 * max(
        len(names) * len(others) for names in grid.factors().values() for others in grid.factors().values()
    )


@pytest.mark.filterwarnings("ignore:Word-level timestamps on translations")
@pytest.mark.parametrize("index", range(len(ROWS)), ids=lambda index: grid.describe(ROWS[index]))
def test_the_result_is_upstreams(nano: Pair, texts: dict[int, str], index: int) -> None:
    texts[index] = assert_same_outcome(nano, *grid.arguments(ROWS[index])).get("text", "")


def test_most_rows_have_text(texts: dict[int, str]) -> None:
    """What is compared above are transcripts: even silence, where thresholds and prefixes make nano talk."""
    if len(texts) < len(ROWS):
        pytest.skip("not all rows were run in this process")
    assert sum(map(bool, texts.values())) > 0.6 * len(texts)


@pytest.mark.parametrize("options", IN_FULL)
@pytest.mark.parametrize("recording", RECORDINGS)
def test_a_recording_in_full(nano: Pair, recording: str, options: str) -> None:
    outcome = assert_same_outcome(nano, grid.samples(RECORDINGS[recording]()), {"fp16": False, **IN_FULL[options]})
    assert "error" not in outcome


@pytest.mark.filterwarnings("ignore:Word-level timestamps on translations")
@pytest.mark.parametrize("options", REFUSED, ids=str)
def test_what_upstream_refuses_is_refused_with_its_words(nano: Pair, options: dict[str, Any]) -> None:
    audio = grid.AUDIOS["Spanish"]()
    for beside in BESIDE:
        outcome = assert_same_outcome(nano, audio, {"fp16": False, **beside, **options})
        assert "error" in outcome


@pytest.mark.large
@pytest.mark.filterwarnings("ignore:Word-level timestamps on translations")
@pytest.mark.parametrize("part", range(PARTS))
def test_random_rows(nano: Pair, part: int) -> None:
    for row in islice(grid.random_rows(DRAWS, seed=1), part, None, PARTS):
        assert_same_outcome(nano, *grid.arguments(row))
