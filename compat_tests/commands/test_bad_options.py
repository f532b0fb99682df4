"""Bad and odd options, and prompts longer than the context: upstream's own errors, else its tokens."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from whisper_max_plugin.audio import load_audio

from ..bad_input_fixtures import EOT, QUICK, assert_same_outcome, installed, mel
from ..compare import assert_same_result
from ..conftest import Pair
from ..data import SAMPLE

__all__ = ["installed", "mel"]  # fixtures, found by name


# Prompts


def test_the_context_can_be_filled_to_its_end(nano: Pair, mel: Tensor) -> None:
    options = {
        **QUICK,
        "sample_len": 448,
        "prompt": list(range(300, 600)),
        "suppress_tokens": [EOT],
        "without_timestamps": True,
    }
    results = [model.decode(mel, **copy.deepcopy(options)) for model in (nano.max, nano.torch)]
    assert results[0].tokens == results[1].tokens
    assert len(results[0].tokens) == 448 + 1 - 224 - 4  # context + 1, less prompt and sot sequence


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": "a longer story " * 300},
        {"prompt": list(range(300, 3000))},
        {"prompt": "a longer story " * 300, "beam_size": 2},
        {"prefix": "a longer story " * 300},
        {"prefix": list(range(300, 3000)), "prompt": list(range(300, 3000))},
        {"prompt": []},
        {"prompt": ""},
    ],
    ids=["prompt", "prompt of tokens", "with beams", "prefix", "both", "empty list", "empty string"],
)
def test_a_prompt_longer_than_the_context_is_cut_as_upstream_cuts_it(
    nano: Pair, mel: Tensor, options: dict[str, Any]
) -> None:
    ours, theirs = (model.decode(mel, **QUICK, **options) for model in (nano.max, nano.torch))
    assert ours.tokens == theirs.tokens


def test_transcribing_with_a_prompt_longer_than_the_context(nano: Pair) -> None:
    audio = load_audio(SAMPLE)[: 5 * 16000]
    options = {**QUICK, "temperature": 0.0, "initial_prompt": "a longer story " * 300}
    assert_same_result(nano.max.transcribe(audio, **options), nano.torch.transcribe(audio, **options))


@pytest.mark.parametrize("where", ["prompt", "prefix"])
@pytest.mark.parametrize("token", [51865, -1, 10**9])
def test_prompts_outside_the_vocabulary_are_upstreams_error(nano: Pair, mel: Tensor, where: str, token: int) -> None:
    options = {**QUICK, where: [440, token]}
    assert_same_outcome(nano, lambda model: model.decode(mel, **options))


# Options

BAD_OPTIONS: list[dict[str, Any]] = [
    {"temperature": -1.0},
    {"temperature": float("nan")},
    {"temperature": "hot"},
    {"temperature": None},
    {"beam_size": 0},
    {"beam_size": -1},
    {"beam_size": 2.5},
    {"beam_size": "5"},
    {"beam_size": 2, "best_of": 2},
    {"best_of": 5},
    {"best_of": -1, "temperature": 1.0},
    {"patience": 1.0},
    {"beam_size": 2, "patience": -1.0},
    {"beam_size": 2, "patience": 0.1},
    {"length_penalty": 1.5},
    {"length_penalty": -0.1},
    {"sample_len": -1},
    {"language": "xx"},
    {"suppress_tokens": (1,)},
    {"suppress_tokens": "a,b"},
    {"suppress_tokens": [99999]},
    {"max_initial_timestamp": "soon"},
    {"beams": 5},
]


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=str)
def test_bad_options_are_upstreams_error(nano: Pair, mel: Tensor, options: dict[str, Any]) -> None:
    options = {**QUICK, **options}
    assert_same_outcome(nano, lambda model: model.decode(mel, **copy.deepcopy(options)))


ODD_OPTIONS: list[dict[str, Any]] = [
    {"best_of": 0, "temperature": 1.0},
    {"temperature": 1e-6},
    {"temperature": 100.0},
    {"task": "sing"},
    {"beam_size": 1},
    {"beam_size": 2, "patience": 3.0, "length_penalty": 1.0},
    {"max_initial_timestamp": -1.0},
    {"max_initial_timestamp": 1000.0},
]


@pytest.mark.parametrize("options", ODD_OPTIONS, ids=str)
def test_odd_options_that_upstream_takes_give_its_tokens(nano: Pair, mel: Tensor, options: dict[str, Any]) -> None:
    tokens = []
    for model in (nano.max, nano.torch):
        torch.manual_seed(0)
        tokens.append(model.decode(mel, **{**QUICK, **options}).tokens)
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": ()},
        {"clip_timestamps": "a"},
        {"temperature": -1.0},
    ],
    ids=str,
)
def test_bad_options_of_transcribe_are_upstreams_error(nano: Pair, options: dict[str, Any]) -> None:
    audio = load_audio(SAMPLE)[:16000]
    assert_same_outcome(nano, lambda model: model.transcribe(audio, **QUICK, **options))
