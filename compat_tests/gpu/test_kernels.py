"""Products on a GPU: linear layers, convolutions and scores are what torch computes, without races and stray reads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv1d, gelu, layer_norm

from .fixtures import (
    Kernels,
    assert_close,
    assert_equal,
    blocks,
    kernels,
    run_linear,
    seeded,
    split_heads,
    unset,
)

__all__ = ["kernels", "seeded"]  # fixtures, found by name

STORED = ["float16", "bfloat16", "float32"]

# A step begins with embeddings


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("n_state", [8, 300])
def test_embeddings(kernels: Kernels, stored: str, n_state: int) -> None:
    tokens, positions, x = torch.tensor([4, 0, 4]), torch.tensor([0, 2, 1]), unset(3, n_state)
    of_tokens, of_positions = torch.randn(5, n_state).to(getattr(torch, stored)), torch.randn(3, n_state)
    tables = [of_tokens, of_positions]
    at = torch.full((3,), -1)
    kernels.run(f"embed {stored}", 3, 256, [x, at], [tokens, positions, *tables], n_state, settled=tables)
    assert_equal(at, positions)
    assert_equal(x, of_tokens[tokens].float() + of_positions[positions])


# Linear layers of few rows


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize(("m", "rows"), [(1, 1), (2, 5), (5, 5), (6, 8), (8, 8)])
@pytest.mark.parametrize(("n", "k"), [(1, 8), (37, 264), (16, 520)])
def test_linear_layers(kernels: Kernels, stored: str, m: int, rows: int, n: int, k: int) -> None:
    x, w = torch.randn(m, k), torch.randn(n, k).to(getattr(torch, stored))
    for name in ("linear", "linear apart"):
        assert_close(run_linear(kernels, f"{name} {stored} {rows}", unset(m, n), x, w, x, x), x.double() @ w.double().T)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize(("m", "rows"), [(1, 1), (5, 5), (6, 8)])
@pytest.mark.parametrize(("n", "k"), [(1, 8), (21, 384), (3, 1288)])
def test_linear_layers_of_layer_norms(kernels: Kernels, stored: str, m: int, rows: int, n: int, k: int) -> None:
    x, w = 3 * torch.randn(m, k) + 5, torch.randn(n, k).to(getattr(torch, stored))
    weight, bias = torch.randn(k), torch.randn(k)
    normalized = layer_norm(x.double(), [k], weight.double(), bias.double())
    y = run_linear(kernels, f"linear norm {stored} {rows}", unset(m, n), x, w, x, x, weight, bias)
    assert_close(y, normalized @ w.double().T)


@pytest.mark.parametrize("then", ["bias", "gelu", "add"])
@pytest.mark.parametrize(("m", "rows"), [(1, 1), (3, 5)])
def test_what_follows_a_linear_layer(kernels: Kernels, then: str, m: int, rows: int) -> None:
    x, w, bias, residual = torch.randn(m, 40), torch.randn(21, 40).half(), torch.randn(21), torch.randn(m, 21)
    biased = x.double() @ w.double().T + bias
    expected = {"bias": biased, "gelu": gelu(biased), "add": biased + residual}[then]
    assert_close(run_linear(kernels, f"linear {then} float16 {rows}", unset(m, 21), x, w, bias, residual), expected)


# Matrix products of many rows


def run_gemm(
    kernels: Kernels,
    name: str,
    side: int,
    y: Tensor,
    inputs: list[Tensor],
    n_in: int,
    length: int,
    stride: int = 1,
    length_out: int | None = None,
    head_dim: int = 0,
) -> Tensor:
    """Compute y of x, w, bias and residual."""
    n = len(inputs[1])
    m = y.numel() // n
    grid = blocks(n, 16 * side), blocks(m, 16 * side)
    kernels.run(name, grid, 256, [y], inputs, m, n, n_in, length, stride, length_out or length, head_dim)
    return y


@pytest.mark.parametrize("stored", ["float16", "float32"])
@pytest.mark.parametrize(("side", "m", "n"), [(4, 6, 3), (4, 69, 130), (8, 6, 3), (8, 133, 131)])
@pytest.mark.parametrize("then", ["gelu", "add"])
def test_products(kernels: Kernels, stored: str, side: int, m: int, n: int, then: str) -> None:
    x, w = torch.randn(m, 48), torch.randn(n, 48).to(getattr(torch, stored))
    bias, residual = torch.randn(n), torch.randn(m, n)
    biased = x.double() @ w.double().T + bias
    expected = {"gelu": gelu(biased), "add": biased + residual}[then]
    actual = run_gemm(kernels, f"gemm {then} {stored} {side}", side, unset(m, n), [x, w, bias, residual], 48, m)
    assert_close(actual, expected)


@pytest.mark.parametrize("stored", ["float16", "float32"])
@pytest.mark.parametrize("side", [4, 8])
def test_products_laid_out_by_heads(kernels: Kernels, stored: str, side: int) -> None:
    batch, length, n_head, head_dim = 2, 9 * side, 3, 32
    x, w = torch.randn(batch, length, 32), torch.randn(n_head * head_dim, 32).to(getattr(torch, stored))
    bias = torch.randn(n_head * head_dim)
    y = unset(batch, n_head, length, head_dim)
    run_gemm(kernels, f"gemm heads {stored} {side}", side, y, [x, w, bias, x], 32, length, head_dim=head_dim)
    assert_close(y, split_heads(x.double() @ w.double().T + bias, head_dim))


@pytest.mark.parametrize("stored", ["float16", "float32"])
@pytest.mark.parametrize("side", [4, 8])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_with_positions(kernels: Kernels, stored: str, side: int, stride: int) -> None:
    batch, length, n_in, n_out, length_out = 2, 10 * side * stride, 16, 17 * side, 10 * side
    x, w = torch.randn(batch, length, n_in), torch.randn(n_out, n_in, 3).to(getattr(torch, stored))
    bias, positions = torch.randn(n_out), torch.randn(length_out, n_out)
    convolved = conv1d(x.double().mT, w.double(), bias.double(), stride=stride, padding=1).mT
    y, inputs = unset(batch, length_out, n_out), [x, w.mT.contiguous(), bias, positions]
    run_gemm(kernels, f"gemm conv {stored} {side}", side, y, inputs, n_in, length, stride, length_out)
    assert_close(y, gelu(convolved) + positions)


def test_convolution_without_positions(kernels: Kernels) -> None:
    x, w, bias = torch.randn(1, 5, 32), torch.randn(7, 32, 3), torch.randn(7)
    convolved = conv1d(x.double().mT, w.double(), bias.double(), padding=1).mT
    inputs = [x, w.mT.contiguous(), bias, x]
    y = run_gemm(kernels, "gemm conv without positions", 4, unset(1, 5, 7), inputs, 32, 5)
    assert_close(y, gelu(convolved))


@pytest.mark.parametrize(("n_queries", "n_keys"), [(1, 1), (5, 70), (65, 129)])
def test_scores(kernels: Kernels, n_queries: int, n_keys: int) -> None:
    q, keys = torch.randn(2, 3, n_queries, 64), torch.randn(2, 3, n_keys, 64)
    y = unset(2, 3, n_queries, n_keys)
    kernels.run("scores", (blocks(n_keys, 64), blocks(n_queries, 64), 6), 256, [y], [q, keys], n_queries, n_keys, 64)
    assert_close(y, torch.einsum("ahqd,ahkd->ahqk", q.double(), keys.double()))
