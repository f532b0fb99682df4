"""`decode()` and `detect_language()` give upstream's tokens, whatever the options.

Sampling gives upstream's tokens too: it stays torch's, with torch's generator. `Categorical.sample` divides each
probability by a random number and takes the largest quotient, so that a draw turns out otherwise only if the largest
two quotients are as close to each other as the logits are to upstream's, which is about 1e-5.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import pytest
import torch
import whisper
from torch import Tensor
from whisper.decoding import DecodingOptions

from ..compare import PROBABILITY_ERROR, assert_same_decoding, assert_same_decodings
from ..conftest import Pair
from ..data import SAMPLE, SAMPLE_DE, SAMPLE_ES, jfk
from .inputs import random_mel
from .steps import assert_same_decoding_steps

LONG_PROMPT = list(range(1000, 1300))  # of which upstream keeps the last 223 tokens
BEAM_SEARCH = {"beam_size": 5, "patience": 2.0}

ENGLISH_OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "without timestamps": {"without_timestamps": True},
    "language detected": {"language": None},
    "beam search": BEAM_SEARCH,
    "beam search without timestamps": {**BEAM_SEARCH, "without_timestamps": True},
    "length penalty": {"beam_size": 3, "length_penalty": 0.6},
    "sampling": {"temperature": 0.8},
    "sampling without timestamps": {"temperature": 1.5, "without_timestamps": True, "sample_len": 40},
    "best of five": {"temperature": 0.6, "best_of": 5},
    "prompt": {"prompt": "The old man saw a green boat in the park."},
    "prompt of tokens, too long": {"prompt": LONG_PROMPT},
    "nothing suppressed": {"suppress_tokens": ""},
    "tokens suppressed by number": {"suppress_tokens": [11, 13, 257, 262]},
    "tokens suppressed by a string": {"suppress_tokens": "-1,257,262"},
    "blank allowed": {"suppress_blank": False},
    "first timestamp free": {"max_initial_timestamp": None},
    "few tokens": {"sample_len": 5},
    "language only": {"task": "lang_id", "language": None},
    "language only, though it is given": {"task": "lang_id"},
}

FIRST_WORDS = {"jfk": "And so my", "sample": "We need a"}

PREFIX_OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "without timestamps": {"without_timestamps": True},
    "with a limit": {"sample_len": 20},
    "cut by a limit": {"sample_len": 222},
    # Not with timestamps: the rules want one after the prefix, where nano never saw one. To it, many are exactly as
    # improbable as each other, so that noise would rank the beams.
    "prompt and beams, without timestamps": {"prompt": "Well then.", "without_timestamps": True, **BEAM_SEARCH},
}

FOREIGN_OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "language detected": {"language": None},
    "translate": {"task": "translate"},
    "translate, language detected": {"task": "translate", "language": None},
    "translate with beams, without timestamps": {"task": "translate", "without_timestamps": True, **BEAM_SEARCH},
    "language only": {"task": "lang_id", "language": None},
}

RANDOM_WEIGHTS_OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "without timestamps": {"without_timestamps": True},
    "language detected": {"language": None},
    "beam search": BEAM_SEARCH,
    "beam search without timestamps": {**BEAM_SEARCH, "without_timestamps": True},
    "length penalty": {"beam_size": 3, "length_penalty": 0.6},
    "best of five": {"temperature": 1.0, "best_of": 5},
    "prompt": {"prompt": LONG_PROMPT},
    "prefix": {"prefix": list(range(2000, 2010))},
    "nothing suppressed": {"suppress_tokens": "", "suppress_blank": False, "max_initial_timestamp": None},
    "translate": {"task": "translate", "language": "de"},
}
N_SAMPLED = 16  # tokens; random weights never say that they are at the end


def options(**kwargs: Any) -> DecodingOptions:
    """Options for the CPU; a list among them is copied, since upstream writes to the list of suppressed tokens."""
    copied = {name: list(value) if isinstance(value, list) else value for name, value in kwargs.items()}
    return DecodingOptions(**{"language": "en", "fp16": False, **copied})


@cache
def window(path: str, start: float = 0.0) -> Tensor:
    """The mel spectrogram, shape = (80, 3000), of the 30 seconds of a recording from `start` on."""
    samples = whisper.load_audio(path)[round(start * whisper.audio.SAMPLE_RATE) :]
    return whisper.log_mel_spectrogram(whisper.pad_or_trim(samples))


def end_of_the_sample() -> Tensor:
    """Three sentences, 8 seconds."""
    return window(str(SAMPLE), 24.5)


def decode_both(pair: Pair, mel: Tensor, **kwargs: Any) -> tuple[Any, Any]:
    """Decode with the accelerated model and with upstream's, from the same random numbers."""
    results = []
    for model in (pair.max, pair.torch):
        torch.manual_seed(1)
        results.append(model.decode(mel, options(**kwargs)))
    return results[0], results[1]


@pytest.mark.parametrize("name", ENGLISH_OPTIONS)
def test_a_real_recording(nano: Pair, name: str) -> None:
    assert_same_decoding(*decode_both(nano, window(str(jfk())), **ENGLISH_OPTIONS[name]))


@pytest.mark.parametrize("name", ENGLISH_OPTIONS)
def test_the_sample(nano: Pair, name: str) -> None:
    assert_same_decoding(*decode_both(nano, end_of_the_sample(), **ENGLISH_OPTIONS[name]))


