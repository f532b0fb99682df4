"""Forward hooks that need no fallback get what upstream's get: others read scores, tokens and hidden states so."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
import whisper
import whisper.model
from torch import Tensor
from whisper.decoding import DecodingOptions, DecodingTask
from whisper.model import Whisper

import whisper_max_plugin

from ..compare import assert_close
from ..conftest import Pair
from ..errors import assert_one_sentence
from .fixtures import TOKENS, features, features_of_three, mel, mels, no_grad
from .kv_caches import with_cache

__all__ = ["features", "features_of_three", "mel", "mels", "no_grad"]  # fixtures, found by name


def without_sdpa() -> AbstractContextManager[None]:
    """Return upstream's `disable_sdpa()`, under which attention returns its scores; older versions always do."""
    return getattr(whisper.model, "disable_sdpa", nullcontext)()


def record_cross_attention(model: Whisper, call: Callable[[], object]) -> list[tuple[Any, Any]]:
    """Return what the hooks of each layer's cross_attn got during `call`: (ins, outs)."""
    calls: list[tuple[Any, Any]] = []
    hooks = [
        block.cross_attn.register_forward_hook(lambda _, ins, outs: calls.append((ins, outs)))
        for block in model.decoder.blocks
    ]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def assert_same_calls(ours: list[tuple[Any, Any]], theirs: list[tuple[Any, Any]]) -> None:
    assert len(ours) == len(theirs) > 0
    for (ins, outs), (expected_ins, expected_outs) in zip(ours, theirs, strict=True):
        assert type(outs) is type(expected_outs)
        for actual, expected in zip((*ins, *outs), (*expected_ins, *expected_outs), strict=True):
            if expected is None:
                assert actual is None
            else:
                assert_close(actual, expected)


@pytest.mark.parametrize("options", [{}, {"beam_size": 3}, {"prompt": "hello there"}], ids=str)
def test_hooks_on_the_decoder_see_all_of_the_first_pass(nano: Pair, mel: Tensor, options: dict[str, Any]) -> None:
    """Others read the probabilities of a prompt there."""
    seen: dict[Whisper, list[Any]] = {nano.max: [], nano.torch: []}
    results = []
    for model, calls in seen.items():

        def see(_: Any, ins: Any, kwargs: Any, out: Any, calls: list[Any] = calls) -> None:
            calls.append((ins[0], sorted(kwargs), out.clone()))  # which filters write to

        hook = model.decoder.register_forward_hook(see, with_kwargs=True)
        results.append(model.decode(mel[0], fp16=False, language="en", sample_len=4, **options))
        hook.remove()
    ours, theirs = seen.values()
    assert results[0].tokens == results[1].tokens
    assert len(ours) == len(theirs) > 1
    for (tokens, kwargs, logits), (expected_tokens, expected_kwargs, expected_logits) in zip(ours, theirs, strict=True):
        assert torch.equal(tokens, expected_tokens)
        assert kwargs == expected_kwargs
        assert_close(logits, expected_logits)


@pytest.mark.parametrize("context", [without_sdpa, nullcontext])
@pytest.mark.parametrize("n_sequences", [1, 3])
def test_hooks_on_cross_attention_get_what_upstreams_get(
    nano: Pair, features: Tensor, context: Callable[[], AbstractContextManager[None]], n_sequences: int
) -> None:
    tokens = TOKENS.repeat(n_sequences, 1)
    with context():
        ours = record_cross_attention(nano.max, lambda: nano.max.logits(tokens, features))
        theirs = record_cross_attention(nano.torch, lambda: nano.torch.logits(tokens, features))
    assert_same_calls(ours, theirs)
    scores_wanted = context is without_sdpa or not hasattr(whisper.model, "disable_sdpa")
    assert all((outs[-1] is not None) == scores_wanted for _, outs in ours)


def test_hooks_on_cross_attention_of_three_windows(nano: Pair, features_of_three: Tensor) -> None:
    tokens = TOKENS.repeat(3, 1)
    with without_sdpa():
        ours = record_cross_attention(nano.max, lambda: nano.max.logits(tokens, features_of_three))
        theirs = record_cross_attention(nano.torch, lambda: nano.torch.logits(tokens, features_of_three))
    assert_same_calls(ours, theirs)


