"""Attention on a GPU: of a step, of many queries, and of a prompt to itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from .fixtures import (
    Kernels,
    array,
    assert_close,
    assert_equal,
    attend,
    blocks,
    kernels,
    merge_heads,
    seeded,
    split_heads,
    unset,
)

__all__ = ["kernels", "seeded"]  # fixtures, found by name


LAYER = 1
UNUSED = [0] * 4  # the entries of another layer


@pytest.mark.parametrize("head_dim", [32, 64])
@pytest.mark.parametrize("positions", [[0, 0], [5, 300], [40, 7]])
def test_self_attention(kernels: Kernels, head_dim: int, positions: list[int]) -> None:
    """Of two windows at positions of their own, whose caches have three and four rows, and two sequences of each."""
    n_head, n_text_ctx, n_group, n_rows = 2, 310, 2, [3, 4]
    n_state, batch = n_head * head_dim, 2 * n_group
    qkv = 3 * torch.randn(batch, 3 * n_state)
    q, key, value = qkv.split(n_state, dim=1)
    caches = [torch.randn(2, n_text_ctx, rows, n_state) for rows in n_rows]
    holders = torch.stack([torch.randint(0, n_rows[b // n_group], (n_text_ctx,)) for b in range(batch)]).int()
    at = torch.tensor(positions).repeat_interleave(n_group)
    for b, position in enumerate(at.tolist()):
        caches[b // n_group][:, position:] = torch.nan  # nothing is there yet
        holders[b, position] = b % n_group + 1
        holders[b, position + 1 :] = 2**30  # nor known who will hold it
    expected = [cache.clone() for cache in caches]
    for b, position in enumerate(at.tolist()):
        expected[b // n_group][:, position, b % n_group + 1] = torch.stack([key[b], value[b]])

    y = unset(batch, n_state)
    memory = [[rows, *UNUSED, *map(array, cache), 0, 0] for rows, cache in zip(n_rows, caches, strict=True)]
    sizes = len(memory[0]), LAYER, n_group, n_text_ctx, n_state
    inputs = [qkv, memory, holders, at]
    name, grid = f"self_attention float32 {head_dim}", (batch, n_head)
    kernels.run(name, grid, 256, [y], inputs, *sizes, settled=[memory, holders, at])
    for cache, expected_cache in zip(caches, expected, strict=True):
        assert_equal(cache, expected_cache)
    for b, position in enumerate(at.tolist()):
        filled = torch.arange(position + 1)
        seen = [split_heads(part[filled, holders[b, filled].long()][None], head_dim) for part in caches[b // n_group]]
        assert_close(y[b : b + 1], merge_heads(attend(split_heads(q[None, b : b + 1], head_dim), *seen))[0])


def run_cross_attention(kernels: Kernels, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attend with q (n_audio, n_group, n_state): the launches of a step, five rows at a time, and then the merge."""
    n_audio, n_head, n_keys, head_dim = keys.shape
    n_group, n_parts = q.shape[1], blocks(n_keys, 256)
    parts, y = unset(n_audio * n_head, n_parts, n_group, head_dim + 2), unset(*q.shape)
    apart = [[array(x.clone()) for x in audio] for audio in zip(keys, values, strict=True)]  # anywhere
    memory = [[0, *UNUSED, 0, 0, *audio] for audio in apart]
    for first_row in range(0, n_group, 5):
        name = f"cross_attention float32 {1 if n_group - first_row == 1 else 5}"
        grid, sizes = (n_parts, n_audio * n_head), (len(memory[0]), LAYER, first_row, n_group, n_head, n_keys)
        kernels.run(name, grid, 256, [parts], [q, memory], *sizes, settled=[memory])
    kernels.run("merge", n_audio * n_head, 256, [y], [parts], n_group, n_head, n_parts)
    return y


