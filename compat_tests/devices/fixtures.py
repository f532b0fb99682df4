"""A device with memory of its own, without a GPU: graphs run on the CPU, and everything is copied there and back."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import whisper
from max.driver import Buffer
from torch.utils.dlpack import from_dlpack
from whisper.model import Whisper

from whisper_max_plugin.execution.devices import Device
from whisper_max_plugin.inference.model import MaxWhisper, accelerate

from ..data import NANO, SAMPLE


class Elsewhere(Device):
    """Memory of its own, on the CPU. MAX's copies there go by a thread that it may miss to wake (see `watch`)."""

    def copy(self, targets: Sequence[Buffer], sources: Sequence[Buffer]) -> None:
        for target, source in zip(targets, sources, strict=True):
            from_dlpack(target).copy_(from_dlpack(source))


ELSEWHERE = Elsewhere("cpu", shares_memory=False)


class HalfDevice(Elsewhere):
    """Computes in half width if it is asked to, as a GPU does, though nothing is faster by it."""

    computes_in_half = True


HALF = HalfDevice("cpu", shares_memory=False)


def upstreams_nano() -> Whisper:
    return inspect.unwrap(whisper.load_model)(str(NANO), device="cpu").eval()


@pytest.fixture(scope="module")
def elsewhere() -> MaxWhisper:
    return accelerate(upstreams_nano(), ELSEWHERE)


def transcripts(models: Sequence[Whisper], options: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what each model makes of the sample, with the same random numbers."""
    results = []
    for model in models:
        torch.manual_seed(0)
        results.append(model.transcribe(str(SAMPLE), fp16=False, language="en", **options))
    return results
