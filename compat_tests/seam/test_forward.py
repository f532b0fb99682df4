"""Forward passes of an accelerated model are upstream's: shapes, views, dtypes, whose the results are, `decode()`."""

from __future__ import annotations

import base64
import gzip
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import whisper
import whisper.decoding
import whisper.model
from torch import Tensor
from whisper.decoding import DecodingOptions, DecodingTask
from whisper.model import Whisper

import whisper_max_plugin

from ..compare import assert_close, assert_same_decoding, relative_error
from ..conftest import Pair
from ..errors import assert_same_error
from .fixtures import DECODINGS, TOKENS, features, features_of_three, mel, mels, no_grad

__all__ = ["features", "features_of_three", "mel", "mels", "no_grad"]  # fixtures, found by name


def graph_runs(kind: str) -> int:
    return whisper_max_plugin.status()["graph_runs"].get(kind, 0)


# The object


def test_the_model_is_a_whisper_model_of_the_same_kind(nano: Pair) -> None:
    ours, theirs = nano.max, nano.torch
    assert isinstance(ours, Whisper)
    assert isinstance(ours.encoder, whisper.model.AudioEncoder)
    assert isinstance(ours.decoder, whisper.model.TextDecoder)
    assert ours.dims == theirs.dims
    assert ours.device == theirs.device == torch.device("cpu")
    assert ours.is_multilingual == theirs.is_multilingual
    if hasattr(theirs, "num_languages"):
        assert ours.num_languages == theirs.num_languages
    assert torch.equal(ours.alignment_heads.to_dense(), theirs.alignment_heads.to_dense())
    assert [name for name, _ in ours.named_modules()] == [name for name, _ in theirs.named_modules()]


def test_alignment_heads_are_set_as_upstream_sets_them(nano: Pair) -> None:
    original = nano.max.alignment_heads
    dump = base64.b85encode(gzip.compress(bytes([1, 0, 0, 1])))
    try:
        nano.max.set_alignment_heads(dump)
        assert nano.max.alignment_heads.indices().tolist() == [[0, 1], [0, 1]]
    finally:
        nano.max.register_buffer("alignment_heads", original, persistent=False)


# Without a cache


def test_the_passes_of_one_window(nano: Pair, mel: Tensor, features: Tensor) -> None:
    assert_close(nano.max.embed_audio(mel), features)
    assert_close(nano.max.encoder(mel), features)
    expected = nano.torch.decoder(TOKENS, features)
    assert_close(nano.max.logits(TOKENS, features), expected)
    assert_close(nano.max.decoder(TOKENS, features), expected)
    assert_close(nano.max(mel, TOKENS), nano.torch(mel, TOKENS))


def test_five_sequences_on_one_window(nano: Pair, features: Tensor) -> None:
    tokens = TOKENS.repeat(5, 1)
    tokens[:, 4] += torch.arange(5)
    assert_close(nano.max.logits(tokens, features), nano.torch.logits(tokens, features))


def test_one_sequence_on_three_windows(nano: Pair, features_of_three: Tensor) -> None:
    actual = nano.max.logits(TOKENS, features_of_three)
    assert actual.shape[:2] == (3, TOKENS.shape[1])
    assert_close(actual, nano.torch.logits(TOKENS, features_of_three))


def test_fifteen_sequences_on_three_windows_are_upstreams_error(nano: Pair, features_of_three: Tensor) -> None:
    tokens = TOKENS.repeat(15, 1)
    assert_same_error(
        lambda: nano.max.logits(tokens, features_of_three), lambda: nano.torch.logits(tokens, features_of_three)
    )


def test_tokens_may_be_int32_and_not_contiguous(nano: Pair, features: Tensor) -> None:
    expected = nano.torch.logits(TOKENS, features)
    assert_close(nano.max.logits(TOKENS.int(), features), expected)
    every_other = torch.stack([TOKENS, TOKENS + 1], dim=-1).flatten(1)[:, ::2]
    assert_close(nano.max.logits(every_other, features), expected)


def test_features_and_mels_may_be_views(nano: Pair, mels: Tensor, features_of_three: Tensor) -> None:
    transposed = mels.transpose(1, 2).contiguous().transpose(1, 2)
    assert_close(nano.max.encoder(transposed), features_of_three)
    assert_close(nano.max.encoder(mels.flip(0)[1:2]), features_of_three[1:2])
    assert_close(nano.max.logits(TOKENS, features_of_three[2:]), nano.torch.logits(TOKENS, features_of_three[2:]))


def test_inference_mode(nano: Pair, mel: Tensor, features: Tensor) -> None:
    expected = nano.torch.logits(TOKENS, features)
    with torch.inference_mode():
        inside = nano.max.encoder(mel + 0)
        assert_close(nano.max.logits(TOKENS, inside), expected)
    assert_close(nano.max.encoder(mel), features)
    assert_close(nano.max.logits(TOKENS, inside), expected)


