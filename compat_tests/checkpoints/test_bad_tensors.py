"""Mels, tokens and features of bad shapes, dtypes and values: upstream's own error, or a clear sentence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from whisper.model import Whisper

from ..bad_input_fixtures import EOT, QUICK, SOT, assert_same_outcome, installed, mel
from ..compare import assert_close
from ..conftest import Pair
from ..errors import assert_one_sentence, error_of

__all__ = ["installed", "mel"]  # fixtures, found by name

TOKENS = torch.tensor([[SOT, 50259, 50359, 50364]])


# Mels

MELS = {
    "too short": torch.zeros(1, 80, 100),
    "too long": torch.zeros(1, 80, 3001),
    "no frames": torch.zeros(1, 80, 0),
    "128 bands for a model of 80": torch.zeros(1, 128, 3000),
    "transposed": torch.zeros(1, 3000, 80),
    "no batch dimension": torch.zeros(80, 3000),
    "one dimension": torch.zeros(3000),
    "four dimensions": torch.zeros(1, 1, 80, 3000),
    "integers": torch.zeros(1, 80, 3000, dtype=torch.int64),
    "empty batch": torch.zeros(0, 80, 3000),
}


@pytest.mark.parametrize("name", MELS)
def test_a_mel_of_the_wrong_shape_is_upstreams_error(nano: Pair, name: str) -> None:
    assert_same_outcome(nano, lambda model: model.encoder(MELS[name]))
    assert_same_outcome(nano, lambda model: model.embed_audio(MELS[name]))
    assert_same_outcome(nano, lambda model: model(MELS[name], TOKENS))


@pytest.mark.parametrize("name", ["too short", "128 bands for a model of 80", "transposed", "four dimensions"])
def test_decoding_a_mel_of_the_wrong_shape_is_upstreams_error(nano: Pair, name: str) -> None:
    assert_same_outcome(nano, lambda model: model.decode(MELS[name], **QUICK))
    assert_same_outcome(nano, lambda model: model.detect_language(MELS[name]))


def test_a_mel_that_is_no_tensor_is_upstreams_error(nano: Pair, mel: Tensor) -> None:
    assert_same_outcome(nano, lambda model: model.decode(None, **QUICK))
    assert_same_outcome(nano, lambda model: model.decode(mel.numpy(), **QUICK))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("fp16", [True, False])
def test_a_mel_that_holds_no_numbers(nano: Pair, mel: Tensor, value: float, fp16: bool) -> None:
    bad = mel.clone()
    bad[5, 7] = value
    calls = [
        lambda: nano.max.encoder(bad[None]),
        lambda: nano.max.decode(bad, **{**QUICK, "fp16": fp16}),
        lambda: nano.max.detect_language(bad),
    ]
    for call in calls:
        error = error_of(call)
        assert type(error) is ValueError
        assert_one_sentence(error, "NaN or infinite")
    assert_close(nano.max.encoder(mel[None]), nano.torch.encoder(mel[None]))


# Tokens

BAD_TOKENS = {
    "more than n_text_ctx": torch.full((1, 449), EOT),
    "beyond the vocabulary": torch.tensor([[SOT, 51865]]),
    "far beyond the vocabulary": torch.tensor([[2**40]]),
    "negative": torch.tensor([[SOT, -1]]),
    "floats": torch.tensor([[1.0]]),
    "bools": torch.tensor([[True]]),
    "one dimension": torch.tensor([SOT, EOT]),
    "three dimensions": torch.tensor([[[SOT]]]),
    "none": torch.zeros(1, 0, dtype=torch.int64),
    "empty batch": torch.zeros(0, 1, dtype=torch.int64),
    "two sequences for three windows": torch.full((2, 1), SOT),
}


@pytest.mark.parametrize("name", BAD_TOKENS)
def test_bad_tokens_are_upstreams_error(nano: Pair, mel: Tensor, name: str) -> None:
    features = nano.torch.encoder(mel[None]).repeat(3 if "three windows" in name else 1, 1, 1)
    assert_same_outcome(nano, lambda model: model.logits(BAD_TOKENS[name], features))


@pytest.mark.parametrize(
    "features",
    [torch.zeros(1, 1500, 64), torch.zeros(1500, 64), torch.zeros(1, 1500, 128, dtype=torch.int64)],
    ids=["another width", "no batch dimension and another width", "integers"],
)
def test_bad_features_are_upstreams_error(nano: Pair, features: Tensor) -> None:
    assert_same_outcome(nano, lambda model: model.logits(TOKENS, features))


@pytest.mark.parametrize(("n_before", "n_more"), [(440, 9), (448, 1), (448, 5)])
def test_a_cache_that_overflows_is_upstreams_error(nano: Pair, mel: Tensor, n_before: int, n_more: int) -> None:
    features = nano.torch.encoder(mel[None])
    tokens = torch.full((1, 448), 440)

    def overflow(model: Whisper) -> None:
        cache, hooks = model.install_kv_cache_hooks()
        try:
            model.decoder(tokens[:, :n_before], features, kv_cache=cache)
            model.decoder(tokens[:, :n_more], features, kv_cache=cache)
        finally:
            for hook in hooks:
                hook.remove()

    assert_same_outcome(nano, overflow)
