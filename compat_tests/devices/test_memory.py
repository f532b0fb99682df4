"""Memory of a device: how much of it MAX takes, and when it is given back."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Iterator

import pytest
import torch

from whisper_max_plugin.execution import devices
from whisper_max_plugin.execution.devices import PART_OF_FREE_MEMORY
from whisper_max_plugin.execution.engine import Engine
from whisper_max_plugin.inference.model import MaxWhisper, accelerate

from .fixtures import ELSEWHERE, transcripts, upstreams_nano


@pytest.mark.parametrize(("users", "taken"), [({}, "50"), ({PART_OF_FREE_MEMORY: "90"}, "90")])
def test_others_are_left_memory_of_a_gpu(users: dict[str, str], taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """MAX's own default is nine tenths of what is free; the user's own setting is respected."""
    monkeypatch.setattr(os, "environ", users)
    monkeypatch.setattr(devices, "Accelerator", lambda index: os.environ[PART_OF_FREE_MEMORY])
    assert devices._open.__wrapped__(0) == taken


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