def test_hooks_on_cross_attention_during_cached_steps(nano: Pair, features: Tensor) -> None:
    chunks = [TOKENS[:, :4], TOKENS[:, 4:5], TOKENS[:, 5:6]]
    with without_sdpa():
        ours = record_cross_attention(nano.max, lambda: with_cache(nano.max, chunks, features))
        theirs = record_cross_attention(nano.torch, lambda: with_cache(nano.torch, chunks, features))
    assert_same_calls(ours, theirs)


def test_hooks_on_cross_attention_during_beam_search(nano: Pair, mel: Tensor) -> None:
    def call(model: Whisper) -> Callable[[], object]:
        return lambda: DecodingTask(model, options).run(mel)

    options = DecodingOptions(language="en", fp16=False, beam_size=2, sample_len=4)
    ours = record_cross_attention(nano.max, call(nano.max))
    theirs = record_cross_attention(nano.torch, call(nano.torch))
    assert_same_calls(ours, theirs)


def record(model: Whisper, name: str, call: Callable[[], object]) -> list[tuple[Tensor, Tensor]]:
    """Return what the hooks of the module `name` got during `call`: its first input, its output."""
    calls: list[tuple[Tensor, Tensor]] = []
    hook = model.get_submodule(name).register_forward_hook(lambda _, ins, out: calls.append((ins[0], out)))
    try:
        call()
    finally:
        hook.remove()
    return calls


def assert_same_records(ours: list[tuple[Tensor, Tensor]], theirs: list[tuple[Tensor, Tensor]]) -> None:
    assert len(ours) == len(theirs) > 0
    for (x, out), (expected_x, expected_out) in zip(ours, theirs, strict=True):
        if x.is_floating_point():
            assert_close(x, expected_x)
        else:
            assert torch.equal(x, expected_x)
        assert_close(out, expected_out)


@pytest.mark.parametrize("name", ["encoder.conv1", "decoder.token_embedding", "decoder.ln"])
@pytest.mark.parametrize("n_sequences", [1, 3])
def test_hooks_on_the_first_and_the_last_module(nano: Pair, mels: Tensor, name: str, n_sequences: int) -> None:
    tokens = TOKENS.repeat(n_sequences, 1)
    ours = record(nano.max, name, lambda: nano.max(mels[:n_sequences], tokens))
    theirs = record(nano.torch, name, lambda: nano.torch(mels[:n_sequences], tokens))
    assert_same_records(ours, theirs)


@pytest.mark.parametrize("name", ["decoder.token_embedding", "decoder.ln"])
def test_hooks_on_the_decoder_during_cached_steps(nano: Pair, features: Tensor, name: str) -> None:
    chunks = [TOKENS[:, :4], TOKENS[:, 4:5], TOKENS[:, 5:6]]
    ours = record(nano.max, name, lambda: with_cache(nano.max, chunks, features))
    theirs = record(nano.torch, name, lambda: with_cache(nano.torch, chunks, features))
    assert_same_records(ours, theirs)


@pytest.mark.parametrize("name", ["decoder.token_embedding", "decoder.ln"])
@pytest.mark.parametrize("options", [{}, {"beam_size": 2}, {"temperature": 0.5, "best_of": 2}], ids=str)
def test_hooks_on_the_decoder_during_decode(nano: Pair, mel: Tensor, name: str, options: dict[str, Any]) -> None:
    records = {}
    for model in (nano.max, nano.torch):
        torch.manual_seed(0)
        decode = partial(model.decode, mel, fp16=False, language="en", prompt="no", sample_len=4, **options)
        records[model] = record(model, name, decode)
    assert_same_records(records[nano.max], records[nano.torch])


