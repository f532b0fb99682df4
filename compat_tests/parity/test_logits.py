"""Encoder output and logits are upstream's to within 1e-4 of the largest value."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest
import torch
from torch import Tensor
from whisper.decoding import Inference, PyTorchInference

from whisper_max_plugin.inference.decoding import MaxInference

from ..compare import assert_close
from ..conftest import Pair
from .inputs import random_mel, random_tokens

N_STEPS = 30
N_BEAM, N_BEAM_PROMPT, N_BEAM_STEPS = 5, 3, 10
BATCH_SIZES = (1, 3)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    """As in upstream's `decode()` and `find_alignment()`."""
    with torch.no_grad():
        yield


@pytest.fixture(params=["nano", "tiny", pytest.param("base", marks=pytest.mark.large)])
def pair(request: pytest.FixtureRequest) -> Pair:
    """Each of the models to compare."""
    pair: Pair = request.getfixturevalue(request.param)
    return pair


@cache
def features_of_random_audio(pair: Pair, n_audio: int) -> Tensor:
    """Upstream's audio_features, shape = (n_audio, 1500, n_audio_state), which both decoders are given."""
    return pair.torch.embed_audio(random_mel(pair.torch.dims, n_audio))


@pytest.mark.parametrize("n_audio", BATCH_SIZES)
def test_encoder_output(pair: Pair, n_audio: int) -> None:
    mel = random_mel(pair.torch.dims, n_audio)
    assert_close(pair.max.embed_audio(mel), features_of_random_audio(pair, n_audio))


@pytest.mark.parametrize("n_tokens", [1, 4, 40, 228, 448])
def test_logits_of_a_whole_prompt(pair: Pair, n_tokens: int) -> None:
    audio_features = features_of_random_audio(pair, 1)
    tokens = random_tokens(pair.torch.dims, 1, n_tokens)
    assert_close(pair.max.logits(tokens, audio_features), pair.torch.logits(tokens, audio_features))


@pytest.mark.parametrize("n_tokens", [1, 4, 40])
def test_logits_of_three_windows(pair: Pair, n_tokens: int) -> None:
    audio_features = features_of_random_audio(pair, 3)
    tokens = random_tokens(pair.torch.dims, 3, n_tokens)
    assert_close(pair.max.logits(tokens, audio_features), pair.torch.logits(tokens, audio_features))


def test_the_model_called_with_mel_and_tokens(pair: Pair) -> None:
    mel, tokens = random_mel(pair.torch.dims, 2), random_tokens(pair.torch.dims, 2, 7)
    assert_close(pair.max(mel, tokens), pair.torch(mel, tokens))


@pytest.mark.parametrize("n_audio", BATCH_SIZES)
def test_thirty_steps_after_a_prompt(pair: Pair, n_audio: int) -> None:
    n_prompt = 4
    audio_features = features_of_random_audio(pair, n_audio)
    tokens = random_tokens(pair.torch.dims, n_audio, n_prompt + N_STEPS)
    actual = MaxInference(pair.max, n_prompt, sot_index=1, n_group=1)
    with running(PyTorchInference(pair.torch, n_prompt)) as expected, running(actual):
        logits = actual.logits(tokens[:, :n_prompt], audio_features)
        wanted = expected.logits(tokens[:, :n_prompt], audio_features)
        for row in (1, -1):  # that of <|startoftranscript|> and the last one: all that decoding reads
            assert_close(logits[:, row], wanted[:, row])
        for n_tokens in range(n_prompt + 1, n_prompt + N_STEPS + 1):
            logits = actual.logits(tokens[:, :n_tokens], audio_features)
            wanted = expected.logits(tokens[:, :n_tokens], audio_features)
            assert_close(logits[:, -1], wanted[:, -1])


def test_beams_that_change_places(pair: Pair) -> None:
    """Five beams of one window, which upstream broadcasts to them."""
    actual = MaxInference(pair.max, N_BEAM_PROMPT, sot_index=0, n_group=N_BEAM)
    compare_beams(pair, actual, features_of_random_audio(pair, 1))


@pytest.mark.parametrize("n_audio", [1, 2])
def test_beams_reordered_through_the_cache_mapping(pair: Pair, n_audio: int) -> None:
    """Upstream's own PyTorchInference runs the accelerated model, each beam with its window's features."""
    audio_features = features_of_random_audio(pair, n_audio).repeat_interleave(N_BEAM, dim=0)
    compare_beams(pair, PyTorchInference(pair.max, N_BEAM_PROMPT), audio_features)


def compare_beams(pair: Pair, actual: Inference, audio_features: Tensor) -> None:
    """Step `actual` and upstream's inference of the reference, reordering the beams after each step."""
    n_audio = max(1, len(audio_features) // N_BEAM)
    generator = torch.Generator().manual_seed(1)
    tokens = random_tokens(pair.torch.dims, n_audio, N_BEAM_PROMPT).repeat_interleave(N_BEAM, dim=0)
    with running(PyTorchInference(pair.torch, N_BEAM_PROMPT)) as expected, running(actual):
        for step in range(N_BEAM_STEPS):
            logits, wanted = actual.logits(tokens, audio_features), expected.logits(tokens, audio_features)
            assert_close(logits[:, -1], wanted[:, -1])
            # within its window, a beam may continue any other, and several the same one
            beams = torch.randint(N_BEAM, (n_audio, N_BEAM), generator=generator)
            sources = (beams + N_BEAM * torch.arange(n_audio)[:, None]).flatten().tolist()
            for inference in (actual, expected):
                inference.rearrange_kv_cache(sources)
            tokens = torch.cat([tokens[sources], random_tokens(pair.torch.dims, len(tokens), 1, seed=step)], dim=1)


@contextmanager
def running(inference: Inference) -> Iterator[Inference]:
    """Remove the hooks that upstream's inference leaves on the model."""
    try:
        yield inference
    finally:
        inference.cleanup_caching()
