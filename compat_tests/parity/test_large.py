"""Parity in sizes that need gigabytes of memory or one more compilation: ``pytest -m large``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import whisper
from whisper.decoding import DecodingOptions
from whisper.model import ModelDimensions

from whisper_max_plugin.checkpoints.sizes import OFFICIAL_DIMS

from ..compare import assert_close, assert_same_result
from ..conftest import Pair, load_pair, random_checkpoint
from ..data import SAMPLE_ES
from .inputs import random_mel, random_tokens
from .steps import assert_same_decoding_steps

pytestmark = pytest.mark.large

SMALL_ENGLISH = ModelDimensions(
    n_mels=80,
    n_audio_ctx=1500,
    n_audio_state=128,
    n_audio_head=2,
    n_audio_layer=2,
    n_vocab=51864,  # English only: other special tokens, none of them a language
    n_text_ctx=448,
    n_text_state=128,
    n_text_head=2,
    n_text_layer=2,
)


@pytest.fixture(scope="module")
def turbo(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """128 mels, 32 encoder and 4 decoder layers, 51866 tokens; about 3.2 GB per model."""
    path = random_checkpoint(tmp_path_factory.mktemp("turbo") / "turbo.pt", OFFICIAL_DIMS["turbo"])
    pair = load_pair(path)
    path.unlink()
    return pair


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A small model that knows English only."""
    return load_pair(random_checkpoint(tmp_path_factory.mktemp("english") / "small.en.pt", SMALL_ENGLISH))


@pytest.fixture(scope="module")
def odd_heads(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A model whose heads are no whole number of vectors, which the step's kernels leave to the decoder graph."""
    dims = replace(SMALL_ENGLISH, n_text_state=120, n_text_head=3, n_audio_state=120, n_audio_head=3)
    return load_pair(random_checkpoint(tmp_path_factory.mktemp("odd") / "odd.pt", dims))


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    """As in upstream's `decode()`."""
    with torch.no_grad():
        yield


def compare_steps(pair: Pair, n_audio: int = 1, **kwargs: Any) -> None:
    options = DecodingOptions(**{"fp16": False, "language": "en", **kwargs})
    assert_same_decoding_steps(pair, random_mel(pair.torch.dims, n_audio), options)


def test_turbo_encoder_and_logits(turbo: Pair) -> None:
    mel = random_mel(turbo.torch.dims)
    expected = turbo.torch.embed_audio(mel)
    assert_close(turbo.max.embed_audio(mel), expected)
    tokens = random_tokens(turbo.torch.dims, 1, 40)
    assert_close(turbo.max.logits(tokens, expected), turbo.torch.logits(tokens, expected))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"language": None},
        {"language": "yue", "without_timestamps": True},
        {"beam_size": 5, "patience": 2.0},
    ],
    ids=["greedy", "Cantonese without timestamps", "beam search"],
)
def test_turbo_tokens(turbo: Pair, kwargs: dict[str, Any]) -> None:
    """Cantonese is the language that only models of 51866 tokens have."""
    compare_steps(turbo, sample_len=8, **kwargs)


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"without_timestamps": True}, {"beam_size": 5, "patience": 2.0}, {"prompt": "A story.", "prefix": "Once"}],
    ids=["greedy", "without timestamps", "beam search", "prompt and prefix"],
)
def test_english_only_tokens(english: Pair, kwargs: dict[str, Any]) -> None:
    compare_steps(english, sample_len=24, **kwargs)


def test_english_only_batch(english: Pair) -> None:
    compare_steps(english, 3, sample_len=24)


def test_english_only_transcription(english: Pair) -> None:
    options = {"fp16": False, "temperature": 0.0, "sample_len": 24}
    results = [whisper.transcribe(model, str(SAMPLE_ES), **options) for model in (english.max, english.torch)]
    assert_same_result(*results)
    assert results[0]["language"] == "en"


def test_english_only_models_detect_no_language(english: Pair) -> None:
    for model in (english.max, english.torch):
        with pytest.raises(ValueError, match="doesn't have language tokens"):
            model.detect_language(random_mel(english.torch.dims))


@pytest.mark.parametrize("kwargs", [{}, {"beam_size": 5}], ids=["greedy", "beam search"])
def test_tokens_of_a_model_with_heads_of_another_size(odd_heads: Pair, kwargs: dict[str, Any]) -> None:
    compare_steps(odd_heads, **kwargs)
