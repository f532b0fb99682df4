"""The kernels of the step compute what torch does, over sizes that fit no vector and rows that fit no block."""

from __future__ import annotations

import pytest
import torch
from max.driver import Buffer
from max.dtype import DType
from max.engine import Model
from max.graph import BufferType, DeviceRef, Graph, KernelLibrary, Module, TensorType
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from whisper_max_plugin.execution.session import session
from whisper_max_plugin.graphs import kernel_library
from whisper_max_plugin.graphs.step_kernels import cross_attention, project, self_attention

from ..compare import assert_close

STORED = ["float16", "bfloat16", "float32"]
HEAD_DIM = 64
N_HEAD = 2
LAYER = 1
UNUSED = [0] * 4  # the entries of another layer
N_KEYS = [1, 17, 1500]
SIZES = [(1, 1), (3, 15), (7, 16), (8, 17), (65, 384), (1031, 130), (1536, 384)]
CPU = DeviceRef.CPU()
LOGITS = BufferType(DType.float32, ["m", "n"], CPU)
X, SCALES = TensorType(DType.float32, ["m", "k"], CPU), TensorType(DType.float32, ["n"], CPU)


@pytest.fixture(scope="module")
def kernels() -> dict[str, Model]:
    """Graphs of one operation each, by its name, and the projections by the type of their weights as well."""
    module, library = Module(), kernel_library()
    for stored in STORED:
        _add_projection(module, library, stored)
    _add_projection(module, library, "int8", SCALES)
    _add_attentions(module, library)
    return session().init_all(session().compile(module, custom_extensions=library.library_paths()))


def _add_projection(module: Module, library: KernelLibrary, stored: str, *scales: TensorType) -> None:
    types = [LOGITS, X, TensorType(DType[stored], ["n", "k"], CPU), *scales]
    with Graph(f"whisper_project_{stored}", input_types=types, module=module, kernel_library=library) as graph:
        project(graph.inputs[0].buffer, *(value.tensor for value in graph.inputs[1:]))
        graph.output()


def _add_attentions(module: Module, library: KernelLibrary) -> None:
    out = TensorType(DType.float32, ["batch", "n_state"], CPU)
    qkv = TensorType(DType.float32, ["batch", 3 * N_HEAD * HEAD_DIM], CPU)
    memory = TensorType(DType.int64, ["n_audio", "n_entries"], CPU)
    holders = TensorType(DType.int32, ["batch", "n_text_ctx"], CPU)
    positions = TensorType(DType.int64, ["batch"], CPU)
    types = [qkv, memory, holders, positions]
    with Graph("whisper_self_attention", input_types=types, module=module, kernel_library=library) as graph:
        graph.output(self_attention(*(value.tensor for value in graph.inputs), DType.float32, LAYER, HEAD_DIM))
    for n_keys in N_KEYS:
        name = f"whisper_cross_attention_{n_keys}"
        with Graph(name, input_types=[out, memory], module=module, kernel_library=library) as graph:
            q, memory_ = (value.tensor for value in graph.inputs)
            graph.output(cross_attention(q, memory_, DType.float32, LAYER, n_keys, HEAD_DIM))


def run(model: Model, *inputs: Tensor) -> Tensor:
    (output,) = model.execute(*(Buffer.from_dlpack(x.contiguous()) for x in inputs))
    return from_dlpack(output)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 6, 13])
def test_the_projection(kernels: dict[str, Model], stored: str, m: int, n: int, k: int) -> None:
    x, weight = torch.randn(m, k), torch.randn(n, k).to(getattr(torch, stored))
    logits = torch.full((m, n), torch.nan)
    kernels[f"whisper_project_{stored}"].execute(*map(Buffer.from_dlpack, (logits, x, weight)))
    assert_close(logits, (x.double() @ weight.double().T).float())


@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 6, 13])
def test_the_projection_by_int8(kernels: dict[str, Model], m: int, n: int, k: int) -> None:
    x, scales = torch.randn(m, k), torch.rand(n) / 127
    weight = torch.randint(-127, 128, (n, k), dtype=torch.int8)
    logits = torch.full((m, n), torch.nan)
    kernels["whisper_project_int8"].execute(*map(Buffer.from_dlpack, (logits, x, weight, scales)))
    assert_close(logits, (x.double() @ (weight.double() * scales.double()[:, None]).T).float())


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double()).float()


