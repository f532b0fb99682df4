"""The step reads weights as float16 where nothing is lost by it, and as float32 where something would be."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
import torch
from max.dtype import DType
from torch import Tensor

from whisper_max_plugin.execution.devices import HOST
from whisper_max_plugin.execution.weights import CONVOLUTIONS, graph_weights, stored_dtype, types_for
from whisper_max_plugin.graphs import Types

from ..compare import assert_close, assert_same_decoding
from ..conftest import Pair, load_pair
from ..data import NANO
from ..devices.fixtures import HALF
from ..seam.fixtures import TOKENS, features, mel, mels, no_grad
from ..seam.kv_caches import with_cache

__all__ = ["features", "mel", "mels", "no_grad"]  # fixtures, found by name

OPTIONS = {"fp16": False, "language": "en", "sample_len": 12}


@pytest.fixture
def tuned() -> Pair:
    """nano as after some training: its weights are no longer exact in float16."""
    pair = load_pair(NANO)
    for model in (pair.torch, pair.max):
        for parameter in model.parameters():
            parameter.data.mul_(1.0001)
    return pair


def test_a_checkpoint_of_openai_is_read_as_it_was_stored(nano: Pair) -> None:
    assert next(nano.torch.parameters()).dtype == torch.float32
    assert stored_dtype(nano.torch.state_dict()) == torch.float16


@pytest.mark.parametrize(
    "value",
    [1 + 2**-12, 65520.0, 2.0**-30, float("inf"), float("nan")],
    ids=["a bit too many", "too large", "too small", "infinite", "not a number"],
)
def test_one_value_decides(nano: Pair, value: float) -> None:
    state = {name: tensor.clone() for name, tensor in nano.torch.state_dict().items()}
    state["decoder.blocks.1.mlp.2.weight"][3, 7] = value
    lost = not torch.isinf(torch.tensor(value))  # infinity is exact in float16
    assert stored_dtype(state) == (torch.float32 if lost else torch.float16)


@pytest.mark.parametrize("name", ["encoder.conv1.weight", "decoder.ln.weight", "decoder.blocks.0.attn.out.bias"])
def test_what_the_step_does_not_read_as_float16_has_no_say(nano: Pair, name: str) -> None:
    state = {name: tensor.clone() for name, tensor in nano.torch.state_dict().items()}
    state[name].mul_(1.0001)
    assert stored_dtype(state) == torch.float16


@pytest.mark.parametrize("options", [{}, {"beam_size": 5}, {"temperature": 0.8, "best_of": 3}], ids=str)
def test_a_tuned_model_decodes_as_upstream_does(tuned: Pair, mel: Tensor, options: dict[str, object]) -> None:
    assert stored_dtype(tuned.max.state_dict()) == torch.float32
    torch.manual_seed(0)
    expected = tuned.torch.decode(mel[0], **OPTIONS, **options)
    torch.manual_seed(0)
    assert_same_decoding(tuned.max.decode(mel[0], **OPTIONS, **options), expected)


def test_a_model_that_is_tuned_between_two_passes(features: Tensor) -> None:
    pair = load_pair(NANO)
    for scale in (1.0, 1.0001):
        for model in (pair.torch, pair.max):
            model.decoder.blocks[0].mlp[0].weight.mul_(scale)
        chunks = TOKENS.split([5, 1, 1, 1], dim=1)
        *ours, _ = with_cache(pair.max, chunks, features)
        *theirs, _ = with_cache(pair.torch, chunks, features)
        for actual, expected in zip(ours, theirs, strict=True):
            assert_close(actual, expected)


def test_only_what_the_kernels_read_in_another_layout_is_copied(nano: Pair) -> None:
    state = nano.torch.state_dict()
    weights = graph_weights(state, types_for(state, "float32", HOST), kernels=True)
    shared = [name for name in state if name in weights and name not in CONVOLUTIONS]
    assert all(weights[name].data_ptr() == state[name].data_ptr() for name in shared)
    assert all(torch.equal(weights[name].mT, state[name]) for name in CONVOLUTIONS)
    copies = {name: tensor for name, tensor in weights.items() if name not in state}
    assert all(tensor.dtype == torch.float16 for name, tensor in copies.items() if name.endswith("weight"))
    assert "stored.token_embedding.weight" in copies
    assert "decoder.token_embedding.weight" not in weights  # a GPU gets what is read, and no more


@pytest.mark.parametrize("stored", ["float16", "int8"])
def test_what_a_step_reads_lies_side_by_side(nano: Pair, stored: str) -> None:
    state = nano.torch.state_dict()
    weights = graph_weights(state, Types(DType[stored]), kernels=True)
    copies = [tensor for tensor in weights.values() if tensor.dtype == getattr(torch, stored)]
    places = sorted((tensor.data_ptr(), tensor.nbytes) for tensor in copies)
    assert len(places) == 1 + 6 * nano.torch.dims.n_text_layer
    assert all(begin % 64 == 0 for begin, _ in places)
    assert all(0 <= after - begin - size < 64 for (begin, size), (after, _) in pairwise(places))


def test_weights_that_float16_cannot_hold_are_the_models_own(nano: Pair) -> None:
    state = {name: tensor * 1.0001 for name, tensor in nano.torch.state_dict().items()}
    weights = graph_weights(state, types_for(state, "float32", HOST), kernels=True)
    own = {tensor.data_ptr() for tensor in state.values()}
    copies = [name for name, tensor in weights.items() if tensor.data_ptr() not in own and name not in CONVOLUTIONS]
    assert len(copies) == 2 * nano.torch.dims.n_text_layer
    assert all(re.fullmatch(r"stored\.blocks\.\d\.attn\.qkv\.(weight|bias)", name) for name in copies)


def test_graphs_without_kernels_share_everything_else(nano: Pair) -> None:
    state = nano.torch.state_dict()
    weights = graph_weights(state, types_for(state, "float32", HOST), kernels=False)
    assert weights.keys() == state.keys()
    others = state.keys() - CONVOLUTIONS
    assert {weights[name].data_ptr() for name in others} == {state[name].data_ptr() for name in others}


def test_tensor_cores_get_every_matrix_in_half_width_and_sums_of_float32(nano: Pair) -> None:
    state = nano.torch.state_dict()
    types = types_for(state, "float16", HALF)
    assert types == Types(*[DType.float16] * 4)
    weights = graph_weights(state, types, kernels=True)
    wide = {name for name, tensor in weights.items() if tensor.dtype == torch.float32}
    assert wide == {name for name in weights if name.endswith("bias") or "ln" in name or "positional" in name}
    assert torch.equal(weights["encoder.conv2.weight"].mT.float(), state["encoder.conv2.weight"])
