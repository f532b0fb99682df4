"""The kernels of the step compute what torch does, over sizes that fit no vector and rows that fit no block."""

from __future__ import annotations

import pytest
import torch
from max.driver import Buffer
from max.dtype import DType
from max.engine import Model
from max.graph import BufferType, DeviceRef, Graph, Module, TensorType, ops
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from whisper_max_plugin.graphs import KERNELS
from whisper_max_plugin.graphs.kernels import project
from whisper_max_plugin.session import session

from .compare import assert_close

STORED = ["float16", "bfloat16", "float32"]
HEAD_DIM = 64
CPU = DeviceRef.CPU()
X, Y = TensorType(DType.float32, ["m", "k"], CPU), TensorType(DType.float32, ["m", "n"], CPU)
BIAS = TensorType(DType.float32, ["n"], CPU)
INPUTS = {
    "whisper_linear": [X, BIAS],
    "whisper_linear_gelu": [X, BIAS],
    "whisper_linear_add": [X, BIAS, Y],
}


@pytest.fixture(scope="module")
def kernels() -> dict[str, Model]:
    """Graphs of one operation each, by its name, and the linear ones by the type of their weights as well."""
    module = Module()
    for stored in STORED:
        weight = TensorType(DType[stored], ["n", "k"], CPU)
        for name, types in INPUTS.items():
            types = [types[0], weight, *types[1:]]
            with Graph(f"{name}_{stored}", input_types=types, module=module, custom_extensions=[KERNELS]) as graph:
                graph.output(ops.custom(name, CPU, [value.tensor for value in graph.inputs], [Y])[0])
        logits = BufferType(DType.float32, ["m", "n"], CPU)
        name = "whisper_project"
        with Graph(
            f"{name}_{stored}", input_types=[logits, X, weight], module=module, custom_extensions=[KERNELS]
        ) as g:
            project(g.inputs[0].buffer, *(value.tensor for value in g.inputs[1:]))
            g.output()
    _add_attentions(module)
    return session().init_all(session().compile(module, custom_extensions=[KERNELS]))


def _add_attentions(module: Module) -> None:
    parameters = {"head_dim": HEAD_DIM}
    out = TensorType(DType.float32, ["batch", "n_state"], CPU)
    cache = BufferType(DType.float32, ["n_text_ctx", "n_audio", "n_group", "n_state"], CPU)
    qkv = TensorType(DType.float32, ["batch", "n_qkv"], CPU)
    holders = TensorType(DType.int32, ["batch", "n_text_ctx"], CPU)
    position = TensorType(DType.int64, [1], CPU)
    name = "whisper_self_attention"
    types = [out, qkv, cache, cache, holders, position]  # the first for its shape
    with Graph(name, input_types=types, module=module, custom_extensions=[KERNELS]) as graph:
        _, qkv, keys, values, holders, position = graph.inputs
        operands = [qkv.tensor, keys.buffer, values.buffer, holders.tensor, position.tensor]
        graph.output(ops.inplace_custom(name, CPU, operands, [out], parameters=parameters)[0])
    cross = TensorType(DType.float32, ["n_audio", "n_head", "n_audio_ctx", HEAD_DIM], CPU)
    name = "whisper_cross_attention"
    with Graph(name, input_types=[out, cross, cross], module=module, custom_extensions=[KERNELS]) as graph:
        values = [value.tensor for value in graph.inputs]
        graph.output(ops.custom(name, CPU, values, [out], parameters=parameters)[0])


def run(model: Model, *inputs: Tensor) -> Tensor:
    (output,) = model.execute(*(Buffer.from_dlpack(x.contiguous()) for x in inputs))
    return from_dlpack(output)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 15), (7, 16), (8, 17), (65, 384), (1031, 130), (1536, 384)])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 6, 13])
