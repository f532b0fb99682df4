"""A GPU that nothing can be compiled for: an error where it was asked for, else the CPU; and what `warmup` chooses."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import max.driver
import pytest
import whisper

from whisper_max_plugin import loading
from whisper_max_plugin.errors import DeviceError
from whisper_max_plugin.execution import artifacts, devices
from whisper_max_plugin.execution.devices import HOST, Device
from whisper_max_plugin.inference.model import MaxWhisper

from ..data import NANO
from ..errors import assert_one_sentence, error_of

obtain = artifacts.obtain


class OldGPU(Device):
    """A GPU that MAX knows, whose architecture lacks what kernels are made of; its memory is the host's."""

    index = 0
    kind = "sm_75-0"

    @property
    def driver(self) -> max.driver.Device:
        return HOST.driver


GPU = OldGPU("cuda:0", shares_memory=False)


@pytest.fixture(autouse=True)
def old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def obtain_for(session: Any, dims: Any, precision: str, device: str, build: Any) -> Any:
        if device == GPU.kind:
            raise RuntimeError("Failed to compile the model.\nerror: no such instruction on sm_75")
        return obtain(session, dims, precision, device, build)

    monkeypatch.setattr(artifacts, "obtain", obtain_for)
    monkeypatch.setattr(devices, "find", lambda name: HOST if name == "cpu" else GPU)


def load(device: str | None) -> MaxWhisper:
    upstream_load_model = inspect.unwrap(whisper.load_model)
    options = {"device": device, "download_root": None, "in_memory": False, "upstream_load_model": upstream_load_model}
    return loading.load(str(NANO), **options)


def test_asked_for_it_is_an_error() -> None:
    for error in (error_of(lambda: load("cuda")), error_of(lambda: loading.warmup(str(NANO), "cuda"))):
        assert isinstance(error, DeviceError)
        assert_one_sentence(error, "cuda:0, which is sm_75 (Failed to compile the model.)", 'device="cpu"')


def test_not_asked_for_it_gives_way_to_the_cpu(caplog: pytest.LogCaptureFixture) -> None:
    assert load(None).decoder.runtime.device is HOST
    assert 'the model runs on the CPU, which device="cpu" would choose, because MAX cannot compile' in caplog.text
    caplog.clear()
    assert loading.warmup(str(NANO)).cached  # by the load
    assert "compiling for the CPU, where the model will run, because MAX cannot compile" in caplog.text


def test_heads_of_another_size_do_not_reach_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = replace(loading.OFFICIAL_DIMS["tiny"], n_text_head=3)
    monkeypatch.setattr(loading, "OFFICIAL_DIMS", {"tiny": tiny})
    error = error_of(lambda: loading.warmup("tiny", "cuda"))
    assert isinstance(error, DeviceError)
    assert_one_sentence(error, "heads of 64 and 128", 'device="cpu"')


def test_int8_is_compiled_for_the_cpu_where_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_for = []
    monkeypatch.setattr(loading, "compile_graphs", lambda dims, types, device: compiled_for.append(device))
    loading.warmup(str(NANO), precision="int8")
    assert compiled_for == [HOST]
