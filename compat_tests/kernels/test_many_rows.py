"""The kernels of encoder and prefill compute what torch does, over sizes that fit neither vectors nor blocks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from max.dtype import DType
from max.engine import Model
from max.graph import BufferType, DeviceRef, Graph, KernelLibrary, Module, TensorType
from torch import Tensor

from whisper_max_plugin.execution.session import session
from whisper_max_plugin.graphs import kernel_library, kernels

from ..compare import assert_close
from .test_kernels import run

MATMULS = ["matmul", "matmul_bias", "matmul_bias_gelu", "matmul_bias_add"]
# bfloat16 is widened by the same code in all of them, and each takes seconds to compile
STORED = {"float16": MATMULS, "bfloat16": ["matmul_bias"], "float32": MATMULS}
HEAD_DIMS = [16, 64]
N_HEAD = 3
LENGTHS = [2, 30, 96, 98, 194]  # that are convolved
CPU = DeviceRef.CPU()


def float32(*shape: str | int) -> TensorType:
    return TensorType(DType.float32, list(shape), CPU)


@pytest.fixture(scope="module")
def graphs() -> dict[str, Model]:
    """Graphs of one operation each, by its name and what it is compiled for."""
    module, library = Module(), kernel_library()
    for stored in STORED:
        _add_matmuls(module, library, stored)
    for stride in (1, 2):
        _add_convolutions(module, library, stride)
    for head_dim in HEAD_DIMS:
        _add_attentions(module, library, head_dim)
    return session().init_all(session().compile(module, custom_extensions=library.library_paths()))


def _add_matmuls(module: Module, library: KernelLibrary, stored: str) -> None:
    x, y, bias = float32("batch", "length", "k"), float32("batch", "length", "n"), float32("n")
    weight = TensorType(DType[stored], ["n", "k"], CPU)
    further = {"matmul": [], "matmul_bias": [bias], "matmul_bias_gelu": [bias], "matmul_bias_add": [bias, y]}
    for name in STORED[stored]:
        types = [x, weight, *further[name]]
        with Graph(f"{name} {stored}", input_types=types, module=module, kernel_library=library) as graph:
            graph.output(getattr(kernels, name)(*(value.tensor for value in graph.inputs)))


def _add_convolutions(module: Module, library: KernelLibrary, stride: int) -> None:
    # lengths are known when a graph is built, for they have to be multiples of the stride
    for length in LENGTHS:
        types = [float32("batch", length, "n_in"), float32("n_out", 3, "n_in"), float32("n_out")]
        for name, further in (("conv", []), ("conv positions", [float32(length // stride, "n_out")])):
            with Graph(
                f"{name} {stride} {length}", input_types=types + further, module=module, kernel_library=library
            ) as graph:
                x, weight, bias, *positions = (value.tensor for value in graph.inputs)
                graph.output(kernels.conv_gelu(x, weight, bias, stride, positions[0] if positions else None))


def _add_attentions(module: Module, library: KernelLibrary, head_dim: int) -> None:
    x, bias = float32("batch", "length", "k"), float32(N_HEAD * head_dim)
    weight = TensorType(DType.float32, [N_HEAD * head_dim, "k"], CPU)
    for name, types in (("heads", [x, weight]), ("heads bias", [x, weight, bias])):
        with Graph(f"{name} {head_dim}", input_types=types, module=module, kernel_library=library) as graph:
            x_, weight_, *bias_ = (value.tensor for value in graph.inputs)
            graph.output(kernels.heads(x_, weight_, bias_[0] if bias_ else None, N_HEAD))
    q, heads = float32("n_audio", "n_queries", "n_state"), float32("n_audio", N_HEAD, "n_keys", head_dim)
    with Graph(f"attention {head_dim}", input_types=[q, heads, heads], module=module, kernel_library=library) as graph:
        graph.output(kernels.attention(*(value.tensor for value in graph.inputs)))
    queries = float32("n_audio", N_HEAD, "n_queries", head_dim)
    with Graph(f"scores {head_dim}", input_types=[queries, heads], module=module, kernel_library=library) as graph:
        graph.output(kernels.scores(*(value.tensor for value in graph.inputs)))
    qkv = float32("batch", "n_tokens", 3 * N_HEAD * head_dim)
    cache = BufferType(DType.float32, ["n_filled", "n_audio", "n_group", "n_copies", N_HEAD * head_dim], CPU)
    with Graph(f"causal {head_dim}", input_types=[qkv, cache, cache], module=module, kernel_library=library) as graph:
        qkv_, keys, values = graph.inputs
        graph.output(kernels.causal_attention(qkv_.tensor, keys.buffer, values.buffer, head_dim))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 15), (8, 16), (65, 384), (100, 385), (130, 1031)])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 5), (2, 3), (1, 47), (1, 48), (1, 49), (3, 227)])
def test_linear_layers(graphs: dict[str, Model], stored: str, n: int, k: int, batch: int, length: int) -> None:
    x, weight = torch.randn(batch, length, k), torch.randn(n, k).to(getattr(torch, stored))
    bias, residual = torch.randn(n), torch.randn(batch, length, n)
    product = (x.double() @ weight.double().T).float()
    expected = {
        "matmul": ([], product),
        "matmul_bias": ([bias], product + bias),
        "matmul_bias_gelu": ([bias], F.gelu(product + bias)),
        "matmul_bias_add": ([bias, residual], product + bias + residual),
    }
    for name in STORED[stored]:
        further, result = expected[name]
        assert_close(run(graphs[f"{name} {stored}"], x, weight, *further), result)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("n_in", "n_out"), [(1, 1), (17, 5), (80, 33), (128, 384), (400, 20)])
@pytest.mark.parametrize("batch", [1, 2])
def test_convolutions(graphs: dict[str, Model], length: int, stride: int, n_in: int, n_out: int, batch: int) -> None:
    x = torch.randn(batch, length, n_in)
    weight, bias, positions = torch.randn(n_out, n_in, 3), torch.randn(n_out), torch.randn(length // stride, n_out)
    expected = F.gelu(F.conv1d(x.double().mT, weight.double(), bias.double(), stride, padding=1)).mT.float()
    operands = x, weight.transpose(1, 2), bias
    assert_close(run(graphs[f"conv {stride} {length}"], *operands), expected)
    assert_close(run(graphs[f"conv positions {stride} {length}"], *operands, positions), expected + positions)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize(("batch", "length", "k"), [(1, 1, 7), (2, 50, 384), (3, 17, 400)])
def test_heads(graphs: dict[str, Model], head_dim: int, batch: int, length: int, k: int) -> None:
    n = N_HEAD * head_dim
    x, weight, bias = torch.randn(batch, length, k), torch.randn(n, k), torch.randn(n)
    for name, further, added in (("heads", [], 0.0), ("heads bias", [bias], bias)):
        product = (x.double() @ weight.double().T).float() + added
        expected = product.view(batch, length, N_HEAD, head_dim).transpose(1, 2)
        assert_close(run(graphs[f"{name} {head_dim}"], x, weight, *further), expected)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=mask).float()


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("n_keys", [1, 17, 128, 129, 1500])
@pytest.mark.parametrize("n_queries", [1, 4, 5, 6, 47, 48, 49, 300])
@pytest.mark.parametrize("n_audio", [1, 2])
def test_attention(graphs: dict[str, Model], head_dim: int, n_keys: int, n_queries: int, n_audio: int) -> None:
    q = 3 * torch.randn(n_audio, n_queries, N_HEAD * head_dim)
    keys, values = torch.randn(2, n_audio, N_HEAD, n_keys, head_dim)
    actual = run(graphs[f"attention {head_dim}"], q, keys, values)
    by_head = q.view(n_audio, n_queries, N_HEAD, head_dim).transpose(1, 2)
    assert_close(actual, attend(by_head, keys, values).transpose(1, 2).reshape(q.shape))


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("n_keys", [1, 17, 1500])
@pytest.mark.parametrize("n_queries", [1, 48, 227])
@pytest.mark.parametrize("n_audio", [1, 2])
def test_scores(graphs: dict[str, Model], head_dim: int, n_keys: int, n_queries: int, n_audio: int) -> None:
    q, keys = torch.randn(n_audio, N_HEAD, n_queries, head_dim), torch.randn(n_audio, N_HEAD, n_keys, head_dim)
    assert_close(run(graphs[f"scores {head_dim}"], q, keys), (q.double() @ keys.double().mT).float())


def test_rising_scores(graphs: dict[str, Model]) -> None:
    """Later blocks of keys have larger scores, so that what was summed up before has to shrink, to nothing at last."""
    n_keys = 1000
    q = torch.ones(1, 60, N_HEAD * 64)
    keys = torch.linspace(0, 40, n_keys)[:, None].expand(1, N_HEAD, n_keys, 64).contiguous()
    values = torch.randn(1, N_HEAD, n_keys, 64)
    by_head = q.view(1, 60, N_HEAD, 64).transpose(1, 2)
    expected = attend(by_head, keys, values).transpose(1, 2).reshape(q.shape)
    assert_close(run(graphs["attention 64"], q, keys, values), expected)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("offset", [0, 1, 100, 200])
@pytest.mark.parametrize("n_tokens", [1, 2, 16, 47, 48, 49, 224])
@pytest.mark.parametrize(("n_audio", "n_group", "n_copies"), [(1, 1, 1), (2, 2, 1), (1, 1, 5), (2, 2, 3)])
def test_causal_attention(
    graphs: dict[str, Model], head_dim: int, offset: int, n_tokens: int, n_audio: int, n_group: int, n_copies: int
) -> None:
    batch, n_state, n_filled = n_audio * n_group, N_HEAD * head_dim, offset + n_tokens
    qkv = 2 * torch.randn(batch, n_tokens, 3 * n_state)
    keys, values = torch.randn(2, n_filled, n_audio, n_group, n_copies, n_state)
    before = keys.clone(), values.clone()
    actual = run(graphs[f"causal {head_dim}"], qkv, keys, values)

    q, k, v = qkv.split(n_state, dim=2)
    for cache, earlier, latest in ((keys, before[0], k), (values, before[1], v)):
        assert torch.equal(cache[offset:, ..., 0, :].reshape(n_tokens, batch, n_state), latest.transpose(0, 1))
        assert torch.equal(cache[:offset], earlier[:offset]), "earlier tokens were written to"
        assert torch.equal(cache[..., 1:, :], earlier[..., 1:, :]), "rows of later sequences were written to"
    by_head = [x[..., 0, :].reshape(n_filled, batch, N_HEAD, head_dim).permute(1, 2, 0, 3) for x in (keys, values)]
    mask = torch.ones(n_tokens, n_filled, dtype=torch.bool).tril(offset)
    expected = attend(q.view(batch, n_tokens, N_HEAD, head_dim).transpose(1, 2), *by_head, mask)
    assert_close(actual, expected.transpose(1, 2).reshape(batch, n_tokens, n_state))
