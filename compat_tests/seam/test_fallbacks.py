"""What graphs do not compute, torch computes and says so: hooks inside a graph, features of another length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from whisper.model import Whisper

from whisper_max_plugin.report import FallbackError

from ..compare import assert_close, assert_same_decoding
from ..conftest import Pair
from ..errors import assert_one_sentence
from .fixtures import DECODINGS, TOKENS, fallbacks, features, mel, mels, no_grad
from .kv_caches import assert_same_cache, with_cache

__all__ = ["fallbacks", "features", "mel", "mels", "no_grad"]  # fixtures, found by name

FEATURES_PASS = ["encoder.conv2", "encoder.blocks.0", "encoder.blocks.1.attn.query", "encoder.ln_post"]
DECODER_PASS = ["decoder.blocks.0", "decoder.blocks.0.mlp", "decoder.blocks.1.attn.key", "decoder.blocks.1.mlp_ln"]


def record_outputs(model: Whisper, name: str, call: Callable[[], object]) -> list[Any]:
    """Return the result of `call`, then the outputs of the module `name` during it."""
    outputs: list[Any] = []
    hook = model.get_submodule(name).register_forward_hook(lambda _, ins, out: outputs.append(out))
    try:
        return [call(), *outputs]
    finally:
        hook.remove()


@pytest.mark.falls_back
@pytest.mark.parametrize("name", [*FEATURES_PASS, *DECODER_PASS])
def test_a_hook_inside_a_graph_is_a_declared_fallback(
    nano: Pair, mel: Tensor, name: str, fallbacks: Callable[[], dict[str, int]]
) -> None:
    theirs = record_outputs(nano.torch, name, lambda: nano.torch(mel, TOKENS))
    ours = record_outputs(nano.max, name, lambda: nano.max(mel, TOKENS))
    assert len(ours) == len(theirs) == 2
    for actual, expected in zip(ours, theirs, strict=True):
        if isinstance(expected, Tensor):
            assert_close(actual, expected)
    ((reason, count),) = fallbacks().items()
    assert count == 1
    part, _, inner = name.partition(".")
    assert f"{part} modules with hooks or changes that graphs do not follow" in reason
    assert ".".join("*" if level.isdigit() else level for level in inner.split(".")) in reason

    assert_close(nano.max(mel, TOKENS), theirs[0])  # without the hook, on graphs again
    assert fallbacks() == {reason: 1}


@pytest.mark.falls_back
@pytest.mark.parametrize("name", ["encoder.ln_post", "decoder.blocks.1.cross_attn", "decoder.ln"])
def test_a_pre_hook_that_changes_the_input_is_obeyed(
    nano: Pair, mel: Tensor, name: str, fallbacks: Callable[[], dict[str, int]]
) -> None:
    results = {}
    for model in (nano.max, nano.torch):
        hook = model.get_submodule(name).register_forward_pre_hook(lambda _, ins: (ins[0] * 0.5, *ins[1:]))
        results[model] = model(mel, TOKENS)
        hook.remove()
    assert_close(results[nano.max], results[nano.torch])
    assert sum(fallbacks().values()) == 1


@pytest.mark.falls_back
def test_a_hook_that_changes_an_output_is_obeyed(nano: Pair, mel: Tensor) -> None:
    results = {}
    for model in (nano.max, nano.torch):
        hook = model.decoder.blocks[0].mlp.register_forward_hook(lambda _, ins, out: out * 0.5)
        results[model] = model(mel, TOKENS)
        hook.remove()
    assert_close(results[nano.max], results[nano.torch])


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_hooks_on_encoder_and_decoder_themselves_need_no_fallback(nano: Pair, mel: Tensor, name: str) -> None:
    theirs = record_outputs(nano.torch, name, lambda: nano.torch(mel, TOKENS))
    ours = record_outputs(nano.max, name, lambda: nano.max(mel, TOKENS))
    for actual, expected in zip(ours, theirs, strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("name", ["encoder.conv2", "decoder.blocks.0.mlp"])
def test_strict_refuses_the_fallback_before_torch_computes(
    nano: Pair, mel: Tensor, name: str, monkeypatch: pytest.MonkeyPatch, fallbacks: Callable[[], dict[str, int]]
) -> None:
    monkeypatch.setenv("WHISPER_MAX_STRICT", "1")
    with pytest.raises(FallbackError, match="unset WHISPER_MAX_STRICT") as error:
        record_outputs(nano.max, name, lambda: nano.max(mel, TOKENS))
    assert_one_sentence(error.value, name.partition(".")[2].replace("0", "*"))
    assert fallbacks() == {}
    assert nano.max(mel, TOKENS) is not None


def test_strict_leaves_the_cache_as_it_was(nano: Pair, features: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = with_cache(nano.torch, [TOKENS[:, :6], TOKENS[:, 6:7]], features)
    *_, cache = with_cache(nano.max, [TOKENS[:, :6]], features)
    monkeypatch.setenv("WHISPER_MAX_STRICT", "1")
    with pytest.raises(FallbackError):
        record_outputs(
            nano.max, "decoder.blocks.0.mlp", lambda: nano.max.decoder(TOKENS[:, 6:7], features, kv_cache=cache)
        )
    assert next(iter(cache.values())).shape[1] == 6
    assert_close(nano.max.decoder(TOKENS[:, 6:7], features, kv_cache=cache), expected[1])


@pytest.mark.falls_back
@pytest.mark.parametrize("hooked_steps", [{0}, {1}, {2}, {0, 1}, {1, 2, 3}])
@pytest.mark.parametrize("n_sequences", [1, 3])
def test_a_fallback_in_the_middle_of_cached_decoding_keeps_the_cache(
    nano: Pair, features: Tensor, hooked_steps: set[int], n_sequences: int
) -> None:
    tokens = TOKENS.repeat(n_sequences, 1)
    chunks = [tokens[:, :4], *tokens[:, 4:].split(1, dim=1)]
    *theirs, their_cache = with_cache(nano.torch, chunks, features)
    cache, _ = nano.max.install_kv_cache_hooks()
    for index, (chunk, expected) in enumerate(zip(chunks, theirs, strict=True)):
        if index in hooked_steps:
            hook = nano.max.decoder.blocks[0].mlp.register_forward_hook(lambda *_: None)
        assert_close(nano.max.decoder(chunk, features, kv_cache=cache), expected)
        if index in hooked_steps:
            hook.remove()
    assert_same_cache(nano, cache, their_cache)


@pytest.mark.falls_back
@pytest.mark.parametrize("options", DECODINGS[:3], ids=str)
def test_decoding_with_a_hook_gives_upstreams_tokens(nano: Pair, mel: Tensor, options: dict[str, Any]) -> None:
    options = {"fp16": False, "sample_len": 8, "language": "en", **options}
    torch.manual_seed(3)
    expected = nano.torch.decode(mel[0], **options)
    torch.manual_seed(3)
    assert_same_decoding(
        record_outputs(nano.max, "decoder.blocks.0.mlp", lambda: nano.max.decode(mel[0], **options))[0], expected
    )


@pytest.mark.falls_back
def test_decoding_with_a_hook_in_half_width(nano: Pair, mel: Tensor) -> None:
    """Where upstream's cache is of half width, too."""
    options = {"fp16": True, "sample_len": 8, "language": "en"}
    expected = nano.torch.decode(mel[0], **options)
    ours = record_outputs(nano.max, "decoder.blocks.0.mlp", lambda: nano.max.decode(mel[0], **options))[0]
    assert ours.tokens == expected.tokens


@pytest.mark.falls_back
def test_features_of_another_length_are_a_declared_fallback(
    nano: Pair, features: Tensor, fallbacks: Callable[[], dict[str, int]]
) -> None:
    assert_close(nano.max.logits(TOKENS, features[:, :700]), nano.torch.logits(TOKENS, features[:, :700]))
    assert sum(fallbacks().values()) == 1
