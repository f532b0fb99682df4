"""Encoder output and logits are upstream's to within 1e-4 of the largest value."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from whisper.decoding import PyTorchInference

from whisper_max_plugin.decoding import MaxInference

from .compare import assert_close
from .conftest import Pair

N_STEPS = 30
SIZES = ("nano", "tiny", "base")
BATCH_SIZES = (1, 3)

pytestmark = pytest.mark.usefixtures("without_gradients")


@pytest.fixture(scope="module")
def without_gradients():
    """Upstream's `decode()` and `find_alignment()` run without gradients too."""
    with torch.no_grad():
        yield


@pytest.fixture(params=SIZES)
def pair(request: pytest.FixtureRequest) -> Pair:
    """Each of the models to compare."""
    pair: Pair = request.getfixturevalue(request.param)
    return pair


def random_mel(pair: Pair, n_audio: int, seed: int = 0) -> Tensor:
    """A seeded mel spectrogram, shape = (n_audio, n_mels, 3000), within the range of real ones."""
    shape = (n_audio, pair.torch.dims.n_mels, 2 * pair.torch.dims.n_audio_ctx)
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 1


def random_tokens(pair: Pair, *shape: int, seed: int = 0) -> Tensor:
    """Seeded tokens from the whole vocabulary."""
    return torch.randint(pair.torch.dims.n_vocab, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n_audio", BATCH_SIZES)
def test_encoder_output(pair: Pair, n_audio: int) -> None:
    mel = random_mel(pair, n_audio)
    assert_close(pair.max.embed_audio(mel), pair.torch.embed_audio(mel))


@pytest.mark.parametrize("n_tokens", [1, 4, 40, 228, 448])
def test_logits_of_a_whole_prompt(pair: Pair, n_tokens: int) -> None:
    audio_features = pair.torch.embed_audio(random_mel(pair, 1))
    tokens = random_tokens(pair, 1, n_tokens)
    assert_close(pair.max.logits(tokens, audio_features), pair.torch.logits(tokens, audio_features))


@pytest.mark.parametrize("n_tokens", [1, 4, 40])
def test_logits_of_three_windows(pair: Pair, n_tokens: int) -> None:
    audio_features = pair.torch.embed_audio(random_mel(pair, 3))
    tokens = random_tokens(pair, 3, n_tokens)
    assert_close(pair.max.logits(tokens, audio_features), pair.torch.logits(tokens, audio_features))


def test_the_model_called_with_mel_and_tokens(pair: Pair) -> None:
    mel, tokens = random_mel(pair, 2), random_tokens(pair, 2, 7)
    assert_close(pair.max(mel, tokens), pair.torch(mel, tokens))


@pytest.mark.parametrize("n_audio", BATCH_SIZES)
def test_thirty_steps_after_a_prompt(pair: Pair, n_audio: int) -> None:
    audio_features = pair.torch.embed_audio(random_mel(pair, n_audio))
    n_prompt = 4
    tokens = random_tokens(pair, n_audio, n_prompt + N_STEPS)
    expected = PyTorchInference(pair.torch, n_prompt)
    actual = MaxInference(pair.max, n_prompt, sot_index=1)
    try:
        prefill = expected.logits(tokens[:, :n_prompt], audio_features)
        computed = actual.logits(tokens[:, :n_prompt], audio_features)
        for row in (1, -1):  # that of <|startoftranscript|> and the last one: all that decoding reads
            assert_close(computed[:, row], prefill[:, row])
        for n_tokens in range(n_prompt + 1, n_prompt + N_STEPS + 1):
            prefix = tokens[:, :n_tokens]
            assert_close(actual.logits(prefix, audio_features), expected.logits(prefix, audio_features))
    finally:
        expected.cleanup_caching()
        actual.cleanup_caching()


@pytest.mark.parametrize("inference", [MaxInference, PyTorchInference])
@pytest.mark.parametrize("n_audio", [1, 2])
def test_beams_that_are_reordered(pair: Pair, n_audio: int, inference: type) -> None:
    """Five beams change places after each step; `PyTorchInference` reorders through the kv_cache mapping."""
    n_beam, n_prompt, n_steps = 5, 3, 10
    batch = n_audio * n_beam
    generator = torch.Generator().manual_seed(1)
    audio_features = pair.torch.embed_audio(random_mel(pair, n_audio))
    audio_features_of_beams = audio_features.repeat_interleave(n_beam, dim=0)
    tokens = random_tokens(pair, n_audio, n_prompt).repeat_interleave(n_beam, dim=0)
    expected = PyTorchInference(pair.torch, n_prompt)
    actual = inference(pair.max, n_prompt, 0) if inference is MaxInference else inference(pair.max, n_prompt)
    try:
        for step in range(n_steps):
            if n_audio == 1:  # as upstream calls it: the beams of one window share its features
                wanted = expected.logits(tokens, audio_features)
                computed = actual.logits(tokens, audio_features)
            else:
                wanted = expected.logits(tokens, audio_features_of_beams)
                computed = actual.logits(tokens, audio_features_of_beams)
            assert_close(computed[:, -1], wanted[:, -1])
            # within each window, any beam may continue any other, several the same one
            sources = torch.randint(n_beam, (n_audio, n_beam), generator=generator)
            sources = (sources + n_beam * torch.arange(n_audio)[:, None]).flatten().tolist()
            expected.rearrange_kv_cache(sources)
            actual.rearrange_kv_cache(sources)
            tokens = torch.cat([tokens[sources], random_tokens(pair, batch, 1, seed=step)], dim=1)
    finally:
        expected.cleanup_caching()
        actual.cleanup_caching()
