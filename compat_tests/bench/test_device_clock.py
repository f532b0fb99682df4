"""How long a GPU is at work on graphs: by events, which stand-ins record here on a clock of their own."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
from max.engine import Model

from whisper_max_plugin.bench import subjects
from whisper_max_plugin.bench.subjects import device_clock
from whisper_max_plugin.bench.subjects.device_clock import DeviceClock
from whisper_max_plugin.bench.subjects.whisper_models import WhisperSubject
from whisper_max_plugin.execution.devices import HOST


class Gpu:
    """A device whose clock goes on by what runs on it; events keep the time at which they were recorded.

    Attributes
    ----------
    milliseconds : float
    name, shares_memory, index, driver
        as a `Device` has them
    """

    is_host = False
    index = 0

    def __init__(self) -> None:
        self.milliseconds = 0.0
        self.default_queue = self.driver = self

    def record_event(self, event: Event) -> None:
        event.at = self.milliseconds

    def synchronize(self) -> None:
        self.milliseconds += 1000  # of no graph


class Event:
    def __init__(self, device: Gpu, enable_timing: bool) -> None:
        assert enable_timing
        self.at: float | None = None

    def elapsed_time(self, end: Event) -> float:
        assert self.at is not None
        assert end.at is not None
        return end.at - self.at


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """A GPU that takes 3 ms for each graph, and 2 for one that was recorded."""
    gpu = Gpu()

    def takes(milliseconds: float) -> Any:
        def run(_model: object, *inputs: object) -> tuple[object, ...]:
            gpu.milliseconds += milliseconds
            return inputs

        return run

    monkeypatch.setattr(Model, "execute", takes(3))
    monkeypatch.setattr(Model, "replay", takes(2))
    monkeypatch.setattr(device_clock, "DeviceEvent", Event)
    return gpu


def test_what_runs_on_the_gpu_counts_and_nothing_else(gpu: Gpu) -> None:
    graph, of_the_host = SimpleNamespace(input_devices=[gpu]), SimpleNamespace(input_devices=[HOST.driver])
    before = Model.execute
    with DeviceClock(gpu).running() as clock:
        assert clock.read() == 0
        assert Model.execute(graph, "mel") == ("mel",)
        Model.execute(of_the_host, "samples")
        assert clock.read() == pytest.approx(0.003)
        for _ in range(4):
            Model.replay(graph, 1)
        assert clock.read() == pytest.approx(0.011)
    assert Model.execute is before
    Model.execute(graph, "mel")
    assert clock.read() == pytest.approx(0.011)


def test_stages_are_timed_by_that_clock_and_then_by_the_callers_again(gpu: Gpu) -> None:
    subject = WhisperSubject("max")
    subject._model = SimpleNamespace(encoder=SimpleNamespace(runtime=SimpleNamespace(device=gpu)))
    graph = SimpleNamespace(input_devices=[gpu])

    def stage_seconds(stage: str, n_tokens: int) -> float:
        started = subject._clock()
        for _ in range(n_tokens):
            Model.replay(graph)
        return subject._clock() - started

    subject.stage_seconds = stage_seconds
    assert subject.device_seconds("step", 5) == pytest.approx(0.010)
    assert subject.device_seconds("mel", 5) is None
    assert subject._clock == subject._clock_on_the_wall
    gpu.index = None
    assert subject.device_seconds("step", 5) is None


def test_others_have_no_such_clock() -> None:
    for kind in subjects.PEERS:
        other = getattr(importlib.import_module(kind.module), kind.cls)(**kind.options)
        assert other.device_seconds("step", 5) is None
    assert WhisperSubject("torch").device_seconds("step", 5) is None