def test_the_same_window_is_encoded_once_and_a_changed_one_again(nano: Pair, mel: Tensor) -> None:
    changing = mel.clone()
    nano.max.encoder(changing)
    runs, saved = graph_runs("encoder"), whisper_max_plugin.status()["encoder_runs_saved"]
    nano.max.detect_language(changing)
    nano.max.decode(changing, DecodingOptions(language="en", fp16=False, sample_len=3))
    nano.max.decode(changing, DecodingOptions(language="en", fp16=False, sample_len=3, temperature=0.4))
    assert graph_runs("encoder") == runs
    assert whisper_max_plugin.status()["encoder_runs_saved"] == saved + 3

    changing[..., 10:20] -= 0.5
    assert_close(nano.max.encoder(changing), nano.torch.encoder(changing))
    assert graph_runs("encoder") == runs + 1


# decode() below and beside the method

DECODE_FUNCTIONS = pytest.mark.parametrize("module", [whisper, whisper.decoding], ids=lambda module: module.__name__)


def searches_of(decode: Callable[[], object]) -> int:
    """Return how often the graph of the search ran, which upstream's own loop never asks for."""
    before = graph_runs("search")
    decode()
    return graph_runs("search") - before


@pytest.mark.usefixtures("installed")
@DECODE_FUNCTIONS
def test_the_function_searches_on_graphs_as_the_method_does(nano: Pair, mel: Tensor, module: Any) -> None:
    options = DecodingOptions(fp16=False, language="en")
    assert searches_of(lambda: module.decode(nano.max, mel[0], options, sample_len=12)) == 1
    assert searches_of(lambda: module.decode(model=nano.max, mel=mel, options=options)) == 1
    assert_same_decoding(module.decode(nano.max, mel[0], options), nano.torch.decode(mel[0], options))


@DECODE_FUNCTIONS
def test_without_the_plugin_the_function_is_upstreams(nano: Pair, mel: Tensor, module: Any) -> None:
    whisper_max_plugin.install()
    ours = module.decode
    whisper_max_plugin.uninstall()
    assert module.decode is not ours
    assert searches_of(lambda: ours(nano.max, mel[0], fp16=False, language="en")) == 0


@pytest.mark.usefixtures("installed")
def test_a_method_that_calls_the_function_does_not_come_back_to_itself(
    nano: Pair, mel: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with upstream, the function computes, whatever the method is."""
    monkeypatch.setattr(nano.max, "decode", lambda mel: [whisper.decode(nano.max, mel, fp16=False)], raising=False)
    assert searches_of(lambda: nano.max.decode(mel[0])) == 1


@pytest.mark.parametrize("options", DECODINGS, ids=str)
def test_upstreams_function_and_task_run_the_model(nano: Pair, mel: Tensor, options: dict[str, Any]) -> None:
    options = {"fp16": False, "sample_len": 12, **options}

    def seeded(decode: Callable[[], Any]) -> Any:
        torch.manual_seed(3)
        return decode()

    expected = seeded(lambda: nano.torch.decode(mel[0], **options))
    upstreams = inspect.unwrap(whisper.decode)
    assert_same_decoding(seeded(lambda: upstreams(nano.max, mel[0], **options)), expected)
    task = DecodingTask(nano.max, DecodingOptions(**options))
    assert_same_decoding(seeded(lambda: task.run(mel))[0], expected)
    assert_same_decoding(seeded(lambda: nano.max.decode(mel, DecodingOptions(**options)))[0], expected)
    assert_same_decoding(seeded(lambda: whisper.decode(nano.max, mel[0], **options)), expected)


# Other dtypes


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2), (torch.float64, 1e-4)])
def test_features_have_the_dtype_of_the_mel(nano: Pair, mel: Tensor, dtype: torch.dtype, error: float) -> None:
    rounded = mel.to(dtype)
    features = nano.max.encoder(rounded)
    assert features.dtype == dtype
    assert relative_error(features.float(), nano.torch.encoder(rounded.float())) < error


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_are_float32_whatever_the_features_are(nano: Pair, features: Tensor, dtype: torch.dtype) -> None:
    rounded = features.to(dtype)
    # Upstream rounds every activation to the dtype, graphs compute in float32: that is what is compared.
    assert_close(nano.max.logits(TOKENS, rounded), nano.torch.logits(TOKENS, rounded.float()))


def test_decoding_in_half_precision_returns_half_features(nano: Pair, mel: Tensor) -> None:
    ours = nano.max.decode(mel[0], DecodingOptions(language="en", fp16=True, sample_len=5))
    theirs = nano.torch.decode(mel[0].half().float(), DecodingOptions(language="en", fp16=False, sample_len=5))
    assert ours.audio_features.dtype == torch.float16
    assert ours.tokens == theirs.tokens


# Results belong to the caller


def test_writing_to_results_does_not_change_later_ones(nano: Pair, mel: Tensor) -> None:
    expected_features, expected = nano.torch.encoder(mel), nano.torch(mel, TOKENS)
    for _ in range(3):
        features = nano.max.encoder(mel)
        assert_close(features, expected_features)
        logits = nano.max.logits(TOKENS, features)
        assert_close(logits, expected)
        logits.fill_(torch.nan)
        features.fill_(torch.nan)


def test_results_outlive_later_calls(nano: Pair, mels: Tensor, features_of_three: Tensor) -> None:
    logits = [nano.max.logits(TOKENS, window[None]) for window in features_of_three]
    features = [nano.max.encoder(mel[None]) for mel in mels]
    for index in range(3):
        assert_close(features[index], features_of_three[index : index + 1])
        assert_close(logits[index], nano.torch.logits(TOKENS, features_of_three[index : index + 1]))
