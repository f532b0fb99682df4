"""Who gets the spectrogram of a graph: a model on graphs, from `transcribe()`, and nobody else."""

from __future__ import annotations

import inspect
import runpy

import numpy as np
import pytest
import torch
import whisper
from torch import Tensor
from whisper.audio import N_SAMPLES, SAMPLE_RATE

import whisper_max_plugin
from whisper_max_plugin.errors import FallbackError
from whisper_max_plugin.execution.engine import Engine
from whisper_max_plugin.spectrogram import log_mel_spectrogram

from ..compare import assert_same_result, skip_unless_upstream_knows
from ..conftest import Pair
from ..data import SAMPLE, SAMPLE_LONG

upstreams = inspect.unwrap(whisper.audio.log_mel_spectrogram)


@pytest.fixture
def given_to(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who made each spectrogram of the test: "graph" for those of graphs."""
    made: list[str] = []
    original = Engine.log_mel

    def noted(self: Engine, samples: Tensor, padding: int) -> Tensor | None:
        made.append("graph")
        return original(self, samples, padding)

    monkeypatch.setattr(Engine, "log_mel", noted)
    return made


def first_window(model: whisper.Whisper, audio: object) -> Tensor:
    """Return the mel spectrogram that `transcribe()` gives to the encoder first."""
    windows: list[Tensor] = []
    hook = model.encoder.register_forward_pre_hook(lambda _, inputs: windows.append(inputs[0].clone()))
    try:
        whisper.transcribe(model, audio, language="en", fp16=False)
    finally:
        hook.remove()
    return windows[0]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("audio", [str(SAMPLE), whisper.load_audio(str(SAMPLE))], ids=["file", "samples"])
def test_a_model_that_runs_on_graphs_gets_it(nano: Pair, given_to: list[str], audio: object) -> None:
    results = [whisper.transcribe(model, audio, fp16=False) for model in (nano.max, nano.torch)]
    assert given_to == ["graph"]
    assert_same_result(*results)


@pytest.mark.usefixtures("installed")
def test_a_model_of_torch_gets_upstreams(nano: Pair, given_to: list[str]) -> None:
    expected = upstreams(str(SAMPLE), padding=N_SAMPLES)[None, :, :3000]
    assert torch.equal(first_window(nano.torch, str(SAMPLE)), expected)
    assert given_to == []


def test_without_the_plugin_it_is_upstreams(nano: Pair, given_to: list[str]) -> None:
    whisper_max_plugin.install()
    whisper_max_plugin.uninstall()
    whisper.transcribe(nano.max, str(SAMPLE), language="en", fp16=False)
    assert given_to == []


@pytest.mark.usefixtures("installed")
def test_callers_of_the_function_get_upstreams(nano: Pair, given_to: list[str]) -> None:
    model = nano.max
    samples = whisper.load_audio(str(SAMPLE))
    assert torch.equal(whisper.log_mel_spectrogram(samples, model.dims.n_mels), upstreams(samples))
    assert given_to == []


@pytest.mark.usefixtures("installed")
def test_a_function_of_somebodys_own_that_is_named_transcribe_gets_upstreams(nano: Pair, given_to: list[str]) -> None:
    def transcribe(model: whisper.Whisper, audio: Tensor) -> Tensor:
        return whisper.log_mel_spectrogram(audio, model.dims.n_mels)

    samples = torch.from_numpy(whisper.load_audio(str(SAMPLE)))
    for audio in (samples, torch.stack([samples, -samples])):  # a batch is no fallback either: no graph was asked for
        assert torch.equal(transcribe(nano.max, audio), upstreams(audio))
    assert given_to == []


@pytest.mark.usefixtures("installed")
def test_transcribe_of_the_module_that_python_runs_gets_it(nano: Pair, given_to: list[str]) -> None:
    """`python -m whisper.transcribe` executes the module a second time, under the name `__main__`."""
    again = runpy.run_module("whisper.transcribe", run_name="no __main__, which would start the command")
    transcribe = again["transcribe"]
    assert transcribe is not whisper.transcribe
    transcribe(nano.max, str(SAMPLE), language="en", fp16=False)
    assert given_to == ["graph"]


@pytest.mark.usefixtures("installed")
def test_a_model_of_torch_may_have_a_runtime_of_its_own(
    nano: Pair, given_to: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nano.torch.decoder, "runtime", "somebody's", raising=False)
    nothing = np.zeros(0, np.float32)
    assert whisper.transcribe(nano.torch, nothing, language="en", fp16=False)["segments"] == []
    assert given_to == []


@pytest.mark.usefixtures("installed")
def test_somebodys_patch_over_it(nano: Pair, given_to: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """From where it lies nobody sees `transcribe()`, and the spectrogram is upstream's."""
    ours = inspect.getmodule(whisper.transcribe).log_mel_spectrogram  # type: ignore[union-attr]
    calls = []

    def counting(*arguments: object, **options: object) -> Tensor:
        calls.append(arguments)
        return ours(*arguments, **options)

    monkeypatch.setattr(inspect.getmodule(whisper.transcribe), "log_mel_spectrogram", counting)
    whisper.transcribe(nano.max, str(SAMPLE), language="en", fp16=False)
    assert (len(calls), given_to) == (1, [])


@pytest.mark.usefixtures("installed")
@pytest.mark.falls_back
def test_what_is_no_recording_of_float32_is_left_to_upstream_and_counted(nano: Pair, given_to: list[str]) -> None:
    samples = torch.randn(2 * SAMPLE_RATE, requires_grad=True)
    before = sum(whisper_max_plugin.status()["fallbacks"].values())
    whisper.transcribe(nano.max, samples, language="en", fp16=False)
    assert sum(whisper_max_plugin.status()["fallbacks"].values()) == before + 1
    assert given_to == []
    with pytest.raises(RuntimeError) as ours:
        whisper.transcribe(nano.max, samples.detach().double())
    with pytest.raises(RuntimeError) as theirs:
        whisper.transcribe(nano.torch, samples.detach().double())
    assert str(ours.value) == str(theirs.value)


@pytest.mark.usefixtures("installed")
@pytest.mark.falls_back
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_where_torchs_default_type_is_another_it_is_upstreams_whose_window_is_of_it(
    nano: Pair, given_to: list[str], dtype: torch.dtype
) -> None:
    options = {"language": "en", "fp16": False, "temperature": 0.0}
    torch.set_default_dtype(dtype)
    try:
        theirs, ours = (whisper.transcribe(model, str(SAMPLE), **options) for model in (nano.torch, nano.max))
    finally:
        torch.set_default_dtype(torch.float32)
    assert given_to == []
    assert ours["text"] == theirs["text"]
    assert ours["text"] == whisper.transcribe(nano.max, str(SAMPLE), **options)["text"]
    assert given_to == ["graph"]


@pytest.mark.usefixtures("installed")
def test_where_a_fallback_is_an_error_upstream_computes_nothing(
    nano: Pair, given_to: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def compute(*_: object, **__: object) -> Tensor:
        raise AssertionError("upstream's function was called")

    monkeypatch.setenv("WHISPER_MAX_STRICT", "1")
    runtime = nano.max.decoder.runtime
    with pytest.raises(FallbackError):
        log_mel_spectrogram(compute, runtime, torch.randn(2, SAMPLE_RATE))
    assert given_to == []


@pytest.mark.usefixtures("installed")
def test_a_long_recording_is_transcribed_from_it(nano: Pair) -> None:
    samples = np.tile(whisper.load_audio(str(SAMPLE_LONG)), 2)  # more than upstream's function makes at once here
    options = {"language": "en", "fp16": False, "clip_timestamps": [0.0, 20.0, 340.0, 360.0]}
    skip_unless_upstream_knows(options)
    assert_same_result(*(whisper.transcribe(model, samples, **options) for model in (nano.max, nano.torch)))
