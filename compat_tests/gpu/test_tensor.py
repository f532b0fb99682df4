"""Kernels of half-width numbers on a GPU: products and attention on tensor cores, and a step's with such a cache."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv1d, gelu, layer_norm

from .fixtures import (
    Kernels,
    array,
    assert_close,
    assert_equal,
    attend,
    blocks,
    kernels,
    merge_heads,
    run_linear,
    seeded,
    split_heads,
    unset,
)

__all__ = ["kernels", "seeded"]  # fixtures, found by name

HALF = pytest.mark.parametrize("half", ["float16", "bfloat16"])
TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}

# Matrix products


def run_gemm(
    kernels: Kernels,
    name: str,
    side: int,
    y: Tensor,
    inputs: list[Tensor],
    length: int,
    stride: int = 1,
    length_out: int | None = None,
    head_dim: int = 0,
) -> Tensor:
    """Compute y of x, w, bias and residual, in tiles of `side` rows and columns."""
    n = len(inputs[1])
    m = y.numel() // n
    sizes = m, n, inputs[0].shape[-1], length, stride, length_out or length, head_dim
    kernels.run(name, (blocks(n, side), blocks(m, side)), 128, [y], inputs, *sizes)
    return y


@HALF
@pytest.mark.parametrize(
    ("side", "m", "n", "k"),
    [
        (64, 6, 2, 32),  # less than a tile, of one step
        (64, 70, 131, 8),  # rows that are not as long as a step, and an odd number of them
        (64, 64, 66, 72),  # a last step that is not full
        (128, 130, 257, 96),
        (128, 5, 130, 200),
    ],
)
@pytest.mark.parametrize("then", ["gelu", "add"])
def test_products(kernels: Kernels, half: str, side: int, m: int, n: int, k: int, then: str) -> None:
    x, w = torch.randn(m, k).to(TYPES[half]), torch.randn(n, k).to(TYPES[half])
    bias, residual = torch.randn(n), torch.randn(m, n)
    biased = x.double() @ w.double().T + bias
    # what is rounded is the result alone: products are exact, and sums are float32
    if then == "gelu":
        y = run_gemm(kernels, f"tensor gelu {half} {side}", side, unset(m, n, dtype=x.dtype), [x, w, bias, bias], m)
        assert_close(y, gelu(biased), half)
    else:
        y = run_gemm(kernels, f"tensor add {half} {side}", side, unset(m, n), [x, w, bias, residual], m)
        assert_close(y, biased + residual)


def test_products_without_bias(kernels: Kernels) -> None:
    x, w = torch.randn(7, 48).half(), torch.randn(9, 48).half()
    y = run_gemm(kernels, "tensor without bias", 64, unset(7, 9), [x, w, torch.zeros(1), torch.zeros(1)], 7)
    assert_close(y, x.double() @ w.double().T)


@HALF
@pytest.mark.parametrize("side", [64, 128])
def test_products_laid_out_by_heads(kernels: Kernels, half: str, side: int) -> None:
    batch, length, n_head, head_dim = 2, side // 2 + 3, 3, 64
    x, w = torch.randn(batch, length, 64).to(TYPES[half]), torch.randn(n_head * head_dim, 64).to(TYPES[half])
    bias = torch.randn(n_head * head_dim)
    y = unset(batch, n_head, length, head_dim, dtype=x.dtype)
    run_gemm(kernels, f"tensor heads {half} {side}", side, y, [x, w, bias, bias], length, head_dim=head_dim)
    assert_close(y, split_heads(x.double() @ w.double().T + bias, head_dim), half)


@HALF
@pytest.mark.parametrize("side", [64, 128])
@pytest.mark.parametrize("n_products", [2, 3])
def test_projections_in_one_launch(kernels: Kernels, half: str, side: int, n_products: int) -> None:
    batch, length, n_head, head_dim, k = 2, side // 2 + 3, 3, 64, 72
    n = n_head * head_dim
    x = torch.randn(batch, length, k).to(TYPES[half])
    ws, biases = [torch.randn(n, k).to(TYPES[half]) for _ in range(3)], [torch.randn(n) for _ in range(3)]
    q = unset(batch, length, n, dtype=x.dtype)
    keys, values = (unset(batch, n_head, length, head_dim, dtype=x.dtype) for _ in range(2))
    grid = (blocks(n, side), blocks(batch * length, side), n_products)
    inputs = [x, *(operand for pair in zip(ws, biases, strict=True) for operand in pair)]
    sizes = batch * length, n, k, length, head_dim
    kernels.run(f"tensor projections {half} {side}", grid, 128, [q, keys, values], inputs, *sizes)
    expected = [x.double() @ w.double().T + bias for w, bias in zip(ws, biases, strict=True)]
    assert_close(q, expected[0], half)
    assert_close(keys, split_heads(expected[1], head_dim), half)
    if n_products == 3:
        assert_close(values, split_heads(expected[2], head_dim), half)
    else:
        assert values.isnan().all()


@HALF
@pytest.mark.parametrize("side", [64, 128])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions(kernels: Kernels, half: str, side: int, stride: int) -> None:
    batch, length_out, n_in, n_out = 2, side // 2 + 5, 80, side + 2  # a window of 240 is no whole number of steps
    length = length_out * stride
    x, w = torch.randn(batch, length, n_in).to(TYPES[half]), torch.randn(n_out, n_in, 3).to(TYPES[half])
    bias, positions = torch.randn(n_out), torch.randn(length_out, n_out)
    expected = gelu(conv1d(x.double().mT, w.double(), bias.double(), stride=stride, padding=1).mT) + positions
    inputs = [x, w.mT.contiguous(), bias, positions]
    y = unset(batch, length_out, n_out)
    run_gemm(kernels, f"tensor conv {half} {side}", side, y, inputs, length, stride, length_out)
    assert_close(y, expected)


# Linear layers of few rows


@HALF
@pytest.mark.parametrize("m", [1, 2, 7, 8])
@pytest.mark.parametrize(("n", "k"), [(1, 32), (37, 96), (16, 1312)])  # of 8 warps: some have nothing, or more steps
def test_few_rows(kernels: Kernels, half: str, m: int, n: int, k: int) -> None:
    x, w = torch.randn(m, k), torch.randn(n, k).to(TYPES[half])
    y = run_linear(kernels, f"tensor linear {half}", unset(m, n), x, w, x, x)
    assert_close(y, x.to(TYPES[half]).double() @ w.double().T)


@HALF
@pytest.mark.parametrize("m", [1, 5, 8])
@pytest.mark.parametrize(("n", "k"), [(1, 32), (21, 384), (3, 1280)])
def test_few_rows_of_layer_norms(kernels: Kernels, half: str, m: int, n: int, k: int) -> None:
    x, w = 3 * torch.randn(m, k) + 5, torch.randn(n, k).to(TYPES[half])
    weight, bias = torch.randn(k), torch.randn(k)
    y = run_linear(kernels, f"tensor linear norm {half}", unset(m, n), x, w, x, x, weight, bias)
    normalized = layer_norm(x.double(), [k], weight.double(), bias.double()).to(TYPES[half])
    assert_close(y, normalized.double() @ w.double().T, half)


@HALF
@pytest.mark.parametrize(("m", "groups"), [(9, 2), (16, 2), (17, 4), (32, 4)])
@pytest.mark.parametrize("kind", ["", " norm"])
def test_more_rows_are_what_they_are_alone(kernels: Kernels, half: str, m: int, groups: int, kind: str) -> None:
    n, k = 21, 416  # of 8 warps: five have a second step
    x, w = 3 * torch.randn(m, k) + 5, torch.randn(n, k).to(TYPES[half])
    norm = [torch.randn(k), torch.randn(k)] if kind else []
    y = run_linear(kernels, f"tensor linear{kind} {half} {groups}", unset(m, n), x, w, x, x, *norm)
    alone = [
        run_linear(kernels, f"tensor linear{kind} {half}", unset(len(few), n), few, w, few, few, *norm)
        for few in x.split(8)
    ]
    assert_equal(y, torch.cat(alone))


@HALF
@pytest.mark.parametrize("then", ["bias", "gelu", "add"])
def test_what_follows_few_rows(kernels: Kernels, half: str, then: str) -> None:
    x, w, bias, residual = torch.randn(3, 64), torch.randn(21, 64).to(TYPES[half]), torch.randn(21), torch.randn(3, 21)
    biased = x.to(TYPES[half]).double() @ w.double().T + bias
    expected = {"bias": biased, "gelu": gelu(biased), "add": biased + residual}[then]
    assert_close(run_linear(kernels, f"tensor linear {then} {half}", unset(3, 21), x, w, bias, residual), expected)


@HALF
@pytest.mark.parametrize("k", [1312, 2592, 5216])  # 16 warps have 2560 on their way
def test_few_rows_that_are_deep(kernels: Kernels, half: str, k: int) -> None:
    x, w, bias, residual = torch.randn(3, k), torch.randn(5, k).to(TYPES[half]), torch.randn(5), torch.randn(3, 5)
    expected = x.to(TYPES[half]).double() @ w.double().T + bias + residual
    assert_close(run_linear(kernels, f"tensor linear deep {half}", unset(3, 5), x, w, bias, residual), expected)


@HALF
@pytest.mark.parametrize("m", [2, 5])
def test_few_rows_of_half_width(kernels: Kernels, half: str, m: int) -> None:
    x, w, bias = torch.randn(m, 288).to(TYPES[half]), torch.randn(21, 288).to(TYPES[half]), torch.randn(21)
    y = run_linear(kernels, f"tensor linear apart {half}", unset(m, 21, dtype=x.dtype), x, w, bias, bias)
    assert_close(y, x.double() @ w.double().T + bias, half)


# Attention


def run_flash(kernels: Kernels, q: Tensor, keys: Tensor, values: Tensor, half: str) -> Tensor:
    n_audio, n_head, n_keys, _ = keys.shape
    n_queries, y = q.shape[1], unset(*q.shape, dtype=q.dtype)
    grid, sizes = (blocks(n_queries, 64), n_audio * n_head), (n_head, n_queries, n_keys)
    kernels.run(f"tensor flash {half}", grid, 128, [y], [q, keys, values], *sizes)
    return y


@HALF
@pytest.mark.parametrize("n_queries", [1, 64, 77])
@pytest.mark.parametrize("n_keys", [1, 64, 65, 190])
def test_attention_of_many_queries(kernels: Kernels, half: str, n_queries: int, n_keys: int) -> None:
    q = (3 * torch.randn(2, n_queries, 128)).to(TYPES[half])
    keys, values = torch.randn(2, 2, 2, n_keys, 64).to(TYPES[half])
    expected = merge_heads(attend(split_heads(q, 64), keys, values))
    assert_close(run_flash(kernels, q, keys, values, half), expected, half)


@pytest.mark.parametrize("sign", [1, -1])
def test_attention_with_scores_beyond_what_half_width_holds(kernels: Kernels, sign: int) -> None:
    q, keys = 200 * torch.rand(1, 3, 64).half(), sign * 200 * torch.rand(1, 1, 70, 64).half()
    values = torch.randn(1, 1, 70, 64).half()
    assert float((q.double() @ keys[0].double().mT).abs().max()) > 65504
    expected = merge_heads(attend(split_heads(q, 64), keys, values))
    assert_close(run_flash(kernels, q, keys, values, "float16"), expected, "float16")


@HALF
@pytest.mark.parametrize("n_before", [0, 7])
@pytest.mark.parametrize("n_tokens", [1, 9])
@pytest.mark.parametrize("n_copies", [1, 3])
def test_causal_attention(kernels: Kernels, half: str, n_before: int, n_tokens: int, n_copies: int) -> None:
    batch, n_state = 2, 128
    qkv = (3 * torch.randn(batch, n_tokens, 3 * n_state)).to(TYPES[half])
    q, key, value = qkv.split(n_state, dim=2)
    keys, values = torch.randn(2, n_before + n_tokens, batch, n_copies, n_state).to(TYPES[half])
    expected_keys, expected_values = keys.clone(), values.clone()
    expected_keys[n_before:, :, 0], expected_values[n_before:, :, 0] = key.transpose(0, 1), value.transpose(0, 1)

    sizes = n_before, batch, n_copies, n_tokens, n_state
    kernels.run(f"store {half}", (n_tokens, batch), 256, [keys, values], [qkv], *sizes)
    assert_equal(keys, expected_keys)
    assert_equal(values, expected_values)
    y = unset(batch, n_tokens, n_state, dtype=qkv.dtype)
    kernels.run(f"causal {half}", (n_tokens, batch, 2), 256, [y], [qkv, keys, values], *sizes)
    for token in range(n_tokens):
        seen = [split_heads(cache[: n_before + token + 1, :, 0].transpose(0, 1), 64) for cache in (keys, values)]
        expected = merge_heads(attend(split_heads(q[:, token : token + 1], 64), *seen))[:, 0]
        assert_close(y[:, token], expected, half)


@HALF
def test_a_steps_self_attention(kernels: Kernels, half: str) -> None:
    n_head, n_text_ctx, position = 2, 310, 300
    n_state = 64 * n_head
    qkv = 3 * torch.randn(1, 3 * n_state)
    cache = torch.randn(2, n_text_ctx, 1, n_state).to(TYPES[half])
    cache[:, position:] = torch.nan
    expected = cache.clone()
    expected[:, position, 0] = qkv.view(3, n_state)[1:].to(TYPES[half])

    holders, at = torch.zeros(1, n_text_ctx, dtype=torch.int32), torch.tensor([position])
    y, memory = unset(1, n_state), [[1, *map(array, cache), 0, 0]]
    sizes = len(memory[0]), 0, 1, n_text_ctx, n_state
    inputs = [qkv, memory, holders, at]
    kernels.run(f"self_attention {half} 64", (1, n_head), 256, [y], inputs, *sizes, settled=[memory, holders, at])
    assert_equal(cache, expected)
    seen = [split_heads(part[: position + 1].transpose(0, 1), 64) for part in cache]
    assert_close(y, merge_heads(attend(split_heads(qkv[None, :, :n_state], 64), *seen))[0])


@HALF
@pytest.mark.parametrize("n_group", [1, 3])
def test_a_steps_cross_attention(kernels: Kernels, half: str, n_group: int) -> None:
    n_head, n_keys = 2, 700
    q = 3 * torch.randn(1, n_group, 64 * n_head)
    keys, values = torch.randn(2, 1, n_head, n_keys, 64).to(TYPES[half])
    n_parts, memory = blocks(n_keys, 256), [[0, 0, 0, array(keys[0]), array(values[0])]]
    parts, y = unset(n_head, n_parts, n_group, 66), unset(*q.shape)
    name = f"cross_attention {half} {1 if n_group == 1 else 5}"
    sizes = len(memory[0]), 0, 0, n_group, n_head, n_keys
    kernels.run(name, (n_parts, n_head), 256, [parts], [q, memory], *sizes, settled=[memory])
    kernels.run("merge", n_head, 256, [y], [parts], n_group, n_head, n_parts)
    assert_close(y, merge_heads(attend(split_heads(q, 64), keys, values)))
