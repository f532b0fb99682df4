"""Devices: which one a name means, and that a model on one with memory of its own computes what upstream does."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import whisper
from max.engine import Model

from whisper_max_plugin import loading, startup
from whisper_max_plugin.checkpoints.sizes import OFFICIAL_DIMS
from whisper_max_plugin.doctor import comparison, parity_checks
from whisper_max_plugin.errors import DeviceError
from whisper_max_plugin.execution import artifacts, devices
from whisper_max_plugin.execution.devices import HOST, Device, Mirror
from whisper_max_plugin.execution.engine import check_heads
from whisper_max_plugin.inference.model import MaxWhisper

from .compare import assert_same_result
from .conftest import Pair
from .device_fixtures import ELSEWHERE, elsewhere, transcripts, upstreams_nano
from .errors import assert_one_sentence, error_of

__all__ = ["elsewhere"]  # a fixture, found by name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beam_size": 5, "word_timestamps": True},
        {"temperature": 0.7, "best_of": 3},
        {"beam_size": 3, "without_timestamps": True, "initial_prompt": "The old man."},
        {"suppress_tokens": "", "word_timestamps": True},
    ],
    ids=lambda options: "-".join(options) or "defaults",
)
def test_what_is_copied_to_a_device_and_back_is_what_upstream_computes(
    nano: Pair, elsewhere: MaxWhisper, options: dict[str, Any]
) -> None:
    expected, actual = transcripts([nano.torch, elsewhere], options)
    assert_same_result(actual, expected)


def test_beams_and_hooks_of_callers_with_a_cache_of_the_device(nano: Pair, elsewhere: MaxWhisper) -> None:
    window = parity_checks.prepare(nano.torch, parity_checks.synthetic_audio())
    upstreams: parity_checks.Results = {}
    with torch.no_grad():
        for check in (parity_checks.encoder, parity_checks.prefill, parity_checks.beams, parity_checks.alignment):
            upstreams[check.__name__] = check(nano.torch, window, upstreams)
            for actual, expected in zip(check(elsewhere, window, upstreams), upstreams[check.__name__], strict=True):
                torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_entries_of_the_cache_are_read_and_written_as_upstreams(nano: Pair, elsewhere: MaxWhisper) -> None:
    features = torch.randn(2, 1500, nano.torch.dims.n_audio_state)
    tokens = torch.tensor([[50258, 50259], [50258, 50260]])
    logits = []
    for model in (nano.torch, elsewhere):
        cache, hooks = model.install_kv_cache_hooks()
        with torch.no_grad():
            model.decoder(tokens, features, kv_cache=cache)
            for module, entry in cache.items():
                cache[module] = entry[[1, 0]].detach()
            logits.append(model.decoder(tokens[:, :1], features, kv_cache=cache))
        for hook in hooks:
            hook.remove()
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)


def test_a_mirror_changes_neither_side_before_it_is_told() -> None:
    mirror = Mirror(np.zeros(3, dtype=np.float32), ELSEWHERE)
    mirror.array[:] = 1
    assert mirror.buffer.to_numpy().tolist() == [0, 0, 0]
    assert mirror.push().to_numpy().tolist() == [1, 1, 1]
    mirror.array[:] = 2
    assert mirror.pull().tolist() == [1, 1, 1]


def test_nobody_asked_for_a_gpu() -> None:
    assert devices.find(None) is HOST
    assert devices.find("cpu") is devices.find(torch.device("cpu")) is HOST


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "accelerator_count", lambda: 2)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("asked_for", "name"),
    [
        (None, "cpu"),
        ("cuda", "cuda:0"),
        ("cuda:1", "cuda:1"),
        (torch.device("cuda", 1), "cuda:1"),
        ("cpu", "cpu"),
    ],
)
def test_a_name_means_the_device_that_torch_calls_so(asked_for: str | torch.device | None, name: str) -> None:
    assert devices.find(asked_for).name == name


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_is_not_there() -> None:
    error = error_of(lambda: devices.find("cuda:2"))
    assert isinstance(error, DeviceError)
    assert_one_sentence(error, "'cuda:2'", "only 2 GPUs", "nvidia-smi", 'device="cpu"')


def test_a_gpu_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_index: int) -> None:
        raise RuntimeError(
            "Your current NVIDIA GPU driver version is not supported.\n  Required: driver version >= 570"
        )

    monkeypatch.setattr(devices, "Accelerator", fail)
    error = error_of(lambda: Device("cuda:0", shares_memory=False).driver)
    assert isinstance(error, DeviceError)
    assert_one_sentence(error, "cuda:0", "Required: driver version >= 570; update", 'device="cpu"')


def test_memory_of_a_gpu_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("device driver memAlloc failed: CUDA call failed: CUDA_ERROR_OUT_OF_MEMORY (out of memory)\n")

    monkeypatch.setattr(devices, "Buffer", fail)
    error = error_of(lambda: ELSEWHERE.empty([4]))
    assert isinstance(error, DeviceError)
    assert_one_sentence(error, "is full", "a smaller model", 'device="cpu"')


def test_memory_that_is_full_in_the_middle_of_a_graph(elsewhere: MaxWhisper, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("CUDA call failed: CUDA_ERROR_OUT_OF_MEMORY (out of memory)")

    monkeypatch.setattr(Model, "execute", fail)
    error = error_of(lambda: elsewhere.encoder(torch.randn(1, elsewhere.dims.n_mels, 3000)))
    assert isinstance(error, DeviceError)
    assert_one_sentence(error, "is full", "fewer windows or beams", 'device="cpu"')


def test_other_errors_of_a_device_are_not_explained_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("an illegal memory access")

    monkeypatch.setattr(devices, "Buffer", fail)
    with pytest.raises(ValueError, match="an illegal memory access"):
        ELSEWHERE.empty([4])


def test_heads_that_kernels_on_gpus_do_not_serve() -> None:
    check_heads(OFFICIAL_DIMS["large-v3"])
    error = error_of(lambda: check_heads(replace(OFFICIAL_DIMS["tiny"], n_text_head=3)))
    assert isinstance(error, DeviceError)
    assert_one_sentence(error, "heads of 64 and 128", 'device="cpu"')


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A place where nothing says yet that a device was compared with torch; return the file that will."""
    monkeypatch.setattr(artifacts, "path_of", lambda *_: tmp_path / "graphs.mef")
    return tmp_path / "graphs.checked"


