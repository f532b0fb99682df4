"""Decoding with upstream's kv_cache: how to run it, and how to compare what the caches of two models hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from whisper.model import Whisper

from ..compare import assert_close
from ..conftest import Pair

Cache = Any  # upstream's is a dict


def with_cache(model: Whisper, chunks: Sequence[Tensor], features: Tensor, cache: Cache = None) -> list[Any]:
    """Give the decoder one chunk of tokens after another; return each one's logits, and the cache at last."""
    cache, hooks = model.install_kv_cache_hooks(cache)
    try:
        return [*(model.decoder(chunk, features, kv_cache=cache) for chunk in chunks), cache]
    finally:
        for hook in hooks:
            hook.remove()


def entries(model: Whisper, cache: Mapping[nn.Module, Tensor], kind: str = "attn") -> dict[str, Tensor]:
    """Return the entries of `cache` by the names of the modules, of all modules whose name contains `kind`."""
    names = {module: name for name, module in model.decoder.named_modules()}
    return {names[module]: value for module, value in cache.items() if kind in names[module]}


def assert_same_cache(nano: Pair, ours: Cache, theirs: Cache) -> None:
    actual, expected = entries(nano.max, ours), entries(nano.torch, theirs)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(actual[name], value)
