"""The kernels of encoder and prefill on numbers of bfloat16, which CPUs with AVX512_BF16 multiply in pairs.

What is multiplied is rounded, and nothing else: expected values are computed in float64 of the rounded numbers.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from max.dtype import DType
from max.engine import Model
from max.graph import DeviceRef, Graph, Module, TensorType
from torch import Tensor

from whisper_max_plugin.execution.processor import features
from whisper_max_plugin.execution.session import session
from whisper_max_plugin.graphs import kernel_library, kernels

from ..compare import assert_close
from .test_kernels import run

HEAD_DIMS = [16, 64]
N_HEAD = 3
LENGTHS = [2, 30, 96, 98]  # that are convolved
ROUNDED = 2**-9  # by bfloat16, of a number, at most
WEIGHTS = ["bfloat16", "float32"]
IN_PAIRS = "avx512_bf16" in features()  # whether that is faster or not, see `multiplies_pairs`
CPU = DeviceRef.CPU()


def tensor_type(dtype: str, *shape: str | int) -> TensorType:
    return TensorType(DType[dtype], list(shape), CPU)


@pytest.fixture(scope="module")
def graphs() -> dict[str, Model]:
    """Graphs of one operation each, by its name and what it is compiled for."""
    module, library = Module(), kernel_library()
    x, bias = tensor_type("bfloat16", "batch", "length", "k"), tensor_type("float32", "n")
    for weights in WEIGHTS:
        types = [x, tensor_type(weights, "n", "k"), bias]
        with Graph(f"linear {weights}", input_types=types, module=module, kernel_library=library) as graph:
            graph.output(kernels.matmul_bias(*(value.tensor for value in graph.inputs), DType.float32))
    for stride in (1, 2):
        for length in LENGTHS:
            types = [
                tensor_type("bfloat16", "batch", length, "n_in"),
                tensor_type("float32", "n_out", 3, "n_in"),
                tensor_type("float32", "n_out"),
                tensor_type("float32", length // stride, "n_out"),
            ]
            name = f"conv {stride} {length}"
            with Graph(name, input_types=types, module=module, kernel_library=library) as graph:
                x_, weight, bias_, positions = (value.tensor for value in graph.inputs)
                graph.output(kernels.conv_gelu(x_, weight, bias_, stride, positions))
    for head_dim in HEAD_DIMS:
        q = tensor_type("bfloat16", "n_audio", "n_queries", "n_state")
        heads = tensor_type("bfloat16", "n_audio", N_HEAD, "n_keys", head_dim)
        name = f"attention {head_dim}"
        with Graph(name, input_types=[q, heads, heads], module=module, kernel_library=library) as graph:
            graph.output(kernels.attention(*(value.tensor for value in graph.inputs)))
    return session().init_all(session().compile(module, custom_extensions=library.library_paths()))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def multiplied(weight: Tensor) -> Tensor:
    """Return the weights that are multiplied: without pairs they are not rounded."""
    return weight.bfloat16().double() if IN_PAIRS else weight.double()


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("n", "k"), [(1, 2), (3, 16), (8, 30), (65, 384), (100, 386), (50, 1540), (130, 4100)])
@pytest.mark.parametrize(("batch", "length"), [(1, 16), (1, 47), (1, 48), (1, 49), (3, 227)])
def test_linear_layers(graphs: dict[str, Model], weights: str, n: int, k: int, batch: int, length: int) -> None:
    x, bias = torch.randn(batch, length, k).bfloat16(), torch.randn(n)
    weight = torch.randn(n, k).to(getattr(torch, weights))
    expected = (x.double() @ multiplied(weight).T).float() + bias
    assert_close(run(graphs[f"linear {weights}"], x, weight, bias), expected)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("n_in", "n_out"), [(2, 1), (18, 5), (80, 33), (128, 384), (520, 20)])
@pytest.mark.parametrize("batch", [1, 2])
def test_convolutions(graphs: dict[str, Model], length: int, stride: int, n_in: int, n_out: int, batch: int) -> None:
    x, weight = torch.randn(batch, length, n_in).bfloat16(), torch.randn(n_out, n_in, 3)
    bias, positions = torch.randn(n_out), torch.randn(length // stride, n_out)
    expected = F.gelu(F.conv1d(x.double().mT, multiplied(weight), bias.double(), stride, padding=1)).mT.float()
    actual = run(graphs[f"conv {stride} {length}"], x, weight.transpose(1, 2), bias, positions)
    assert_close(actual, expected + positions)


@pytest.mark.skipif(not IN_PAIRS, reason="this CPU multiplies numbers one by one")
def test_an_odd_number_of_columns_is_refused(graphs: dict[str, Model]) -> None:
    with pytest.raises(ValueError, match="products of bfloat16 take pairs, and there are 383 columns"):
        run(graphs["linear float32"], torch.randn(1, 48, 383).bfloat16(), torch.randn(8, 383), torch.randn(8))


def assert_attends(actual: Tensor, q: Tensor, keys: Tensor, values: Tensor) -> None:
    """The weights of a softmax are rounded, and so is what they make of the values."""
    assert actual.dtype == torch.bfloat16
    by_head = q.view(*q.shape[:2], N_HEAD, -1).transpose(1, 2)
    expected = F.scaled_dot_product_attention(by_head.double(), keys.double(), values.double())
    error = (actual.double() - expected.transpose(1, 2).reshape(q.shape)).abs().max()
    assert error <= 2 * ROUNDED * values.double().abs().max()


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("n_keys", [1, 17, 96, 97, 129, 1500])
@pytest.mark.parametrize("n_queries", [6, 47, 48, 49, 300])
@pytest.mark.parametrize("n_audio", [1, 2])
def test_attention(graphs: dict[str, Model], head_dim: int, n_keys: int, n_queries: int, n_audio: int) -> None:
    q = (3 * torch.randn(n_audio, n_queries, N_HEAD * head_dim)).bfloat16()
    keys, values = torch.randn(2, n_audio, N_HEAD, n_keys, head_dim).bfloat16()
    assert_attends(run(graphs[f"attention {head_dim}"], q, keys, values), q, keys, values)


def test_rising_scores(graphs: dict[str, Model]) -> None:
    """Later blocks of keys have larger scores, so that what was summed up before has to shrink, to nothing at last."""
    n_keys = 1000
    q = torch.ones(1, 60, N_HEAD * 64).bfloat16()
    keys = torch.linspace(0, 40, n_keys).bfloat16()[:, None].expand(1, N_HEAD, n_keys, 64).contiguous()
    values = torch.randn(1, N_HEAD, n_keys, 64).bfloat16()
    assert_attends(run(graphs["attention 64"], q, keys, values), q, keys, values)
