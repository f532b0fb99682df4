"""What "the same as upstream" means: exact tokens and text, and how far apart floating-point values may be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from inspect import signature
from itertools import pairwise
from typing import Any

import pytest
import torch
import whisper
from torch import Tensor
from whisper.decoding import ApplyTimestampRules, BeamSearchDecoder, DecodingOptions, DecodingResult, DecodingTask

RELATIVE_ERROR = 1e-4  # of the largest magnitude: encoder output and logits
PROBABILITY_ERROR = 1e-3  # of probabilities and of mean log-probabilities
WORD_TIME_ERROR = 0.02  # seconds: one frame of the encoder's output
CLOSE_CALL = 1e-3  # a difference of log-probabilities that float32 noise may turn round

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


def skip_unless_upstream_knows(options: dict[str, Any]) -> None:
    """Skip a test of options of `transcribe()` that the installed upstream does not have yet."""
    known = signature(whisper.transcribe).parameters.keys() | {field.name for field in fields(DecodingOptions)}
    if unknown := options.keys() - known:
        pytest.skip(f"this version of openai-whisper has no {', '.join(sorted(unknown))}")


@dataclass(frozen=True)
class Step:
    """One step of a decoding loop.

    Attributes
    ----------
    tokens : what the sequences were before, shape = (batch, n_tokens)
    logits : of the next token, before filters, shape = (batch, n_vocab)
    margin : how far, in log-probability, the step was from deciding otherwise
    """

    tokens: Tensor
    logits: Tensor
    margin: float


@contextmanager
def recorded_steps(task: DecodingTask) -> Iterator[list[Step]]:
    """Yield the list that receives each step of `task`."""
    steps: list[Step] = []
    infer: Callable[..., Any] = task.inference.logits
    update: Callable[..., Any] = task.decoder.update
    latest: list[Tensor] = []

    def logits(tokens: Tensor, audio_features: Tensor) -> Any:
        result = infer(tokens, audio_features)
        latest[:] = [result[:, -1].clone()]
        return result

    def updated(tokens: Tensor, filtered: Tensor, sum_logprobs: Tensor) -> Any:
        margin = min(_margin_of_rules(task, tokens, latest[0]), _margin_of_choice(task, tokens, filtered, sum_logprobs))
        steps.append(Step(tokens.clone(), latest[0], margin))
        return update(tokens, filtered, sum_logprobs)

    task.inference.logits, task.decoder.update = logits, updated  # type: ignore[method-assign]
    yield steps
    del task.inference.logits, task.decoder.update


def assert_same_steps(actual: Sequence[Step], expected: Sequence[Step]) -> bool:
    """Two decoding loops saw the same logits and chose the same tokens; return whether they did so to the end.

    They may part after a close call, where noise decides between two tokens. Up to there the logits are compared.
    """
    for index, (step, wanted) in enumerate(zip(actual, expected, strict=False)):
        if not torch.equal(step.tokens, wanted.tokens):
            margin = expected[index - 1].margin
            assert index > 0, "the loops start from different tokens"
            assert margin < CLOSE_CALL, f"step {index - 1} chose otherwise, with a margin of {margin:.1e}"
            return False
        assert_close(step.logits, wanted.logits)
    assert len(actual) == len(expected)
    return True


def _margin_of_choice(task: DecodingTask, tokens: Tensor, filtered: Tensor, sum_logprobs: Tensor) -> float:
    """Return the least difference between neighbours in the ranking from which greedy or beam search chooses."""
    beam_size = task.decoder.beam_size if isinstance(task.decoder, BeamSearchDecoder) else None
    group = beam_size or 1
    values, ids = filtered.float().log_softmax(dim=-1).topk(group + 1)
    margin = float("inf")
    for first in range(0, len(tokens), group):
        scores = {  # by sequence, since all beams of the first step are the same one
            (*tokens[row].tolist(), int(token)): float(value + (sum_logprobs[row] if beam_size else 0))
            for row in range(first, first + group)
            for value, token in zip(values[row], ids[row], strict=True)
        }
        ranking = sorted(scores.values(), reverse=True)[: 2 * group]
        margin = min(margin, *(a - b for a, b in pairwise(ranking)))
    return margin


def _margin_of_rules(task: DecodingTask, tokens: Tensor, logits: Tensor) -> float:
    """Return the least difference at which the timestamp rules choose between a timestamp and text."""
    if not any(isinstance(rule, ApplyTimestampRules) for rule in task.logit_filters):
        return float("inf")
    logits = logits.clone()
    for rule in task.logit_filters[:-1]:
        rule.apply(logits, tokens)
    text = logits[:, : task.tokenizer.timestamp_begin].max(dim=-1).values
    task.logit_filters[-1].apply(logits, tokens)
    timestamps = logits[:, task.tokenizer.timestamp_begin :].logsumexp(dim=-1)
    return float((timestamps - text).abs().min())
