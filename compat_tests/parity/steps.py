"""Compares decoding step by step, for random weights: there a token may be almost as good as the best one.

Where two tokens are closer than float32 noise, the tokens of the two models may part; then the logits up to there have
been compared, and the step is shown to have been a close call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from whisper.decoding import ApplyTimestampRules, BeamSearchDecoder, DecodingOptions, DecodingTask

from whisper_max_plugin.inference.decoding import MaxDecodingTask, MaxInference
from whisper_max_plugin.inference.search import Search

from ..compare import assert_close, assert_same_decodings
from ..conftest import Pair

CLOSE_CALL = 1e-3  # a difference of log-probabilities that float32 noise may turn round


def assert_same_decoding_steps(pair: Pair, mel: Tensor, options: DecodingOptions) -> None:
    """Decode mel (n_audio, n_mels, 3000) with both models: same logits and tokens at every step, and same results.

    Ours is decoded once more without recording its steps, which lets each graph do all that it can.
    """
    recordings = []
    for task in (MaxDecodingTask(pair.max, options), DecodingTask(pair.torch, options)):
        torch.manual_seed(1)
        steps = record_steps(task)
        recordings.append((task.run(mel), steps))
    (actual, actual_steps), (expected, expected_steps) = recordings
    if assert_same_steps(actual_steps, expected_steps):
        assert_same_decodings(actual, expected)
    torch.manual_seed(1)
    assert_same_decodings(MaxDecodingTask(pair.max, options).run(mel), actual)


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


def record_steps(task: DecodingTask) -> list[Step]:
    """Return the list that will receive each step of `task`."""
    return _record_ours(task.inference) if isinstance(task, MaxDecodingTask) else _record_upstreams(task)


def _record_upstreams(task: DecodingTask) -> list[Step]:
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

    task.inference.logits, task.decoder.update = logits, updated
    return steps


def _record_ours(inference: MaxInference) -> list[Step]:
    """Record where the decoder is asked, since what chooses is no longer upstream's code; margins are upstream's.

    So that there are logits before filters, the search runs behind each step, and not in the step's own graph.
    """
    steps: list[Step] = []
    infer = inference.logits

    def logits(tokens: Tensor, audio_features: Tensor) -> Any:
        result = infer(tokens, audio_features)
        steps.append(Step(tokens.clone(), result[:, -1].clone(), float("nan")))
        return result

    def step(search: Search, audio_features: Tensor, _n_left: int) -> int:
        search.update(inference.engine.device.put(logits(search.tokens, audio_features)[:, -1]))
        return 1

    inference.logits, inference.step = logits, step
    return steps


def assert_same_steps(actual: Sequence[Step], expected: Sequence[Step]) -> bool:
    """Two decoding loops saw the same logits and chose the same tokens; return whether they did so to the end.

    They may part after a close call, where noise decides between two tokens. Up to there the logits are compared.
    What a close call in the very last step led to is not looked at.
    """
    for index, (step, wanted) in enumerate(zip(actual, expected, strict=False)):
        if not torch.equal(step.tokens, wanted.tokens):
            margin = expected[index - 1].margin
            assert index > 0, "the loops start from different tokens"
            assert margin < CLOSE_CALL, f"step {index - 1} chose otherwise, with a margin of {margin:.1e}"
            return False
        assert_close(step.logits, wanted.logits)
    if expected[min(len(actual), len(expected)) - 1].margin < CLOSE_CALL:
        return False
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