def test_a_hook_on_the_encoder_sees_each_window_though_it_is_encoded_once(nano: Pair, mel: Tensor) -> None:
    before = whisper_max_plugin.status()["graph_runs"].get("encoder", 0)
    calls = record(nano.max, "encoder.conv1", lambda: [nano.max.encoder(mel * 0.5) for _ in range(3)])
    assert len(calls) == 3
    assert whisper_max_plugin.status()["graph_runs"]["encoder"] == before + 1


def test_a_hook_on_one_layer_only_and_removed_again(nano: Pair, features: Tensor) -> None:
    calls: list[Any] = []
    hook = nano.max.decoder.blocks[1].cross_attn.register_forward_hook(lambda *args: calls.append(args))
    nano.max.logits(TOKENS, features)
    hook.remove()
    nano.max.logits(TOKENS, features)
    ((module, _, _),) = calls
    assert module is nano.max.decoder.blocks[1].cross_attn


@pytest.mark.parametrize(
    "replace",
    [
        pytest.param(lambda module, ins, outs: (outs[0] * 0, outs[1]), id="returned"),
        pytest.param(lambda module, ins, outs: outs[0].mul_(0) is None or None, id="written in place"),
    ],
)
def test_a_hook_that_replaces_the_output_is_refused(
    nano: Pair, features: Tensor, replace: Callable[..., object]
) -> None:
    expected = nano.torch.logits(TOKENS, features)
    hook = nano.max.decoder.blocks[0].cross_attn.register_forward_hook(replace)
    try:
        with pytest.raises(RuntimeError, match="replaced the output") as error:
            nano.max.logits(TOKENS[:, :1], features)
    finally:
        hook.remove()
    assert_one_sentence(error.value, "decoder.blocks.0.cross_attn", 'backend="torch"')
    assert_close(nano.max.logits(TOKENS, features), expected)


@pytest.mark.parametrize("name", ["encoder.conv1", "decoder.token_embedding", "decoder.ln"])
@pytest.mark.parametrize(
    "replace",
    [
        pytest.param(lambda module, ins, out: out * 0, id="returned"),
        pytest.param(lambda module, ins, out: out.mul_(0) is None or None, id="written in place"),
    ],
)
def test_a_hook_that_replaces_the_output_of_the_first_or_the_last_module_is_refused(
    nano: Pair, mel: Tensor, name: str, replace: Callable[..., object]
) -> None:
    expected = nano.torch(mel, TOKENS)
    hook = nano.max.get_submodule(name).register_forward_hook(replace)
    try:
        with pytest.raises(RuntimeError, match="replaced the output") as error:
            nano.max(mel, TOKENS)
    finally:
        hook.remove()
    assert_one_sentence(error.value, name, 'backend="torch"')
    assert_close(nano.max(mel, TOKENS), expected)


def test_a_hook_may_write_to_the_scores_as_with_upstream(nano: Pair, features: Tensor) -> None:
    def halve(module: torch.nn.Module, ins: Any, outs: Any) -> None:
        outs[1].mul_(0.5)

    results = []
    for model in (nano.max, nano.torch):
        hook = model.decoder.blocks[0].cross_attn.register_forward_hook(halve)
        with without_sdpa():
            results.append(model.logits(TOKENS, features))
        hook.remove()
    assert_close(*results)


def test_an_error_in_a_hook_passes_through(nano: Pair, features: Tensor) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("the hook's own")

    hook = nano.max.decoder.blocks[0].cross_attn.register_forward_hook(fail)
    try:
        with pytest.raises(ZeroDivisionError, match="the hook's own"):
            nano.max.logits(TOKENS, features)
    finally:
        hook.remove()
    assert_close(nano.max.logits(TOKENS, features), nano.torch.logits(TOKENS, features))


def test_writing_to_what_a_hook_saw_does_not_change_later_results(nano: Pair, features: Tensor) -> None:
    expected = nano.torch.logits(TOKENS, features)
    with without_sdpa():
        for ins, outs in record_cross_attention(nano.max, lambda: nano.max.logits(TOKENS, features)):
            for tensor in (ins[0], *outs):
                tensor.fill_(torch.nan)
    assert_close(nano.max.logits(TOKENS, features), expected)
