"""Forward hooks on cross_attn get what upstream's get: word timestamps, upstream's and others', read scores so."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
import whisper
import whisper.model
from torch import Tensor
from whisper.decoding import DecodingOptions, DecodingTask
from whisper.model import Whisper

from .compare import assert_close
from .conftest import Pair
from .errors import assert_one_sentence
from .kv_caches import with_cache
from .seam_fixtures import TOKENS, features, features_of_three, mel, mels, no_grad

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