def test_a_device_is_compared_with_torch_once(unchecked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loading.accelerate_checked(upstreams_nano(), ELSEWHERE)
    assert unchecked.exists()
    monkeypatch.setattr(comparison, "compare", lambda *_: pytest.fail("compared again"))
    assert isinstance(loading.accelerate_checked(upstreams_nano(), ELSEWHERE), MaxWhisper)


def test_a_cache_that_cannot_be_written_only_costs_the_comparison(unchecked: Path) -> None:
    with patch.object(Path, "touch", side_effect=PermissionError):
        assert isinstance(loading.accelerate_checked(upstreams_nano(), ELSEWHERE), MaxWhisper)
    assert not unchecked.exists()


def test_a_load_imports_nothing_that_only_the_comparison_needs() -> None:
    needless = {"av", "whisper_max_plugin.doctor.comparison"}
    code = f"import sys, whisper_max_plugin.loading; print(sorted({needless} & sys.modules.keys()))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout == "[]\n"


def test_a_device_that_computes_something_else_is_refused(unchecked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    get = Device.get
    monkeypatch.setattr(Device, "get", lambda self, buffer: get(self, buffer) * 1.01)
    error = error_of(lambda: loading.accelerate_checked(upstreams_nano(), ELSEWHERE))
    assert isinstance(error, DeviceError)
    assert_one_sentence(error, "encoder is off by 1e-02", 'device="cpu"', "whisper-max doctor")
    assert not unchecked.exists()


@pytest.mark.parametrize(("words", "device"), [([], None), (["--device", "cpu"], "cpu"), (["--device=cuda"], "cuda")])
def test_the_command_leaves_a_device_that_nobody_typed_to_the_backend(
    words: list[str], device: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from whisper.transcribe import cli

    asked_for = []

    def load_model(name: str, device: str | None = None, download_root: str | None = None) -> None:
        asked_for.append(device)
        raise SystemExit

    monkeypatch.setattr(whisper, "load_model", load_model)
    monkeypatch.setattr("sys.argv", ["whisper", "a.wav", "--model", "tiny", "--backend", "max", *words])
    startup.accept_backend_option()
    with pytest.raises(SystemExit):
        cli()
    assert asked_for == [device]
