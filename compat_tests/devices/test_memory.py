"""Memory of a device: how much of it MAX takes, what is said when it is full, and when it is given back."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Iterator

import pytest
import torch
from max.engine import InferenceSession, Model

from whisper_max_plugin.errors import DeviceError, MemoryFullError
from whisper_max_plugin.execution import devices
from whisper_max_plugin.execution.devices import PART_OF_FREE_MEMORY
from whisper_max_plugin.execution.engine import Engine
from whisper_max_plugin.inference.model import MaxWhisper, accelerate

from ..errors import assert_one_sentence, error_of
from .fixtures import ELSEWHERE, elsewhere, transcripts, upstreams_nano

__all__ = ["elsewhere"]  # a fixture, found by name


@pytest.mark.parametrize(("users", "taken"), [({}, "50"), ({PART_OF_FREE_MEMORY: "90"}, "90")])
def test_others_are_left_memory_of_a_gpu(users: dict[str, str], taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """MAX's own default is nine tenths of what is free; the user's own setting is respected."""
    monkeypatch.setattr(os, "environ", users)
    monkeypatch.setattr(devices, "Accelerator", lambda index: os.environ[PART_OF_FREE_MEMORY])
    assert devices._open.__wrapped__(0) == taken


@pytest.mark.parametrize("kind", [ValueError, RuntimeError])  # MAX's, of allocations and of recordings
def test_memory_of_a_gpu_that_is_full(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise kind("device driver memAlloc failed: CUDA call failed: CUDA_ERROR_OUT_OF_MEMORY (out of memory)\n")

    monkeypatch.setattr(devices, "Buffer", fail)
    error = error_of(lambda: ELSEWHERE.empty([4]))
    assert isinstance(error, DeviceError)
    assert_one_sentence(error, "is full", "a smaller model", 'device="cpu"')


def test_memory_that_is_full_when_weights_are_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **_options: object) -> None:
        raise ValueError("CUDA call failed: CUDA_ERROR_OUT_OF_MEMORY (out of memory)")

    monkeypatch.setattr(InferenceSession, "init_all", fail)
    with pytest.raises(MemoryFullError, match="is full: load a smaller model"):
        accelerate(upstreams_nano(), ELSEWHERE)


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


@pytest.fixture
def used() -> Iterator[MaxWhisper]:
    """A model that has decoded; nothing but a full collection ends objects that refer to themselves."""
    model = accelerate(upstreams_nano(), ELSEWHERE)
    transcripts([model], {"beam_size": 2})
    gc.collect()
    gc.disable()
    yield model
    gc.enable()


def test_changed_weights_are_bound_when_the_memory_of_the_last_ones_is_free(
    used: MaxWhisper, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = weakref.ref(used.decoder.runtime.engine())
    bound = []
    bind = Engine.__init__

    def binding(engine: Engine, *arguments: object) -> None:
        bound.append(old())
        bind(engine, *arguments)

    monkeypatch.setattr(Engine, "__init__", binding)
    with torch.no_grad():
        used.decoder.ln.bias.add_(1)
    used.decoder.runtime.engine()
    assert bound == [None]
