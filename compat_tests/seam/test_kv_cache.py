"""The kv_cache of an accelerated model is upstream's: a mapping that callers read, rewrite, prune and branch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor
from whisper.decoding import PyTorchInference
from whisper.model import Whisper

from ..compare import assert_close
from ..conftest import Pair
from ..errors import assert_one_sentence
from .fixtures import TOKENS, fallbacks, features, features_of_three, mel, mels, no_grad
from .kv_caches import Cache, assert_same_cache, entries, with_cache

__all__ = ["fallbacks", "features", "features_of_three", "mel", "mels", "no_grad"]  # fixtures, found by name

REORDERED, PRUNED = [2, 0, 1], [2, 0]


# Reading


def test_step_by_step(nano: Pair, features: Tensor) -> None:
    chunks = [TOKENS[:, :4], *TOKENS[:, 4:].split(1, dim=1)]
    *ours, our_cache = with_cache(nano.max, chunks, features)
    *theirs, their_cache = with_cache(nano.torch, chunks, features)
    for actual, expected in zip(ours, theirs, strict=True):
        assert_close(actual, expected)
    assert_same_cache(nano, our_cache, their_cache)


def test_several_tokens_after_the_first_pass_are_a_pass_without_cache(nano: Pair, features: Tensor) -> None:
    # Upstream cannot be the oracle: with more than one token its causal mask ignores those in the cache.
    first, second, _ = with_cache(nano.max, [TOKENS[:, :5], TOKENS[:, 5:]], features)
    assert_close(torch.cat([first, second], dim=1), nano.torch.logits(TOKENS, features))


def test_the_cache_is_a_mapping_from_projection_modules(nano: Pair, features: Tensor) -> None:
    empty, _ = nano.max.install_kv_cache_hooks()
    assert not empty
    assert len(empty) == 0
    *_, cache = with_cache(nano.max, [TOKENS[:, :4]], features)
    assert isinstance(cache, Mapping)
    blocks = nano.max.decoder.blocks
    attentions = [attention for block in blocks for attention in (block.attn, block.cross_attn)]
    assert set(cache) == {module for attention in attentions for module in (attention.key, attention.value)}
    assert next(iter(cache.values())).shape[1] == 4  # how upstream reads the number of tokens
    assert blocks[0].attn.key in cache
    assert blocks[0].mlp not in cache
    assert cache.get(blocks[0].mlp) is None


# Writing


def in_all(kind: str, edit: Callable[[Tensor], Tensor]) -> Callable[[Whisper, Cache], None]:
    """Return a function that rewrites every entry of a cache whose module is of `kind`, as callers do."""

    def apply(model: Whisper, cache: Cache) -> None:
        modules = dict(model.decoder.named_modules())
        for name, value in entries(model, cache, kind).items():
            cache[modules[name]] = edit(value)

    return apply


@pytest.mark.parametrize(
    ("edit", "rows"),
    [
        pytest.param(in_all(".attn", lambda x: x[REORDERED].detach()), REORDERED, id="reorder"),
        pytest.param(in_all(".attn", lambda x: x[PRUNED]), PRUNED, id="prune"),
        pytest.param(in_all(".attn", lambda x: x[:1]), [0], id="one is left"),
        pytest.param(in_all(".attn", lambda x: x.repeat_interleave(2, dim=0)), [0, 0, 1, 1, 2, 2], id="fork"),
        pytest.param(in_all(".attn", lambda x: x[:, :-2]), [0, 1, 2], id="truncate"),
        pytest.param(in_all(".attn", torch.zeros_like), [0, 1, 2], id="clear"),
    ],
)
def test_writing_to_the_cache_of_three_sequences_on_one_window(
    nano: Pair, features: Tensor, edit: Callable[[Whisper, Cache], None], rows: list[int]
) -> None:
    tokens = TOKENS.repeat(3, 1)
    tokens[1:, 4:] += torch.tensor([[7], [70]])
    results = {}
    for model in (nano.max, nano.torch):
        _, cache = with_cache(model, [tokens[:, :7]], features)
        edit(model, cache)
        results[model] = with_cache(model, [tokens[rows, 7:], tokens[rows, :1]], features, cache)
    for actual, expected in zip(results[nano.max][:2], results[nano.torch][:2], strict=True):
        assert_close(actual, expected)
    assert_same_cache(nano, results[nano.max][2], results[nano.torch][2])


@pytest.mark.parametrize("rows", [REORDERED, PRUNED])
def test_writing_to_the_cache_of_three_windows(nano: Pair, features_of_three: Tensor, rows: list[int]) -> None:
    tokens = TOKENS.repeat(3, 1)
    results = {}
    for model in (nano.max, nano.torch):
        _, cache = with_cache(model, [tokens[:, :7]], features_of_three)
        in_all("attn", lambda x: x[rows])(model, cache)
        results[model] = with_cache(model, [tokens[rows, 7:]], features_of_three[rows], cache)
    assert_close(results[nano.max][0], results[nano.torch][0])
    assert_same_cache(nano, results[nano.max][1], results[nano.torch][1])


def test_writing_into_a_self_attention_entry_in_place(nano: Pair, features: Tensor) -> None:
    results = {}
    for model in (nano.max, nano.torch):
        _, cache = with_cache(model, [TOKENS[:, :7]], features)
        for value in entries(model, cache, ".attn").values():
            value[:, 3] = 0
        results[model] = with_cache(model, [TOKENS[:, 7:]], features, cache)[0]
    assert_close(results[nano.max], results[nano.torch])


def test_what_was_read_from_the_cache_stays_as_it_was(nano: Pair, features: Tensor) -> None:
    *_, cache = with_cache(nano.max, [TOKENS[:, :7]], features)
    read = entries(nano.max, cache)
    copies = {name: value.clone() for name, value in read.items()}
    nano.max.decoder(TOKENS[:, 7:], features, kv_cache=cache)
    in_all(".attn", lambda x: x.flip(1))(nano.max, cache)
    for name, value in read.items():
        assert torch.equal(value, copies[name]), name


def test_a_cache_can_be_branched(nano: Pair, features: Tensor) -> None:
    for model in (nano.max, nano.torch):
        first, cache = with_cache(model, [TOKENS[:, :6]], features)
        branch, branched = with_cache(model, [TOKENS[:, 6:7]], features, cache)
        other, _ = with_cache(model, [TOKENS[:, 7:8]], features, dict(cache))
        assert next(iter(cache.values())).shape[1] == 6
        assert next(iter(branched.values())).shape[1] == 7
        if model is nano.max:
            ours = first, branch, other
    for actual, expected in zip(ours, (first, branch, other), strict=True):
        assert_close(actual, expected)


def test_what_a_dict_can_do(nano: Pair, features: Tensor) -> None:
    orders = []
    for model in (nano.max, nano.torch):
        *_, cache = with_cache(model, [TOKENS[:, :6]], features)
        names = {module: name for name, module in model.named_modules()}
        orders.append([names[module] for module in cache])
    ours, theirs = orders
    assert ours == theirs

    cache, hooks = nano.max.install_kv_cache_hooks()
    expected = nano.max.decoder(TOKENS[:, :6], features, kv_cache=cache)
    kept = cache.copy()
    assert type(kept) is type(cache | {}) is dict
    nano.max.decoder(TOKENS[:, 6:7], features, kv_cache=cache)
    cache |= kept
    assert next(iter(cache.values())).shape[1] == 6
    with hooks[0]:
        assert torch.get_num_threads() == 1
    assert_close(nano.max.decoder(TOKENS[:, :6], features), expected)


def test_entries_of_different_lengths_are_refused(nano: Pair, features: Tensor) -> None:
    *_, cache = with_cache(nano.max, [TOKENS[:, :4]], features)
    cache[nano.max.decoder.blocks[0].attn.key] = cache[nano.max.decoder.blocks[0].attn.key][:, :2]
    with pytest.raises(RuntimeError, match="entries differ in length") as error:
        nano.max.decoder(TOKENS[:, 4:5], features, kv_cache=cache)
    assert_one_sentence(error.value)


def test_another_batch_than_the_caches_is_refused(nano: Pair, features: Tensor) -> None:
    *_, cache = with_cache(nano.max, [TOKENS[:, :4].repeat(3, 1)], features)
    with pytest.raises(RuntimeError, match="holds 3 sequences, but 2 were given") as error:
        nano.max.decoder(TOKENS[:, 4:5].repeat(2, 1), features, kv_cache=cache)
    assert_one_sentence(error.value)
    assert next(iter(cache.values())).shape[1] == 4


def test_upstreams_inference_reorders_beams(nano: Pair, features: Tensor) -> None:
    tokens = TOKENS.repeat(3, 1)
    tokens[:, 6] += torch.arange(3)
    results = {}
    for model in (nano.max, nano.torch):
        inference = PyTorchInference(model, initial_token_length=7)
        first = inference.logits(tokens[:, :7], features)
        inference.rearrange_kv_cache(REORDERED)
        results[model] = first, inference.logits(tokens, features)
        inference.cleanup_caching()
    for actual, expected in zip(results[nano.max], results[nano.torch], strict=True):
        assert_close(actual, expected)


@pytest.mark.falls_back
def test_a_plain_dict_in_place_of_the_cache_is_declared(
    nano: Pair, features: Tensor, fallbacks: Callable[[], dict[str, int]]
) -> None:
    results = {}
    for model in (nano.max, nano.torch):
        _, cache = with_cache(model, [TOKENS[:, :4]], features)
        results[model] = model.decoder(TOKENS[:, 4:5], features, kv_cache=dict(cache))
    assert_close(results[nano.max], results[nano.torch])
    assert fallbacks() == {"a kv_cache that this model's install_kv_cache_hooks did not make": 1}


@pytest.mark.parametrize("batch", [1, 3])
def test_a_cleared_cache_starts_anew_with_another_window(nano: Pair, features_of_three: Tensor, batch: int) -> None:
    *_, cache = with_cache(nano.max, [TOKENS[:, :6]], features_of_three[:1])
    cache.clear()
    assert len(cache) == 0
    tokens, features = TOKENS[:, :5].repeat(batch, 1), features_of_three[-batch:]
    assert_close(nano.max.decoder(tokens, features, kv_cache=cache), nano.torch.decoder(tokens, features))


def test_writing_to_cross_attention_entries_does_not_change_another_cache(nano: Pair, features: Tensor) -> None:
    expected = nano.torch.logits(TOKENS, features)
    *_, cache = with_cache(nano.max, [TOKENS[:, :4]], features)
    for value in entries(nano.max, cache, "cross_attn").values():
        value.fill_(torch.nan)
    assert_close(nano.max.logits(TOKENS, features), expected)
