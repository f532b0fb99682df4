"""Recordings that do not fit into a device's memory together: fewer at a time, and no recording is lost."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import whisper
from max.driver import Buffer
from max.engine import Model

from whisper_max_plugin import transcribe_many
from whisper_max_plugin.errors import MemoryFullError
from whisper_max_plugin.inference.model import MaxWhisper

from ..commands.fixtures import Command, command
from ..compare import assert_same_result
from ..conftest import Pair
from ..devices.fixtures import elsewhere
from ..errors import assert_one_sentence
from ..seam.activation_fixtures import switched_off
from .many_fixtures import OPTIONS, files, greedy, recordings, running

__all__ = ["command", "elsewhere", "files", "greedy", "recordings", "switched_off"]  # fixtures, found by name


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
                raise ValueError("CUDA call failed: CUDA_ERROR_OUT_OF_MEMORY (out of memory)")
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