@pytest.mark.parametrize("n_filled", [1, 2, 15, 16, 17, 224, 448])
@pytest.mark.parametrize(("n_audio", "n_group"), [(1, 1), (1, 5), (3, 2)])
@pytest.mark.parametrize("reordered", [False, True])
def test_self_attention(kernels: dict[str, Model], n_filled: int, n_audio: int, n_group: int, reordered: bool) -> None:
    """Windows have caches of their own, and each is a token further than the one before, as long as there is room."""
    n_text_ctx, batch, n_state = 448, n_audio * n_group, N_HEAD * HEAD_DIM
    lengths = [min(n_filled + audio, n_text_ctx) for audio in range(n_audio)]
    qkv = 3 * torch.randn(batch, 3 * n_state)
    caches = [torch.randn(2, n_text_ctx, n_group + audio, n_state) for audio in range(n_audio)]  # some rows too many
    before = [cache.clone() for cache in caches]
    own = torch.arange(n_group)[:, None].expand(n_group, n_text_ctx)
    holders = [torch.randint(n_group, own.shape) if reordered else own.clone() for _ in range(n_audio)]
    for audio, length in enumerate(lengths):
        holders[audio][:, length - 1 :] = own[:, length - 1 :]
    positions = torch.tensor(lengths).repeat_interleave(n_group) - 1
    memory = torch.tensor([[x.shape[2], *UNUSED, x[0].data_ptr(), x[1].data_ptr(), 0, 0] for x in caches])
    actual = run(kernels["whisper_self_attention"], qkv, memory, torch.cat(holders).int(), positions)

    for audio, length in enumerate(lengths):
        rows = slice(audio * n_group, (audio + 1) * n_group)
        q, *latest = qkv[rows].split(n_state, dim=1)
        before[audio][:, length - 1, :n_group] = torch.stack(latest)
        assert torch.equal(caches[audio], before[audio]), "the token is not in the cache, or something else is"
        held = holders[audio].T[:length]  # (length, n_group)
        mine = [x[torch.arange(length)[:, None], held] for x in caches[audio]]
        by_head = [x.view(length, n_group, N_HEAD, HEAD_DIM).permute(1, 2, 0, 3) for x in mine]
        expected = attend(q.view(n_group, N_HEAD, 1, HEAD_DIM), *by_head)
        assert_close(actual[rows], expected.reshape(n_group, n_state))


def attend_to_audio(kernels: dict[str, Model], q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    memory = [[0, *UNUSED, 0, 0, *(x.data_ptr() for x in audio)] for audio in zip(keys, values, strict=True)]
    return run(kernels[f"whisper_cross_attention_{keys.shape[2]}"], q, torch.tensor(memory))


@pytest.mark.parametrize("n_keys", N_KEYS)
@pytest.mark.parametrize(("n_audio", "n_group"), [(1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (1, 7), (3, 1), (2, 11)])
def test_cross_attention(kernels: dict[str, Model], n_keys: int, n_audio: int, n_group: int) -> None:
    q = 3 * torch.randn(n_audio * n_group, N_HEAD * HEAD_DIM)
    keys, values = torch.randn(2, n_audio, N_HEAD, n_keys, HEAD_DIM)
    heads = q.view(n_audio, n_group, N_HEAD, HEAD_DIM).transpose(1, 2)
    expected = attend(heads, keys, values).transpose(1, 2).reshape(q.shape)
    assert_close(attend_to_audio(kernels, q, keys, values), expected)


def test_large_scores_do_not_overflow(kernels: dict[str, Model]) -> None:
    q = 1e4 * torch.randn(1, HEAD_DIM)
    keys, values = torch.randn(2, 1, 1, 1500, HEAD_DIM)
    assert_close(attend_to_audio(kernels, q, keys, values), attend(q[None, None], keys, values)[0, 0])