@pytest.mark.parametrize("name", PREFIX_OPTIONS)
@pytest.mark.parametrize("audio", FIRST_WORDS)
def test_prefixes(nano: Pair, audio: str, name: str) -> None:
    mel = window(str(jfk())) if audio == "jfk" else end_of_the_sample()
    assert_same_decoding(*decode_both(nano, mel, prefix=FIRST_WORDS[audio], **PREFIX_OPTIONS[name]))


@pytest.mark.parametrize("name", FOREIGN_OPTIONS)
@pytest.mark.parametrize(("language", "sample"), [("es", SAMPLE_ES), ("de", SAMPLE_DE)])
def test_other_languages(nano: Pair, language: str, sample: Any, name: str) -> None:
    assert_same_decoding(*decode_both(nano, window(str(sample)), **{"language": language, **FOREIGN_OPTIONS[name]}))


def test_the_oracle_understands_the_recording(nano: Pair) -> None:
    """What is compared above is a transcript, not noise."""
    assert "ask what you can do for your country" in nano.torch.decode(window(str(jfk())), options()).text


@pytest.mark.parametrize("seed", range(5))
def test_random_numbers_are_upstreams(nano: Pair, seed: int) -> None:
    """Hot sampling, so that the draws matter; afterwards torch's generator is where upstream leaves it."""
    states = []
    results = []
    for model in (nano.max, nano.torch):
        torch.manual_seed(seed)
        results.append(model.decode(end_of_the_sample(), options(temperature=2.0, best_of=3, sample_len=20)))
        states.append(torch.get_rng_state())
    assert_same_decoding(*results)
    assert torch.equal(*states)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"without_timestamps": True},
        {"language": None},
        {"language": None, "task": "translate"},
        {"temperature": 0.9},
    ],
    ids=str,
)
def test_a_batch_of_three(nano: Pair, kwargs: dict[str, Any]) -> None:
    mel = torch.stack([end_of_the_sample(), window(str(SAMPLE_ES)), window(str(SAMPLE_DE))])
    assert_same_decodings(*decode_both(nano, mel, **kwargs))


def test_a_batch_with_beams_is_upstreams_error(nano: Pair) -> None:
    """Upstream broadcasts one window's features to its beams, and cannot for several windows."""
    mel = torch.stack([window(str(SAMPLE))] * 2)
    for model in (nano.torch, nano.max):
        with pytest.raises(RuntimeError, match="must match"):
            model.decode(mel, options(beam_size=5))


@pytest.mark.parametrize("n_audio", [1, 3, 7])
@pytest.mark.parametrize("size", ["nano", "tiny"])
def test_languages_of_a_batch(size: str, n_audio: int, request: pytest.FixtureRequest) -> None:
    pair = request.getfixturevalue(size)
    windows = [window(str(path)) for path in (SAMPLE, SAMPLE_ES, SAMPLE_DE)] + list(random_mel(pair.torch.dims, 4))
    mel = torch.stack(windows[:n_audio])
    language_tokens, language_probs = pair.max.detect_language(mel)
    expected_tokens, expected_probs = pair.torch.detect_language(mel)
    assert language_tokens.tolist() == expected_tokens.tolist()
    for probs, wanted in zip(language_probs, expected_probs, strict=True):
        assert probs == pytest.approx(wanted, rel=0, abs=PROBABILITY_ERROR)


def test_language_of_one_window(nano: Pair) -> None:
    language_token, language_probs = nano.max.detect_language(window(str(SAMPLE_DE)))
    expected_token, expected_probs = nano.torch.detect_language(window(str(SAMPLE_DE)))
    assert language_token == expected_token
    assert language_probs == pytest.approx(expected_probs, rel=0, abs=PROBABILITY_ERROR)


@pytest.mark.parametrize("name", ["greedy", "beam search", "best of five", "prompt", "language only"])
def test_upstreams_decode_runs_the_accelerated_model(nano: Pair, name: str) -> None:
    """Upstream's own function steps through `install_kv_cache_hooks` and the mapping that it returns."""
    mel = end_of_the_sample()
    results = []
    for decode in (inspect.unwrap(whisper.decode), type(nano.max).decode):
        torch.manual_seed(1)
        results.append(decode(nano.max, mel, options(**ENGLISH_OPTIONS[name])))
    assert_same_decoding(*results)


def test_features_in_place_of_a_mel(nano: Pair) -> None:
    features = nano.max.embed_audio(window(str(SAMPLE))[None])
    assert_same_decodings(*decode_both(nano, features))


@pytest.mark.parametrize("name", RANDOM_WEIGHTS_OPTIONS)
@pytest.mark.parametrize("size", ["tiny", pytest.param("base", marks=pytest.mark.large)])
def test_random_weights(size: str, name: str, request: pytest.FixtureRequest) -> None:
    pair = request.getfixturevalue(size)
    chosen = options(**{"sample_len": N_SAMPLED, **RANDOM_WEIGHTS_OPTIONS[name]})
    assert_same_decoding_steps(pair, random_mel(pair.torch.dims), chosen)


@pytest.mark.parametrize("size", ["tiny", pytest.param("base", marks=pytest.mark.large)])
def test_random_weights_in_a_batch_of_three(size: str, request: pytest.FixtureRequest) -> None:
    pair = request.getfixturevalue(size)
    assert_same_decoding_steps(pair, random_mel(pair.torch.dims, 3), options(sample_len=N_SAMPLED))