def test_linear_layers(kernels: dict[str, Model], stored: str, m: int, n: int, k: int) -> None:
    x, weight = torch.randn(m, k), torch.randn(n, k).to(getattr(torch, stored))
    bias, residual = torch.randn(n), torch.randn(m, n)
    product = (x.double() @ weight.double().T).float()
    expected = {
        "whisper_linear": product + bias,
        "whisper_linear_gelu": torch.nn.functional.gelu(product + bias),
        "whisper_linear_add": product + bias + residual,
    }
    further = {"whisper_linear_add": [bias, residual]}
    for name, result in expected.items():
        assert_close(run(kernels[f"{name}_{stored}"], x, weight, *further.get(name, [bias])), result)
    logits = torch.full((m, n), torch.nan)
    kernels[f"whisper_project_{stored}"].execute(*map(Buffer.from_dlpack, (logits, x, weight)))
    assert_close(logits, product)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double()).float()


@pytest.mark.parametrize("n_filled", [1, 2, 15, 16, 17, 224, 448])
@pytest.mark.parametrize(("n_audio", "n_group"), [(1, 1), (1, 5), (3, 2)])
@pytest.mark.parametrize("reordered", [False, True])
def test_self_attention(kernels: dict[str, Model], n_filled: int, n_audio: int, n_group: int, reordered: bool) -> None:
    n_text_ctx, n_head, batch = 448, 2, n_audio * n_group
    n_state = n_head * HEAD_DIM
    qkv = 3 * torch.randn(batch, 3 * n_state)
    keys, values = torch.randn(2, n_text_ctx, n_audio, n_group, n_state)
    before = keys.clone(), values.clone()
    own = torch.arange(batch)[:, None].expand(batch, n_text_ctx)
    holders = torch.randint(batch, (batch, n_text_ctx)) if reordered else own.clone()
    holders[:, n_filled - 1 :] = own[:, n_filled - 1 :]
    position = torch.tensor([n_filled - 1])
    out = torch.empty(batch, n_state)
    actual = run(kernels["whisper_self_attention"], out, qkv, keys, values, holders.int(), position)

    q, k, v = qkv.split(n_state, dim=1)
    others = torch.arange(n_text_ctx) != n_filled - 1
    for cache, earlier, latest in ((keys, before[0], k), (values, before[1], v)):
        assert torch.equal(cache[n_filled - 1].reshape(batch, n_state), latest), "the token is not in the cache"
        assert torch.equal(cache[others], earlier[others]), "other positions were written to"
    rows = holders.T[:n_filled]  # (n_filled, batch)
    mine = [x.view(n_text_ctx, batch, n_state)[torch.arange(n_filled)[:, None], rows] for x in (keys, values)]
    by_head = [x.view(n_filled, batch, n_head, HEAD_DIM).permute(1, 2, 0, 3) for x in mine]
    expected = attend(q.view(batch, n_head, 1, HEAD_DIM), *by_head)
    assert_close(actual, expected.reshape(batch, n_state))


@pytest.mark.parametrize("n_keys", [1, 17, 1500])
@pytest.mark.parametrize(("n_audio", "n_group"), [(1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (1, 7), (3, 1), (2, 11)])
def test_cross_attention(kernels: dict[str, Model], n_keys: int, n_audio: int, n_group: int) -> None:
    n_head = 2
    q = 3 * torch.randn(n_audio * n_group, n_head * HEAD_DIM)
    keys, values = torch.randn(2, n_audio, n_head, n_keys, HEAD_DIM)
    actual = run(kernels["whisper_cross_attention"], q, keys, values)
    heads = q.view(n_audio, n_group, n_head, HEAD_DIM).transpose(1, 2)
    assert_close(actual, attend(heads, keys, values).transpose(1, 2).reshape(q.shape))


def test_large_scores_do_not_overflow(kernels: dict[str, Model]) -> None:
    q = 1e4 * torch.randn(1, HEAD_DIM)
    keys, values = torch.randn(2, 1, 1, 1500, HEAD_DIM)
    assert_close(run(kernels["whisper_cross_attention"], q, keys, values), attend(q[None, None], keys, values)[0, 0])