@pytest.mark.parametrize("n_group", [1, 3, 5, 6, 7])
@pytest.mark.parametrize("n_keys", [40, 256, 700])
def test_cross_attention(kernels: Kernels, n_group: int, n_keys: int) -> None:
    q, keys, values = 3 * torch.randn(2, n_group, 128), torch.randn(2, 2, n_keys, 64), torch.randn(2, 2, n_keys, 64)
    expected = merge_heads(attend(split_heads(q, 64), keys, values))
    assert_close(run_cross_attention(kernels, q, keys, values), expected)


@pytest.mark.parametrize("sign", [1, -1])
def test_cross_attention_with_scores_of_any_size(kernels: Kernels, sign: int) -> None:
    q, keys, values = 1e17 * torch.rand(1, 2, 64), sign * 1e17 * torch.rand(1, 1, 300, 64), torch.randn(1, 1, 300, 64)
    expected = merge_heads(attend(split_heads(q, 64), keys, values))
    assert_close(run_cross_attention(kernels, q, keys, values), expected)


def run_flash(kernels: Kernels, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    n_audio, n_head, n_keys, head_dim = keys.shape
    n_queries, y = q.shape[1], unset(*q.shape)
    grid = blocks(n_queries, 64), n_audio * n_head
    kernels.run(f"flash {head_dim}", grid, 256, [y], [q, keys, values], n_head, n_queries, n_keys)
    return y


@pytest.mark.parametrize("head_dim", [32, 64])
@pytest.mark.parametrize("n_queries", [1, 63, 65])
@pytest.mark.parametrize("n_keys", [31, 33, 100])
def test_attention_of_many_queries(kernels: Kernels, head_dim: int, n_queries: int, n_keys: int) -> None:
    q = 3 * torch.randn(2, n_queries, 2 * head_dim)
    keys, values = torch.randn(2, 2, 2, n_keys, head_dim)
    assert_close(run_flash(kernels, q, keys, values), merge_heads(attend(split_heads(q, head_dim), keys, values)))


@pytest.mark.parametrize("sign", [1, -1])
def test_attention_of_many_queries_with_scores_of_any_size(kernels: Kernels, sign: int) -> None:
    q, keys, values = 1e17 * torch.rand(1, 3, 32), sign * 1e17 * torch.rand(1, 1, 70, 32), torch.randn(1, 1, 70, 32)
    assert_close(run_flash(kernels, q, keys, values), merge_heads(attend(split_heads(q, 32), keys, values)))


@pytest.mark.parametrize("n_before", [0, 7])
@pytest.mark.parametrize("n_tokens", [1, 9])
@pytest.mark.parametrize("n_copies", [1, 3])
def test_causal_attention(kernels: Kernels, n_before: int, n_tokens: int, n_copies: int) -> None:
    batch, n_state = 2, 128
    qkv = 3 * torch.randn(batch, n_tokens, 3 * n_state)
    q, key, value = qkv.split(n_state, dim=2)
    keys, values = torch.randn(2, n_before + n_tokens, batch, n_copies, n_state)
    expected_keys, expected_values = keys.clone(), values.clone()
    expected_keys[n_before:, :, 0], expected_values[n_before:, :, 0] = key.transpose(0, 1), value.transpose(0, 1)

    sizes = n_before, batch, n_copies, n_tokens, n_state
    kernels.run("store", (n_tokens, batch), 256, [keys, values], [qkv], *sizes)
    assert_equal(keys, expected_keys)
    assert_equal(values, expected_values)
    y = unset(batch, n_tokens, n_state)
    kernels.run("causal", (n_tokens, batch, 2), 256, [y], [qkv, keys, values], *sizes)
    for token in range(n_tokens):
        seen = [split_heads(cache[: n_before + token + 1, :, 0].transpose(0, 1), 64) for cache in (keys, values)]
        assert_close(y[:, token], merge_heads(attend(split_heads(q[:, token : token + 1], 64), *seen))[:, 0])
