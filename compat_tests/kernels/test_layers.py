"""A step's layers as one operation compute what upstream's blocks do, for weights of every type."""

from __future__ import annotations

import pytest
import torch
from max.driver import Buffer
from max.dtype import DType
from max.engine import Model
from max.graph import DeviceRef, Graph, Module, TensorType
from torch import nn
from torch.utils.dlpack import from_dlpack
from whisper.model import ResidualAttentionBlock

from whisper_max_plugin.execution.session import session
from whisper_max_plugin.execution.weights import addresses, graph_weights, quantized
from whisper_max_plugin.graphs import Types, kernel_library
from whisper_max_plugin.graphs.step_kernels import ADDRESSES, decoder_layers

from ..compare import assert_close

N_LAYER, N_TEXT_CTX, N_AUDIO_CTX = 3, 40, 37
STORED = ["float16", "bfloat16", "float32", "int8"]
SIZES = [(2, 64, stored) for stored in STORED] + [(3, 16, "float16")]  # n_head, head_dim
WINDOWS = [(1, 1), (1, 5), (1, 13), (3, 2), (4, 1)]  # n_audio, n_group
CPU = DeviceRef.CPU()


@pytest.fixture(scope="module")
def kernels() -> dict[tuple[int, int, str], Model]:
    module, library = Module(), kernel_library()
    for n_head, head_dim, stored in SIZES:
        types = [
            TensorType(DType.float32, ["batch", n_head * head_dim], CPU),
            TensorType(DType.int64, [N_LAYER, ADDRESSES], CPU),
            TensorType(DType.int64, ["n_audio", 1 + 4 * N_LAYER], CPU),
            TensorType(DType.int32, ["batch", N_TEXT_CTX], CPU),
            TensorType(DType.int64, ["batch"], CPU),
        ]
        name = f"{head_dim}_{stored}"
        with Graph(name, input_types=types, module=module, kernel_library=library) as graph:
            tensors = (value.tensor for value in graph.inputs)
            graph.output(decoder_layers(*tensors, Types(DType[stored]), N_AUDIO_CTX, head_dim))
    models = session().init_all(session().compile(module, custom_extensions=library.library_paths()))
    return {(n_head, head_dim, stored): models[f"{head_dim}_{stored}"] for n_head, head_dim, stored in SIZES}


def upstreams(n_head: int, head_dim: int, stored: str) -> nn.Module:
    """Return random layers of upstream's, whose matrices are exact in the type `stored`."""
    n_state = n_head * head_dim
    blocks = [ResidualAttentionBlock(n_state, n_head, cross_attention=True) for _ in range(N_LAYER)]
    layers = nn.ModuleDict({"blocks": nn.ModuleList(blocks)}).eval()
    for parameter in layers.parameters():
        if parameter.ndim == 1:
            parameter += 0.3 * torch.randn_like(parameter)  # norms that do something
        elif stored == "int8":
            rounded, scales = quantized(parameter)
            parameter.copy_(rounded * scales[:, None])
        else:
            parameter.copy_(parameter.to(getattr(torch, stored)))
    return layers


@pytest.mark.parametrize("n_filled", [1, 2, 17, 38])
@pytest.mark.parametrize(("n_audio", "n_group"), WINDOWS)
@pytest.mark.parametrize(("n_head", "head_dim", "stored"), SIZES)
@torch.no_grad()
def test_layers(
    kernels: dict[tuple[int, int, str], Model],
    n_head: int,
    head_dim: int,
    stored: str,
    n_audio: int,
    n_group: int,
    n_filled: int,
) -> None:
    """Windows are at positions of their own, and have caches of their own."""
    torch.manual_seed(0)
    n_state = n_head * head_dim
    layers = upstreams(n_head, head_dim, stored)
    state = {f"decoder.{name}": x for name, x in layers.state_dict().items()}
    weights = {
        name: Buffer.from_dlpack(x) for name, x in graph_weights(state, Types(DType[stored]), kernels=True).items()
    }

    lengths = [min(n_filled + audio, N_TEXT_CTX) for audio in range(n_audio)]
    mask = torch.full((N_TEXT_CTX, N_TEXT_CTX), -torch.inf).triu_(1)
    latest, expected, memory, kept = [], [], [], []
    for length in lengths:
        xa = torch.randn(1, N_AUDIO_CTX, n_state)
        x = torch.randn(n_group, length, n_state)
        latest.append(x[:, -1])
        row = [n_group]
        for block in layers["blocks"]:
            h = block.attn_ln(x)
            cache = [torch.zeros(N_TEXT_CTX, n_group, n_state) for _ in range(2)]
            for tensor, projection in zip(cache, (block.attn.key, block.attn.value), strict=True):
                tensor[: length - 1] = projection(h).transpose(0, 1)[:-1]
            heads = [
                p(xa).view(N_AUDIO_CTX, n_head, head_dim).transpose(0, 1)
                for p in (block.cross_attn.key, block.cross_attn.value)
            ]
            own = [*cache, *(a.contiguous() for a in heads)]
            row += [tensor.data_ptr() for tensor in own]
            kept.append(own)
            x = block(x, xa, mask=mask)
        memory.append(row)
        expected.append(x[:, -1])

    holders = torch.arange(n_group, dtype=torch.int32).repeat(n_audio)[:, None].expand(-1, N_TEXT_CTX).contiguous()
    positions = torch.tensor(lengths).repeat_interleave(n_group) - 1
    inputs = torch.cat(latest), addresses(weights, N_LAYER), torch.tensor(memory), holders, positions
    (actual,) = kernels[n_head, head_dim, stored].execute(*map(Buffer.from_dlpack, inputs))
    assert_close(from_dlpack(actual), torch.cat(expected))
