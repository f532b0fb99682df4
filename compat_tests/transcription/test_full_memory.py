"""A device's memory that is full: fewer recordings at a time, or the CPU, and no recording is lost."""

from __future__ import annotations

import gc
import logging
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import whisper
from max.driver import Buffer
from max.engine import Model

import whisper_max_plugin
from whisper_max_plugin import transcribe_many
from whisper_max_plugin.errors import MemoryFullError
from whisper_max_plugin.execution.devices import HOST
from whisper_max_plugin.inference.model import MaxWhisper, accelerate

from ..commands.fixtures import Command, command
from ..compare import assert_same_result
from ..conftest import Pair
from ..devices.fixtures import ELSEWHERE, elsewhere, upstreams_nano
from ..errors import assert_one_sentence
from ..seam.activation_fixtures import switched_off
from .many_fixtures import OPTIONS, files, greedy, recordings, running

__all__ = ["command", "elsewhere", "files", "greedy", "recordings", "switched_off"]  # fixtures, found by name


OUT_OF_MEMORY = "CUDA call failed: CUDA_ERROR_OUT_OF_MEMORY (out of memory)"


class Memory:
    """That of a GPU which holds the windows of so many recordings; more than these make a step of it fail.

    Parameters
    ----------
    room : int
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.n_failed = 0

    def limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let steps fail as MAX's do; a step's tokens are (windows, sequences), of a first pass there are more."""
        execute = Model.execute

        def limited(model: Model, *inputs: Any) -> list[Buffer]:
            if len(inputs[0].shape) == 2 and len(inputs) > 10 and inputs[0].shape[0] > self.room:
                self.n_failed += 1
                raise ValueError(OUT_OF_MEMORY)
            return execute(model, *inputs)

        monkeypatch.setattr(Model, "execute", limited)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    memory = Memory(2)
    memory.limit(monkeypatch)
    return memory


@pytest.fixture
def short(recordings: list[np.ndarray]) -> list[np.ndarray]:
    return [recordings[index] for index in (2, 0, 4, 0, 4)]


def test_fewer_are_worked_on(
    nano: Pair, elsewhere: MaxWhisper, short: list[np.ndarray], memory: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "whisper_max_plugin"):
        finished = list(transcribe_many(elsewhere, short, batch_size=5, **OPTIONS))
    warnings = [
        "the memory of cpu is full: 3 at a time now, in place of 5",
        "the memory of cpu is full: 2 at a time now, in place of 3",
    ]
    assert caplog.messages in (warnings, warnings[:1])  # by then there may never be three that take steps
    assert sorted(each.index for each in finished) == [*range(5)]
    for each in finished:
        assert each.error is None
        assert_same_result(each.result, whisper.transcribe(nano.torch, short[each.index], **OPTIONS))


def test_what_does_not_fit_alone_is_an_error(elsewhere: MaxWhisper, short: list[np.ndarray], memory: Memory) -> None:
    memory.room = 0
    finished = list(transcribe_many(elsewhere, short[:3], batch_size=3, **OPTIONS))
    assert sorted(each.index for each in finished) == [0, 1, 2]
    for each in finished:
        assert isinstance(each.error, MemoryFullError)
        assert_one_sentence(each.error, "the memory of cpu is full", "decode fewer")
    memory.room = 1
    assert whisper.transcribe(elsewhere, short[1], **OPTIONS)["text"]


