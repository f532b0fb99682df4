"""`precision="int8"` and its like: what is rounded and by how much, what stays upstream's, and who is told."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import whisper
from hypothesis import given, settings
from hypothesis import strategies as st
from max.dtype import DType
from torch import Tensor
from whisper.model import ModelDimensions, Whisper

import whisper_max_plugin
from whisper_max_plugin import loading
from whisper_max_plugin.bench.accuracy import word_error_rate
from whisper_max_plugin.doctor import parity
from whisper_max_plugin.doctor.comparison import LIMITS
from whisper_max_plugin.errors import PrecisionError
from whisper_max_plugin.execution import artifacts, compiled, weights
from whisper_max_plugin.execution.devices import HOST, Device
from whisper_max_plugin.execution.processor import multiplies_pairs
from whisper_max_plugin.execution.weights import CONVOLUTIONS, chosen_dtype, graph_weights, quantized, types_for
from whisper_max_plugin.graphs import Types
from whisper_max_plugin.precision import PRECISIONS

from ..compare import assert_close, assert_same_result, relative_error
from ..conftest import Pair
from ..data import NANO, SAMPLE, SAMPLE_LONG, reference_text
from ..doctor.test_parity import failed
from ..seam.fixtures import TOKENS, features, mel, mels, no_grad
from ..seam.kv_caches import with_cache

__all__ = ["features", "mel", "mels", "no_grad"]  # fixtures, found by name

WORD_ERROR_RATE = 0.05  # nano's own is 0 on the samples
ROUNDED = 2**-8  # between neighbours of bfloat16


def load(precision: str | None) -> Whisper:
    whisper_max_plugin.install()
    return whisper.load_model(str(NANO), device="cpu", backend="max", precision=precision).eval()


@contextmanager
def keys_and_values_of_half_width(model: Whisper) -> Iterator[None]:
    """Round what the keys and values of torch's decoder are, as a cache of float16 does."""
    layers = [layer for name, layer in model.decoder.named_modules() if name.endswith((".key", ".value"))]
    hooks = [layer.register_forward_hook(lambda _layer, _inputs, output: output.half().float()) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@pytest.fixture(scope="module")
def int8() -> Whisper:
    return load("int8")


@pytest.fixture(scope="module")
def int8_one_by_one() -> Whisper:
    """As on a CPU that multiplies no pairs of bfloat16, so that nothing is rounded but the weights of a step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "multiplies_pairs", lambda: False)
        return load("int8")


@pytest.fixture(scope="module")
def rounded() -> Iterator[Whisper]:
    """Upstream's nano with the weights that int8 makes of its own, and its cache; tokens are embedded by its own."""
    whisper_max_plugin.install()
    model = whisper.load_model(str(NANO), device="cpu", backend="torch").eval()
    embedding = model.decoder.token_embedding.weight.detach().clone()
    with torch.no_grad():
        for name, parameter in model.decoder.named_parameters():
            of_cross_kv = name.endswith(("cross_attn.key.weight", "cross_attn.value.weight"))
            if parameter.ndim == 2 and name != "positional_embedding" and not of_cross_kv:
                integers, scales = quantized(parameter.detach())
                parameter.copy_(integers * scales[:, None])
    hook = model.decoder.token_embedding.register_forward_hook(
        lambda _module, inputs, _output: torch.nn.functional.embedding(inputs[0], embedding)
    )
    with keys_and_values_of_half_width(model):
        yield model
    hook.remove()


# Rounding


@given(st.integers(1, 40), st.integers(1, 70), st.floats(-40, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_the_error_is_at_most_half_a_step_of_the_row(n: int, k: int, exponent: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(n, k, generator=generator) * 10**exponent * torch.rand(n, 1, generator=generator)
    integers, scales = quantized(matrix)
    assert (integers.dtype, scales.dtype, integers.shape, scales.shape) == (
        torch.int8,
        torch.float32,
        matrix.shape,
        (n,),
    )
    assert int(integers.abs().amax()) <= 127
    error = (integers.double() * scales.double()[:, None] - matrix.double()).abs()
    largest = matrix.double().abs().amax(dim=1, keepdim=True)
    smallest = torch.finfo(torch.float32).smallest_normal  # below it numbers have fewer digits
    assert bool((error <= largest / 254 * (1 + 1e-5) + smallest).all())


def test_a_row_of_zeros_stays_one_and_the_largest_of_a_row_is_exact() -> None:
    matrix = torch.tensor([[0.0, 0.0], [3.0, -6.0], [-1e-3, 1e-3]])
    integers, scales = quantized(matrix)
    assert integers.tolist() == [[0, 0], [64, -127], [-127, 127]]
    assert torch.allclose(integers * scales[:, None], matrix, rtol=0, atol=6 / 254)


def test_more_rows_than_are_looked_at_at_a_time() -> None:
    matrix = torch.randn(3000, 5)
    integers, scales = quantized(matrix)
    parts = [quantized(row[None]) for row in matrix]
    assert torch.equal(integers, torch.cat([part for part, _ in parts]))
    assert torch.equal(scales, torch.cat([scale for _, scale in parts]))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_weight_that_is_not_finite_is_refused_by_its_name(nano: Pair, value: float) -> None:
    state = {name: tensor.clone() for name, tensor in nano.torch.state_dict().items()}
    state["decoder.blocks.1.mlp.2.weight"][3, 7] = value
    with pytest.raises(PrecisionError, match=r"decoder.blocks.1.mlp.2.weight holds values that are not finite"):
        graph_weights(state, Types(DType.int8), kernels=True)


def test_a_weight_that_is_too_large_for_float16_is_refused_by_its_name(nano: Pair) -> None:
    state = {name: tensor.clone() for name, tensor in nano.torch.state_dict().items()}
    state["decoder.blocks.1.mlp.2.weight"][3, 7] = 65520.0
    with pytest.raises(PrecisionError, match=r"decoder.blocks.1.mlp.2.weight holds values that are too large"):
        chosen_dtype(state, "float16")
    assert chosen_dtype(state, "bfloat16") == torch.bfloat16


def test_the_models_own_weights_are_shared_and_the_step_gets_a_byte_for_each(nano: Pair) -> None:
    state = nano.torch.state_dict()
    converted = graph_weights(state, Types(DType.int8), kernels=True)
    own = {name: tensor for name, tensor in state.items() if name not in CONVOLUTIONS}
    assert all(converted[name].data_ptr() == tensor.data_ptr() for name, tensor in own.items())
    added = {name: tensor for name, tensor in converted.items() if name not in state}
    matrices = {name for name, tensor in added.items() if name.endswith(".weight")}
    assert all(added[name].dtype == torch.int8 for name in matrices)
    assert {name.replace(".weight", ".scales") for name in matrices} < added.keys()
    half = graph_weights(state, Types(DType.float16), kernels=True)
    assert sum(added[name].nbytes for name in matrices) * 2 == sum(half[name].nbytes for name in matrices)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_a_precision_stores(nano: Pair, precision: str) -> None:
    state = nano.torch.state_dict()  # exact in float16
    assert chosen_dtype(state, precision) == getattr(torch, "float16" if precision == "float32" else precision)


# The model


def test_the_first_pass_has_upstreams_weights_and_steps_have_the_rounded_ones(
    nano: Pair, int8_one_by_one: Whisper, rounded: Whisper, features: Tensor
) -> None:
    first, *steps = TOKENS.split([5, 1, 1, 1], dim=1)
    logits, cache = with_cache(int8_one_by_one, [first], features)
    with keys_and_values_of_half_width(nano.torch):
        expected, upstreams = with_cache(nano.torch, [first], features)
    assert_close(logits, expected)
    names = {module: name for name, module in nano.torch.decoder.named_modules()}
    modules = dict(rounded.decoder.named_modules())
    theirs = {modules[names[module]]: value for module, value in upstreams.items()}
    *expected_steps, _ = with_cache(rounded, steps, features, theirs)
    *own_steps, _ = with_cache(int8_one_by_one, steps, features, cache)
    for actual, wanted in zip(own_steps, expected_steps, strict=True):
        assert_close(actual, wanted)


@pytest.mark.skipif(not multiplies_pairs(), reason="this CPU multiplies numbers one by one")
@pytest.mark.parametrize("precision", ["int8", pytest.param("bfloat16", marks=pytest.mark.large)])
def test_passes_of_a_window_differ_from_torchs_by_rounding_to_bfloat16(
    nano: Pair, int8: Whisper, mel: Tensor, features: Tensor, precision: str
) -> None:
    model = int8 if precision == "int8" else load(precision)
    first = TOKENS[:, :5]
    (logits, _), (expected, _) = (with_cache(one, [first], features) for one in (model, nano.torch))
    for actual, wanted in ((model.encoder(mel), features), (logits, expected)):
        assert ROUNDED / 8 < relative_error(actual, wanted) < 4 * ROUNDED


@pytest.mark.parametrize("in_pairs", [True, False])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_only_what_rounds_more_than_float16_is_multiplied_in_pairs(
    nano: Pair, monkeypatch: pytest.MonkeyPatch, precision: str, in_pairs: bool
) -> None:
    monkeypatch.setattr(weights, "multiplies_pairs", lambda: in_pairs)
    types = types_for(nano.torch.state_dict(), precision, HOST)
    assert types.operands == (DType.bfloat16 if in_pairs and precision in ("bfloat16", "int8") else DType.float32)
    assert types.matrices == DType.float32  # the model's own, so that no others lie in memory


@pytest.mark.parametrize(
    ("vendor", "flags", "expected"),
    [
        ("AuthenticAMD", "fpu avx512f avx512_bf16 sse", True),
        ("AuthenticAMD", "fpu avx512f sse", False),
        ("GenuineIntel", "fpu avx512f avx512_bf16 sse", False),
    ],
)
def test_a_processor_multiplies_pairs_if_it_is_faster_so(
    monkeypatch: pytest.MonkeyPatch, vendor: str, flags: str, expected: bool
) -> None:
    described = f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: avx512_bf16\nflags\t\t: {flags}\n"
    monkeypatch.setattr(Path, "read_text", lambda _: described)
    assert multiplies_pairs() is expected


@pytest.mark.parametrize("options", [{}, {"beam_size": 5}], ids=["greedy", "beams"])
@pytest.mark.parametrize("sample", [SAMPLE, SAMPLE_LONG], ids=lambda path: path.name)
def test_int8_says_what_is_said(int8: Whisper, sample: object, options: dict[str, object]) -> None:
    result = int8.transcribe(str(sample), fp16=False, temperature=0.0, **options)
    assert word_error_rate(result["text"], reference_text(sample), "en") <= WORD_ERROR_RATE


def test_words_get_times(nano: Pair, int8: Whisper) -> None:
    """Scores come from the graph of many tokens, which has the model's own weights."""
    options = {"fp16": False, "temperature": 0.0, "word_timestamps": True}
    result, expected = (model.transcribe(str(SAMPLE), **options) for model in (int8, nano.torch))
    words, wanted = ([w["word"] for s in x["segments"] for w in s["words"]] for x in (result, expected))
    assert words == wanted


def test_a_copy_keeps_the_precision(int8: Whisper, features: Tensor) -> None:
    *expected, _ = with_cache(int8, TOKENS.split([5, 1, 1, 1], dim=1), features)
    for model in (copy.deepcopy(int8), pickle.loads(pickle.dumps(int8))):
        *actual, _ = with_cache(model, TOKENS.split([5, 1, 1, 1], dim=1), features)
        assert all(map(torch.equal, actual, expected))
        assert whisper_max_plugin.status()["precision"] == "int8"


def test_weights_that_change_are_rounded_anew(features: Tensor) -> None:
    model = load("int8")
    chunks = TOKENS.split([5, 1, 1, 1], dim=1)
    *before, _ = with_cache(model, chunks, features)
    model.decoder.blocks[1].mlp[0].weight.mul_(1.5)
    *after, _ = with_cache(model, chunks, features)
    *expected, _ = with_cache(copy.deepcopy(model), chunks, features)
    assert all(map(torch.equal, after, expected))
    assert not any(map(torch.equal, after, before))


def test_the_default_rounds_nothing_and_its_result_is_upstreams(nano: Pair, int8: Whisper) -> None:
    options = {"fp16": False, "temperature": 0.0}
    expected = nano.torch.transcribe(str(SAMPLE), **options)
    for name in (None, "float32", "float16"):  # float16 rounds nano's keys and values alone
        model = load(name)
        assert whisper_max_plugin.status()["precision"] == (name or "float32")
        assert_same_result(model.transcribe(str(SAMPLE), **options), expected)
    assert int8.decoder.runtime.precision == "int8"


def test_float16_rounds_keys_and_values_of_a_checkpoint_that_holds_float16(nano: Pair, features: Tensor) -> None:
    chunks = TOKENS.split([5, 1, 1, 1], dim=1)
    *actual, _ = with_cache(load("float16"), chunks, features)
    with keys_and_values_of_half_width(nano.torch):
        *expected, _ = with_cache(nano.torch, chunks, features)
    for ours, wanted in zip(actual, expected, strict=True):
        assert_close(ours, wanted)


# Where it is refused, and where it is not mixed up


def test_artifacts_of_different_weights_have_different_names(nano: Pair) -> None:
    types = [Types(DType[stored]) for stored in ("float32", "float16", "bfloat16", "int8")]
    types += [Types(*[DType[half]] * 4) for half in ("float16", "bfloat16")]
    types += [Types(DType[stored], DType.bfloat16, DType.float16) for stored in ("bfloat16", "int8")]
    names = {artifacts.path_of(nano.torch.dims, str(one), "cpu").name for one in types}
    assert len(names) == len(types)
    assert any("float32-int8" in name for name in names)


def test_a_gpu_refuses_int8_alone(nano: Pair) -> None:
    gpu = Device("cuda:0", shares_memory=False)
    for name in ("float32", "float16", "bfloat16"):
        compiled.check_precision(name, nano.torch.dims, gpu)
    message = "precision='int8' is for the CPU and this is cuda:0: leave it out, or "
    with pytest.raises(PrecisionError, match=message):
        compiled.check_precision("int8", nano.torch.dims, gpu)


def test_a_model_without_kernels_refuses_it() -> None:
    dims = ModelDimensions(80, 1500, 40, 5, 1, 51865, 448, 40, 5, 1)  # heads of 8
    compiled.check_precision("float32", dims, HOST)
    with pytest.raises(PrecisionError, match="is for models whose heads have a multiple of 16 values"):
        compiled.check_precision("int8", dims, HOST)


def test_warmup_compiles_what_load_model_takes(int8: Whisper) -> None:
    assert loading.warmup(str(NANO), "cpu", "int8").cached


def test_parity_compares_the_default_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPER_MAX_PRECISION", "int8")
    result = parity.check_model(str(NANO), parity.load_audio(None), "cpu")
    assert (result.ok, result.precision) == (True, "float32")


@pytest.mark.parametrize(
    "precision", [pytest.param(name, marks=() if name == "int8" else pytest.mark.large) for name in PRECISIONS[1:]]
)
def test_every_precision_passes_within_a_limit_of_its_own(nano: Pair, precision: str) -> None:
    result = parity.check_model(str(NANO), parity.load_audio(None), "cpu", precision)
    assert (failed(result), result.precision, result.fallbacks) == ([], precision, {})
    assert {row.name: row.limit for row in result.rows} == {
        row.name: LIMITS["float32" if row.name in ("mel", "words") else precision] for row in result.rows
    }
