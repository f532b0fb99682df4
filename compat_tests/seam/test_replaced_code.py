"""Code of upstream's that somebody has replaced, for a class or for all modules, is obeyed as it is on torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import whisper
import whisper.model
from torch import Tensor, nn
from whisper.decoding import DecodingOptions, DecodingResult, DecodingTask, PyTorchInference
from whisper.model import AudioEncoder, LayerNorm, MultiHeadAttention, ResidualAttentionBlock, TextDecoder, Whisper

from whisper_max_plugin.report import FallbackError

from ..compare import assert_close, assert_same_decoding
from ..conftest import Pair
from .fixtures import TOKENS, fallbacks, mel, mels, no_grad

__all__ = ["fallbacks", "mel", "mels", "no_grad"]  # fixtures, found by name

OPTIONS = DecodingOptions(fp16=False, language="en", sample_len=6)
Fallbacks = Callable[[], dict[str, int]]


def scaled(method: Callable[..., Any], factor: float) -> Callable[..., Any]:
    """Return a method whose first argument, behind the object, is another one."""
    return lambda self, x, *rest, **options: method(self, x * factor, *rest, **options)


def returning(method: Callable[..., Any], factor: float) -> Callable[..., Any]:
    return lambda self, *given, **options: method(self, *given, **options) * factor


@pytest.mark.falls_back
@pytest.mark.parametrize(
    ("cls", "name", "replace"),
    [
        (MultiHeadAttention, "qkv_attention", scaled),
        (MultiHeadAttention, "forward", scaled),
        (ResidualAttentionBlock, "forward", returning),
        (LayerNorm, "forward", returning),
        (AudioEncoder, "forward", returning),
        (TextDecoder, "forward", returning),
    ],
)
def test_a_method_of_the_model(
    nano: Pair, mel: Tensor, cls: type, name: str, replace: Any, monkeypatch: pytest.MonkeyPatch, fallbacks: Fallbacks
) -> None:
    before = nano.max(mel, TOKENS)
    monkeypatch.setattr(cls, name, replace(getattr(cls, name), 0.5))
    expected = nano.torch(mel, TOKENS)
    assert (before - expected).abs().max() > 1e-2
    assert_close(nano.max(mel, TOKENS), expected)
    assert fallbacks() == {f"code of whisper.model that was replaced: {cls.__name__}.{name}": 2}  # encoder and decoder
    assert_same_decoding(nano.max.decode(mel, OPTIONS)[0], nano.torch.decode(mel, OPTIONS)[0])
    monkeypatch.undo()
    assert_close(nano.max(mel, TOKENS), before)


@pytest.mark.skipif(not hasattr(whisper.model, "scaled_dot_product_attention"), reason="since 20240927")
@pytest.mark.falls_back
def test_the_attention_of_torch(nano: Pair, mel: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    attend = whisper.model.scaled_dot_product_attention
    monkeypatch.setattr(
        whisper.model, "scaled_dot_product_attention", lambda q, *rest, **options: attend(q * 0.5, *rest, **options)
    )
    assert_close(nano.max(mel, TOKENS), nano.torch(mel, TOKENS))


def test_strict_refuses_it(nano: Pair, mel: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LayerNorm, "forward", returning(LayerNorm.forward, 0.5))
    monkeypatch.setenv("WHISPER_MAX_STRICT", "1")
    with pytest.raises(FallbackError, match=r"LayerNorm\.forward"):
        nano.max(mel, TOKENS)


@pytest.mark.falls_back
def test_hooks_on_all_modules(nano: Pair, mel: Tensor, fallbacks: Fallbacks) -> None:
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, _, output: output * 0.7 if isinstance(module, LayerNorm) else None
    )
    try:
        assert_close(nano.max(mel, TOKENS), nano.torch(mel, TOKENS))
        assert_same_decoding(nano.max.decode(mel, OPTIONS)[0], nano.torch.decode(mel, OPTIONS)[0])
    finally:
        hook.remove()
    assert set(fallbacks()) == {"hooks on all modules, which graphs do not run"}


def test_hooks_on_all_modules_that_come_in_the_middle(nano: Pair, mel: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, _ = nano.max.install_kv_cache_hooks()
    features = nano.max.encoder(mel)
    nano.max.decoder(TOKENS[:, :4], features, kv_cache=cache)
    hook = nn.modules.module.register_module_forward_pre_hook(lambda *_: None)
    monkeypatch.setenv("WHISPER_MAX_STRICT", "1")
    try:
        with pytest.raises(FallbackError):
            nano.max.decoder(TOKENS[:, 4:5], features, kv_cache=cache)
    finally:
        hook.remove()


# Settings of modules


def change(model: Whisper, path: str, settings: dict[str, object]) -> dict[str, object]:
    """Change a module's settings, and return what they were."""
    module = model.get_submodule(path)
    before = {name: getattr(module, name) for name in settings}
    vars(module).update(settings)
    return before


