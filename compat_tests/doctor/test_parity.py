"""`whisper-max doctor --parity`: passes on sound models, and fails, in words, on whatever can be wrong with one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import whisper
from max.driver import Buffer
from torch import Tensor
from torch.utils.dlpack import from_dlpack
from whisper.model import AudioEncoder, ModelDimensions, Whisper

import whisper_max_plugin
from whisper_max_plugin.doctor import parity, parity_checks
from whisper_max_plugin.execution import engine
from whisper_max_plugin.execution.devices import Device
from whisper_max_plugin.execution.engine import Engine
from whisper_max_plugin.execution.step_inputs import SearchInputs, StepInputs
from whisper_max_plugin.graphs import Types
from whisper_max_plugin.inference.kv_cache import KVCache

from ..compare import RELATIVE_ERROR, relative_error
from ..conftest import Pair
from ..data import NANO, SAMPLE

NAMES = ["mel", "encoder", "prefill", "steps", "beams", "ranking", "alignment", "words"]
Checkpoint = dict[str, Any]
Disturb = Callable[..., None]


def check(name: str | Path = NANO, audio: str | None = None) -> parity.Parity:
    return parity.check_model(str(name), parity.load_audio(audio))


def failed(result: parity.Parity) -> list[str]:
    """Return the checks that failed: each says why, or has too large an error, and any of them fails the model."""
    assert result.problem is None
    assert [row.name for row in result.rows] == NAMES
    for row in result.rows:
        assert row.ok or row.note or row.error > row.limit
    names = [row.name for row in result.rows if not row.ok]
    assert result.ok is not bool(names)
    return names


@pytest.fixture
def stored() -> Checkpoint:
    """What the file nano.pt holds, in float32."""
    checkpoint = torch.load(NANO)
    return {**checkpoint, "model_state_dict": {k: x.float() for k, x in checkpoint["model_state_dict"].items()}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mine.pt"


# Sound models


@pytest.mark.parametrize("model", ["nano", "tiny"])
def test_a_sound_model_passes(request: pytest.FixtureRequest, model: str) -> None:
    pair: Pair = request.getfixturevalue(model)
    result = check(pair.path)
    assert failed(result) == []
    for row in result.rows:
        assert row.error < RELATIVE_ERROR == row.limit
        assert (row.equal_tokens, row.tokens, row.note) == (
            (20, 20, None) if row.name == "steps" else (None, None, None)
        )
    graphs = {"log_mel", "encoder", "cross_kv", "prefill", "step", "search", "cross_scores", "alignment", "token_probs"}
    assert result.graph_runs.keys() == graphs
    assert result.fallbacks == {}
    assert (result.dims, result.precision, result.device) == (vars(pair.torch.dims), "float32", "cpu")


def test_an_english_only_model_passes(stored: Checkpoint, path: Path) -> None:
    state = stored["model_state_dict"]
    state["decoder.token_embedding.weight"] = state["decoder.token_embedding.weight"][:51864].clone()
    torch.save({"dims": {**stored["dims"], "n_vocab": 51864}, "model_state_dict": state}, path)
    assert failed(check(path)) == []


def test_a_recording_in_place_of_synthetic_sound(nano: Pair) -> None:
    result = check(audio=str(SAMPLE))
    assert failed(result) == []
    mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(parity.load_audio(str(SAMPLE))))[None]
    with torch.no_grad():
        error = relative_error(nano.max.encoder(mel), nano.torch.encoder(mel))
    assert result.rows[1].error == pytest.approx(error, rel=0.5)


def test_a_recording_shorter_than_a_window(nano: Pair) -> None:
    assert parity.check_model(str(NANO), torch.zeros(10)).ok


def test_the_reference_is_upstreams_whatever_is_switched_on(nano: Pair, disturb: Disturb, monkeypatch: Any) -> None:
    whisper_max_plugin.install()
    monkeypatch.setenv("WHISPER_BACKEND", "max")
    disturb("encode", lambda features: features * 1.01)
    assert failed(check()) == ["encoder"]


# Wrong numbers: each check can fail


@pytest.fixture
def disturb(monkeypatch: pytest.MonkeyPatch) -> Disturb:
    """Let a method of `Engine` return something else; for ``decode`` and ``step`` where `when(n_group, n_tokens)`."""

    def disturb(method: str, change: Callable[[Any], Any], when: Callable[[int, int], bool] = lambda *_: True) -> None:
        original = getattr(Engine, method)

        def overwrite(buffer: Buffer) -> Buffer:
            x = from_dlpack(buffer)
            x.copy_(change(x.clone()))
            return buffer

        def disturbed(self: Engine, *args: Any) -> Any:
            result = original(self, *args)
            if method == "decode":
                if when(*args[0].shape[1:]):
                    overwrite(result.logits)
                return result
            if method == "encode":
                return Buffer.from_dlpack(change(from_dlpack(result)).contiguous())
            if method == "cross_scores":
                return overwrite(result)
            if method == "step":
                inputs: StepInputs = args[0]
                tokens = inputs.buffers[0]
                if when(tokens.shape[1], 1):
                    overwrite(inputs.search.logits)
                return None
            return change(result)

        monkeypatch.setattr(Engine, method, disturbed)

    return disturb


def off_by(error: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x + error * x.abs().max()


@pytest.mark.parametrize(
    ("method", "when", "names"),
    [
        ("encode", None, ["encoder"]),
        ("decode", lambda n_group, n_tokens: n_tokens > 4, ["prefill"]),
        ("decode", lambda n_group, n_tokens: n_tokens == 4, ["beams"]),
        ("step", lambda n_group, n_tokens: n_group == 1, ["steps"]),
        ("step", lambda n_group, n_tokens: n_group == 5, ["beams"]),
        ("cross_scores", None, ["alignment"]),
        ("align", None, ["words"]),
        ("token_probs", None, ["words"]),
    ],
)
def test_a_graph_that_returns_wrong_numbers(
    nano: Pair, disturb: Disturb, method: str, when: Callable[[int, int], bool] | None, names: list[str]
) -> None:
    disturb(method, off_by(3e-4), *([when] if when else []))
    result = check()
    assert failed(result) == names
    for row in result.rows:
        assert row.error == pytest.approx(3e-4 if row.name in names else 0, rel=0.1, abs=1e-5)


def test_an_error_within_the_limit_passes(nano: Pair, disturb: Disturb) -> None:
    disturb("encode", off_by(5e-5))
    disturb("decode", off_by(5e-5))
    disturb("step", off_by(5e-5))
    assert failed(check()) == []


@pytest.mark.parametrize("samples", [False, True])
def test_a_search_that_finds_other_tokens(nano: Pair, monkeypatch: pytest.MonkeyPatch, samples: bool) -> None:
    original = Engine.search

    def search(self: Engine, logits: Buffer, inputs: SearchInputs, suppressed: Buffer) -> None:
        original(self, logits, inputs, suppressed)
        if bool(inputs.temperatures.array.any()) == samples:
            inputs.ids.array[...] += 1
            inputs.found.push()

    monkeypatch.setattr(Engine, "search", search)
    assert failed(check()) == ["ranking"]


def test_wrong_cross_attention_keys(nano: Pair, disturb: Disturb) -> None:
    disturb("cross_kv", lambda buffers: [buffers[1], *buffers[1:]])
    assert failed(check()) == ["prefill", "steps", "beams", "alignment"]


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("encoder.conv1.bias", ["encoder"]),
        ("decoder.blocks.1.mlp.0.bias", ["prefill", "steps", "beams"]),
        ("decoder.blocks.0.cross_attn.query.bias", ["prefill", "steps", "beams", "alignment"]),
    ],
)
def test_graphs_with_another_weight_than_the_model(
    nano: Pair, monkeypatch: pytest.MonkeyPatch, name: str, names: list[str]
) -> None:
    original = engine.graph_weights

    def graph_weights(state: dict[str, Tensor], types: Types, *, kernels: bool) -> dict[str, Tensor]:
        weights = original(state, types, kernels=kernels)
        return {**weights, name: weights[name] + 0.1}

    monkeypatch.setattr(engine, "graph_weights", graph_weights)
    assert failed(check()) == names


def test_beams_that_keep_their_places(nano: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    original = KVCache.rearrange

    def rearrange(self: KVCache, source_indices: list[int]) -> None:
        if source_indices != parity_checks.BEAM_SOURCES:
            original(self, source_indices)

    monkeypatch.setattr(KVCache, "rearrange", rearrange)
    assert failed(check()) == ["beams"]


def test_a_cache_that_a_step_does_not_read(nano: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    original = KVCache.memory.fget
    dims = nano.max.dims
    elsewhere = torch.zeros(dims.n_text_ctx, 5, dims.n_text_state)

    def memory(self: KVCache) -> np.ndarray:
        table = original(self).copy()
        table[:, 1::4] = table[:, 2::4] = elsewhere.data_ptr()  # in place of the tokens' keys and values
        return table

    monkeypatch.setattr(KVCache, "memory", property(memory))
    assert failed(check()) == ["steps", "beams"]


# Tokens


def test_other_tokens_by_wrong_numbers_are_told_from_near_ties(nano: Pair, disturb: Disturb) -> None:
    disturb("step", lambda logits: logits.flip(-1), lambda n_group, _: n_group == 1)
    result = check()
    assert failed(result) == ["steps"]
    assert result.rows[3].equal_tokens == 0
    assert result.rows[3].note.count("a clear choice") == 20
    assert "near tie" not in result.rows[3].note


def test_a_near_tie_is_shown_and_does_not_fail(stored: Checkpoint, path: Path, disturb: Disturb) -> None:
    # Each token has a twin that is almost as good; noise within the limit prefers the twins.
    half = 25000
    tokens = stored["model_state_dict"]["decoder.token_embedding.weight"]
    tokens[half : 2 * half] = tokens[:half] * (1 - 1e-5)
    tokens[2 * half :] = 0
    torch.save(stored, path)

    def prefer_twins(logits: Tensor) -> Tensor:
        noise = torch.zeros_like(logits)
        noise[..., half : 2 * half] = 4e-5 * logits.abs().max()
        return logits + noise

    disturb("step", prefer_twins, lambda n_group, _: n_group == 1)
    result = check(path)
    assert failed(result) == []
    steps = result.rows[3]
    assert steps.equal_tokens < steps.tokens == 20
    assert steps.note.count("a near tie") == 20 - steps.equal_tokens
    assert "clear choice" not in steps.note


# Failures


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_said_in_words(nano: Pair, disturb: Disturb, value: float) -> None:
    disturb("encode", lambda features: features.index_fill(1, torch.tensor([700]), value))
    result = check()
    assert failed(result) == ["encoder"]
    assert result.rows[1].error is None
    assert result.rows[1].note == "the result of the graph holds NaN or infinite values"


def test_a_result_of_another_shape(nano: Pair, disturb: Disturb) -> None:
    disturb("encode", lambda features: features[:, :-1])
    result = check()
    assert failed(result) == ["encoder"]
    assert result.rows[1].note == "results of shapes [(1, 1499, 128)] instead of [(1, 1500, 128)]"


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_a_graph_that_fails_to_run(nano: Pair, disturb: Disturb, error: type[Exception]) -> None:
    def fail(result: object) -> None:
        raise error("no such kernel")

    disturb("cross_scores", fail)
    result = check()
    assert failed(result) == ["alignment"]
    assert result.rows[-2].note == "failed: no such kernel"


def test_graphs_that_do_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_graphs(dims: ModelDimensions, types: Types, device: Device) -> None:
        raise RuntimeError("error: cannot lower rmo.matmul")

    monkeypatch.setattr(engine, "compile_graphs", compile_graphs)
    result = check()
    assert (result.ok, result.problem, result.rows) == (False, "error: cannot lower rmo.matmul", [])


def after_accelerate(monkeypatch: pytest.MonkeyPatch, change: Callable[[Whisper], object]) -> None:
    """Do something to the model that is checked, as other software in the environment may."""
    original = parity.accelerate

    def accelerate(model: Whisper, device: Device, precision: str) -> Whisper:
        accelerated = original(model, device, precision)
        change(accelerated)
        return accelerated

    monkeypatch.setattr(parity, "accelerate", accelerate)


@pytest.mark.falls_back
def test_a_fallback_fails_though_its_numbers_are_right(nano: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    after_accelerate(monkeypatch, lambda model: model.encoder.blocks[0].mlp.register_forward_hook(lambda *_: None))
    result = check()
    assert failed(result) == ["encoder"]
    assert result.rows[1].note.startswith("fell back to torch: encoder modules with hooks")
    assert sum(result.fallbacks.values()) == 1


def test_a_fallback_that_strict_forbids(nano: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPER_MAX_STRICT", "1")
    after_accelerate(monkeypatch, lambda model: model.decoder.blocks[0].mlp.register_forward_hook(lambda *_: None))
    result = check()
    assert failed(result) == ["prefill", "steps", "beams", "alignment"]
    assert "unset WHISPER_MAX_STRICT" in result.rows[2].note


def test_torch_in_place_of_a_graph(nano: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def undo(model: Whisper) -> None:
        model.encoder.__class__ = AudioEncoder
        del model.encoder.runtime

    after_accelerate(monkeypatch, undo)
    result = check()
    assert failed(result) == ["encoder"]
    assert result.rows[1].note == "the graph 'encoder' did not run"
