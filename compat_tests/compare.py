"""What "the same as upstream" means: exact tokens and text, and how far apart floating-point values may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from inspect import signature
from typing import Any

import pytest
import whisper
from torch import Tensor
from whisper.decoding import DecodingOptions, DecodingResult

RELATIVE_ERROR = 1e-4  # of the largest magnitude: encoder output and logits
PROBABILITY_ERROR = 1e-3  # of probabilities and of mean log-probabilities
WORD_TIME_ERROR = 0.02  # seconds: one frame of the encoder's output

EXACT_OF_A_SEGMENT = ("id", "seek", "start", "end", "text", "tokens", "temperature", "compression_ratio")


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the largest absolute error, as a part of the largest magnitude expected."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    return float((actual - expected).abs().max() / expected.abs().max())


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Encoder output or logits are upstream's, but for float32 noise."""
    error = relative_error(actual, expected)
    assert error <= RELATIVE_ERROR, f"off by {error:.1e} of the largest value"


def assert_same_result(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """Two results of `transcribe()` are equal: texts, tokens and times exactly, scores but for noise."""
    assert actual.keys() == expected.keys()
    assert actual["text"] == expected["text"]
    assert actual["language"] == expected["language"]
    assert len(actual["segments"]) == len(expected["segments"])
    for segment, wanted in zip(actual["segments"], expected["segments"], strict=True):
        assert segment.keys() == wanted.keys()
        for key in EXACT_OF_A_SEGMENT:
            assert segment[key] == wanted[key], f"{key} of segment {wanted['id']}"
        for key in ("avg_logprob", "no_speech_prob"):
            assert segment[key] == pytest.approx(wanted[key], rel=0, abs=PROBABILITY_ERROR), key
        _assert_same_words(segment.get("words", []), wanted.get("words", []))


def _assert_same_words(actual: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> None:
    assert [word["word"] for word in actual] == [word["word"] for word in expected]
    for word, wanted in zip(actual, expected, strict=True):
        assert word.keys() == wanted.keys()
        for key in ("start", "end"):
            # 1e-6: times are decimal fractions, whose differences are not exact
            assert word[key] == pytest.approx(wanted[key], rel=0, abs=WORD_TIME_ERROR + 1e-6), (key, wanted)
        assert word["probability"] == pytest.approx(wanted["probability"], rel=0, abs=PROBABILITY_ERROR), wanted


def assert_same_decoding(actual: DecodingResult, expected: DecodingResult) -> None:
    """Two results of `decode()` are equal: tokens and text exactly, scores but for noise."""
    for key in ("tokens", "text", "language"):
        assert getattr(actual, key) == getattr(expected, key), key
    for key, error in (  # NaN where only the language was asked for
        ("temperature", 0),
        ("compression_ratio", 0),
        ("avg_logprob", PROBABILITY_ERROR),
        ("no_speech_prob", PROBABILITY_ERROR),
    ):
        assert getattr(actual, key) == pytest.approx(getattr(expected, key), rel=0, abs=error, nan_ok=True), key
    if expected.language_probs is None:
        assert actual.language_probs is None
    else:
        assert actual.language_probs == pytest.approx(expected.language_probs, rel=0, abs=PROBABILITY_ERROR)
    assert_close(actual.audio_features, expected.audio_features)


def assert_same_decodings(actual: Sequence[DecodingResult], expected: Sequence[DecodingResult]) -> None:
    """The results of two batches are equal, see `assert_same_decoding`."""
    assert len(actual) == len(expected)
    for result, wanted in zip(actual, expected, strict=True):
        assert_same_decoding(result, wanted)


def skip_unless_upstream_knows(options: dict[str, Any]) -> None:
    """Skip a test of options of `transcribe()` that the installed upstream does not have yet."""
    known = signature(whisper.transcribe).parameters.keys() | {field.name for field in fields(DecodingOptions)}
    if unknown := options.keys() - known:
        pytest.skip(f"this version of openai-whisper has no {', '.join(sorted(unknown))}")