@pytest.mark.falls_back
@pytest.mark.parametrize(
    ("path", "settings"),
    [
        ("decoder.blocks.0.attn", {"n_head": 1}),
        ("decoder.blocks.1.cross_attn", {"n_head": 1}),
        ("encoder.blocks.0.attn", {"n_head": 1}),
        ("encoder.conv1", {"padding_mode": "circular", "_reversed_padding_repeated_twice": [1, 1]}),
        ("encoder.conv2", {"dilation": (2,), "padding": (2,)}),
    ],
)
def test_settings(nano: Pair, mel: Tensor, path: str, settings: dict[str, object]) -> None:
    before = nano.torch(mel, TOKENS)
    results = []
    for model in (nano.max, nano.torch):
        own = change(model, path, settings)
        results.append(model(mel, TOKENS))
        change(model, path, own)
    actual, expected = results
    assert (expected - before).abs().max() > 1e-3
    assert_close(actual, expected)


# Decoding


def suppressing(logits: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *given: logits(*given).index_fill(-1, torch.arange(50364, 50380), -1e4)


@pytest.mark.parametrize(
    ("cls", "name", "replacement"),
    [
        (PyTorchInference, "logits", suppressing(PyTorchInference.logits)),
        (DecodingTask, "_main_loop", scaled(DecodingTask._main_loop, 0.5)),
        (Whisper, "decode", scaled(Whisper.decode, 0.5)),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_methods_of_decoding(
    nano: Pair, mel: Tensor, cls: type, name: str, replacement: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cls, name, replacement)
    for model in (nano.max, nano.torch):
        decoded = model.decode(mel[0], OPTIONS)
        if model is nano.max:
            ours = decoded
    assert_same_decoding(ours, decoded)


def test_another_task(nano: Pair, mel: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    class Task(DecodingTask):
        def _get_initial_tokens(self) -> tuple[int, ...]:
            return (*super()._get_initial_tokens(), 50364)

    plain = nano.torch.decode(mel[0], OPTIONS)
    monkeypatch.setattr(whisper.decoding, "DecodingTask", Task)
    expected = nano.torch.decode(mel[0], OPTIONS)
    assert expected.tokens != plain.tokens
    assert_same_decoding(nano.max.decode(mel[0], OPTIONS), expected)


@pytest.mark.parametrize("options", [{}, {"beam_size": 3}], ids=str)
def test_a_forward_of_the_decoder_itself(nano: Pair, mel: Tensor, options: dict[str, Any]) -> None:
    """It gets what upstream's decoder gets, and what it calls are graphs."""

    def scaled_decoding(decoder: TextDecoder) -> DecodingResult:
        forward = decoder.forward
        decoder.forward = lambda x, xa, kv_cache=None: 0.5 * forward(x, xa, kv_cache=kv_cache)
        try:
            return model.decode(mel, replace(OPTIONS, **options))[0]
        finally:
            del decoder.forward

    model = nano.torch
    expected = scaled_decoding(model.decoder)
    model = nano.max
    assert_same_decoding(scaled_decoding(model.decoder), expected)
    assert expected.avg_logprob != pytest.approx(model.decode(mel, replace(OPTIONS, **options))[0].avg_logprob)