def test_what_waits_holds_nothing_on_the_device(
    elsewhere: MaxWhisper, short: list[np.ndarray], memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = elsewhere.decoder.runtime
    held: list[tuple[bool, bool]] = []
    forget = runtime.forget_window

    def holds() -> bool:
        return runtime._window.encoded is not None or runtime._window.projected is not None

    def forget_and_look() -> None:
        before = holds()
        forget()
        held.append((before, holds()))

    monkeypatch.setattr(runtime, "forget_window", forget_and_look)
    memory.room = 1
    list(transcribe_many(elsewhere, short[:3], batch_size=3, **OPTIONS))
    assert set(held) == {(True, False)}


def test_leaving_the_loop_ends_those_that_wait(elsewhere: MaxWhisper, short: list[np.ndarray], memory: Memory) -> None:
    memory.room = 1
    many = transcribe_many(elsewhere, [*short, *short], batch_size=4, **OPTIONS)
    next(many)
    assert memory.n_failed > 0
    many.close()
    assert not running()


def test_the_bar_of_the_command_counts_each_file_once(
    greedy: Command, files: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    some = files[0], files[2], files[4]
    expected = greedy(*some)
    memory = Memory(1)
    memory.limit(monkeypatch)
    assert greedy(*some, "--batch_size", "3") == expected
    err = capsys.readouterr().err
    assert memory.n_failed > 0
    assert "3 of 3 files: 100%" in err
    assert "of 4 files" not in err


# A device that nobody asked for


@pytest.fixture
def chosen() -> MaxWhisper:
    """A model on the device that was the best when it was loaded."""
    return accelerate(upstreams_nano(), ELSEWHERE, is_asked_for=False)


def runs_out(model: MaxWhisper, graph: str, monkeypatch: pytest.MonkeyPatch, n_runs: int = 0) -> None:
    """Let memory be full when the model's `graph` has run so often, on the device that the model is on now."""
    execute, full = Model.execute, getattr(model.decoder.runtime.engine(), f"_{graph}")
    n_left = n_runs

    def limited(model: Model, *inputs: Any) -> list[Buffer]:
        nonlocal n_left
        if model is full:
            if n_left == 0:
                raise ValueError(OUT_OF_MEMORY)
            n_left -= 1
        return execute(model, *inputs)

    monkeypatch.setattr(Model, "execute", limited)


@pytest.mark.parametrize(
    ("graph", "n_runs"),
    [("encoder", 0), ("cross_kv", 0), ("decoder", 0), ("step", 0), ("step", 9), ("cross_scores", 0), ("alignment", 0)],
)
def test_the_cpu_goes_on(
    nano: Pair,
    chosen: MaxWhisper,
    recordings: list[np.ndarray],
    graph: str,
    n_runs: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whisper_max_plugin.install()
    runs_out(chosen, graph, monkeypatch, n_runs)
    options = {**OPTIONS, "word_timestamps": True}
    with caplog.at_level(logging.WARNING, "whisper_max_plugin"):
        result = whisper.transcribe(chosen, recordings[1], **options)
    assert_same_result(result, whisper.transcribe(nano.torch, recordings[1], **options))
    assert chosen.decoder.runtime.device is HOST
    (warning,) = caplog.messages
    assert warning.startswith("the model runs on the CPU, ")
    assert "because the memory of cpu is full" in warning


def test_passes_below_decode_go_on_as_well(
    nano: Pair, chosen: MaxWhisper, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tokens, features = np.array([[50258, 50259]]), np.zeros((1, 1500, chosen.dims.n_audio_state), dtype=np.float32)
    given = [torch.from_numpy(each) for each in (tokens, features)]
    cache, _ = chosen.install_kv_cache_hooks()
    runs_out(chosen, "decoder", monkeypatch)
    with pytest.raises(MemoryFullError):  # what a caller keeps in a cache lies on the device
        chosen.decoder(*given, kv_cache=cache)
    assert chosen.decoder.runtime.device is ELSEWHERE
    assert not chosen.logits(*given).sub(nano.torch.logits(*given)).abs().max() > 1e-3
    assert chosen.decoder.runtime.device is HOST


def test_what_the_device_held_is_let_go(
    chosen: MaxWhisper, recordings: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = weakref.ref(chosen.decoder.runtime.engine())
    with monkeypatch.context() as patch:
        runs_out(chosen, "step", patch)
        whisper.transcribe(chosen, recordings[0], **OPTIONS)
    gc.collect()
    assert engine() is None


def test_of_many_recordings_fewer_at_a_time_come_first(
    nano: Pair,
    chosen: MaxWhisper,
    short: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    runs_out(chosen, "step", monkeypatch)
    before = whisper_max_plugin.status()["fallbacks"]
    with caplog.at_level(logging.WARNING, "whisper_max_plugin"):
        finished = list(transcribe_many(chosen, short[:3], batch_size=3, **OPTIONS))
    assert len(finished) == 3
    for each in finished:
        assert_same_result(each.result, whisper.transcribe(nano.torch, short[each.index], **OPTIONS))
    told = [message.partition(":")[2] or message for message in caplog.messages]
    assert told[0] == " 2 at a time now, in place of 3"
    assert told[1] == " 1 at a time now, in place of 2"
    assert "the model runs on the CPU" in caplog.messages[2]
    assert len(told) == 3
    assert whisper_max_plugin.status()["fallbacks"] == before
