"""`transcribe_many`: recordings that are decoded together get what each of them gets alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import whisper
import whisper.timing

import whisper_max_plugin
from whisper_max_plugin import transcribe_many
from whisper_max_plugin.errors import OptionError
from whisper_max_plugin.execution.engine import Engine
from whisper_max_plugin.inference.model import MaxWhisper

from ..compare import assert_same_result, skip_unless_upstream_knows
from ..conftest import Pair
from ..data import SAMPLE, SAMPLE_DE, SAMPLE_ES
from ..devices.fixtures import elsewhere
from ..errors import assert_one_sentence
from ..seam.activation_fixtures import switched_off
from .many_fixtures import OPTIONS, recordings, running, steps

__all__ = ["elsewhere", "recordings", "switched_off"]  # fixtures, found by name


def together(model: MaxWhisper, audios: list[Any], batch_size: int = 4, **options: Any) -> list[dict[str, Any]]:
    """Return the results in the order of the recordings, none of which may have an error."""
    finished = list(transcribe_many(model, audios, batch_size=batch_size, **options))
    assert [each.error for each in finished] == [None] * len(audios)
    assert all(each.audio is audios[each.index] for each in finished)
    return [each.result or {} for each in sorted(finished, key=lambda each: each.index)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beam_size": 5, "word_timestamps": True},
        {"beam_size": 3, "patience": 2.0, "initial_prompt": "The old man."},
        {"without_timestamps": True, "condition_on_previous_text": False},
        {"task": "translate", "suppress_tokens": "", "prefix": "The"},
        {"clip_timestamps": "1,3"},
    ],
    ids=lambda options: "-".join(options) or "defaults",
)
def test_results_are_upstreams(nano: Pair, recordings: list[np.ndarray], options: dict[str, Any]) -> None:
    skip_unless_upstream_knows(options)
    some = recordings[::2] if options else recordings
    results = together(nano.max, some, 3, **OPTIONS, **options)
    for recording, result in zip(some, results, strict=True):
        assert_same_result(result, whisper.transcribe(nano.torch, recording, **OPTIONS, **options))


@pytest.mark.parametrize("batch_size", [1, 2, 20])
def test_any_number_at_a_time(nano: Pair, recordings: list[np.ndarray], batch_size: int) -> None:
    results = together(nano.max, recordings, batch_size, **OPTIONS)
    assert results == [whisper.transcribe(nano.max, recording, **OPTIONS) for recording in recordings]


def test_a_step_serves_several_recordings(nano: Pair, recordings: list[np.ndarray]) -> None:
    before = steps()
    for recording in recordings:
        whisper.transcribe(nano.max, recording, **OPTIONS)
    alone = steps() - before
    together(nano.max, recordings, 7, **OPTIONS)
    assert steps() - before - alone < alone / 2


def test_path_objects(nano: Pair) -> None:
    (by_path,), (by_name,) = together(nano.max, [SAMPLE], **OPTIONS), together(nano.max, [str(SAMPLE)], **OPTIONS)
    assert_same_result(by_path, by_name)


def test_each_has_its_own_language(nano: Pair) -> None:
    audios = [str(path) for path in (SAMPLE_DE, SAMPLE, SAMPLE_ES)]
    results = together(nano.max, audios, fp16=False, temperature=0.0)
    assert [result["language"] for result in results] == ["de", "en", "es"]
    for audio, result in zip(audios, results, strict=True):
        assert_same_result(result, whisper.transcribe(nano.torch, audio, fp16=False, temperature=0.0))


def test_each_falls_back_to_its_own_temperature(nano: Pair, recordings: list[np.ndarray]) -> None:
    short = [recording[: 9 * 16000] for recording in recordings]  # of one window, which nothing sampled precedes
    scores = [whisper.transcribe(nano.max, recording, **OPTIONS)["segments"][0]["avg_logprob"] for recording in short]
    limit = float(np.median(scores))
    options = {**OPTIONS, "temperature": (0.0, 0.4), "logprob_threshold": limit - 1e-4, "best_of": 3}
    results = together(nano.max, short, **options)
    temperatures = [{segment["temperature"] for segment in result["segments"]} for result in results]
    assert temperatures == [{0.0} if score >= limit - 1e-4 else {0.4} for score in scores]
    assert {0.4} in temperatures


def test_a_window_is_encoded_once(nano: Pair, recordings: list[np.ndarray]) -> None:
    options = {**OPTIONS, "word_timestamps": True}
    counts = []
    for run in (
        lambda: [whisper.transcribe(nano.max, x, **options) for x in recordings],
        lambda: together(nano.max, recordings, **options),
    ):
        before = whisper_max_plugin.status()["graph_runs"]
        run()
        after = whisper_max_plugin.status()["graph_runs"]
        counts.append([after[name] - before.get(name, 0) for name in ("encoder", "cross_kv", "prefill")])
    assert counts[0] == counts[1]


def test_words_are_found_for_one_at_a_time(
    nano: Pair, recordings: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, switched_off: None
) -> None:
    """Upstream's function hooks the model that all threads share, whether the plugin is installed or not."""
    original, inside, most = whisper.timing.find_alignment, 0, 0

    def find_alignment(*arguments: Any, **options: Any) -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.02)
        try:
            return original(*arguments, **options)
        finally:
            inside -= 1

    monkeypatch.setattr(whisper.timing, "find_alignment", find_alignment)
    options = {**OPTIONS, "word_timestamps": True}
    results = together(nano.max, recordings, 3, **options)
    assert most == 1
    assert whisper.timing.find_alignment is find_alignment
    assert results[0] == whisper.transcribe(nano.max, recordings[0], **options)


def test_on_a_device_with_memory_of_its_own(nano: Pair, elsewhere: MaxWhisper, recordings: list[np.ndarray]) -> None:
    """Where steps run ahead of the host."""
    for options in ({}, {"beam_size": 2}):
        results = together(elsewhere, recordings[::2], 3, **OPTIONS, **options)
        for recording, result in zip(recordings[::2], results, strict=True):
            assert_same_result(result, whisper.transcribe(nano.torch, recording, **OPTIONS, **options))


# What goes wrong


def test_one_that_cannot_be_read_does_not_stop_the_others(nano: Pair, recordings: list[np.ndarray]) -> None:
    audios = ["nowhere.wav", *recordings[:3], np.full(16000, np.nan, dtype=np.float32), torch.from_numpy(recordings[3])]
    finished = {each.index: each for each in transcribe_many(nano.max, audios, batch_size=2, **OPTIONS)}
    assert sorted(finished) == [0, 1, 2, 3, 4, 5]
    assert [index for index, each in finished.items() if each.error is not None] == [0, 4]
    assert finished[0].result is finished[4].result is None
    for index in (1, 2, 3, 5):
        assert_same_result(finished[index].result, whisper.transcribe(nano.torch, audios[index], **OPTIONS))


def test_a_step_that_fails_is_an_error_of_all_that_it_served(
    nano: Pair, recordings: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, n_served = Engine.step, 0

    def step(self: Engine, inputs: Any, n_steps: int = 1) -> None:
        nonlocal n_served
        n_windows = inputs.buffers[0].shape[0]
        if not n_served and n_windows > 1:
            n_served = n_windows
            raise RuntimeError("a graph failed")
        original(self, inputs, n_steps)

    monkeypatch.setattr(Engine, "step", step)
    finished = list(transcribe_many(nano.max, recordings, batch_size=3, **OPTIONS))
    errors = [each for each in finished if each.error is not None]
    assert [str(each.error) for each in errors] == ["a graph failed"] * n_served
    assert n_served in (2, 3)  # whoever is still at its first pass is not concerned
    assert len(finished) == len(recordings)


def eventually(holds: Callable[[], bool]) -> bool:
    """Return whether something becomes true within half a minute."""
    end = time.monotonic() + 30
    while not holds() and time.monotonic() < end:
        time.sleep(0.01)
    return holds()


class Asked:
    """A hundred recordings, which count how many of them were asked for."""

    def __init__(self) -> None:
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        for _ in range(100):
            self.number += 1
            yield f"{self.number}.wav"


def test_where_somebody_replaced_transcribe_it_is_called(nano: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whisper, "transcribe", lambda _model, audio: {"text": audio})
    assert [done.result for done in transcribe_many(nano.max, ["a.wav"])] == [{"text": "a.wav"}]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_recordings_are_asked_for_when_there_is_room(
    nano: Pair, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice as many as are worked on at a time lie between what was asked for and what was claimed."""
    monkeypatch.setattr(whisper, "transcribe", lambda _model, audio: {"text": audio})
    asked = Asked()
    many = transcribe_many(nano.max, asked, batch_size=batch_size)
    for n_claimed in (1, 2, 3):
        next(many)
        assert eventually(lambda most=n_claimed + 2 * batch_size: asked.number == most)
    time.sleep(0.2)
    assert asked.number == 3 + 2 * batch_size
    many.close()  # wakes those that wait for room
    assert not running()


def test_all_work_while_results_are_claimed(nano: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    everybody = threading.Barrier(4, timeout=30)

    def transcribe(_model: Any, audio: str) -> dict[str, Any]:
        everybody.wait()
        return {"text": audio}

    monkeypatch.setattr(whisper, "transcribe", transcribe)
    finished = list(transcribe_many(nano.max, Asked(), batch_size=4))
    assert [each.error for each in finished] == [None] * 100


def test_whoever_waits_for_room_does_not_hold_up_those_who_decode(
    nano: Pair, recordings: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    transcribe, finished = whisper.transcribe, []

    def only_arrays(model: Any, audio: Any, **options: Any) -> dict[str, Any]:
        result = {} if isinstance(audio, str) else transcribe(model, audio, **options)
        finished.append(audio)
        return result

    monkeypatch.setattr(whisper, "transcribe", only_arrays)
    many = transcribe_many(nano.max, [recordings[1], *Asked()], batch_size=2, **OPTIONS)
    next(many)
    assert eventually(lambda: any(audio is recordings[1] for audio in finished))
    (result,) = (done.result for done in many if done.index == 0)
    assert_same_result(result, transcribe(nano.torch, recordings[1], **OPTIONS))


def test_an_error_of_the_iterable_is_raised(nano: Pair, recordings: list[np.ndarray]) -> None:
    def audios() -> Iterator[np.ndarray]:
        yield recordings[0]
        raise LookupError("no more recordings")

    with pytest.raises(LookupError, match="no more recordings"):
        list(transcribe_many(nano.max, audios(), batch_size=2, **OPTIONS))
    assert not running()


def test_no_recordings(nano: Pair) -> None:
    assert list(transcribe_many(nano.max, [])) == []


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((["a.wav"],), {"batch_size": 0}),
        ((["a.wav"],), {"batch_size": "2"}),
        ((["a.wav"],), {"batch_size": None}),
        ((["a.wav"],), {"batch_size": 1.5}),
        (("a.wav",), {}),
        ((b"a.wav",), {}),
        ((Path("a.wav"),), {}),
        ((np.zeros(16000, np.float32),), {}),
        ((torch.zeros(16000),), {}),
        ((["a.wav"],), {"beams": 5}),
        ((["a.wav"],), {"audio": "b.wav"}),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(nano: Pair, arguments: Any, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError) as raised:
        transcribe_many(nano.max, *arguments, **options)
    assert_one_sentence(str(raised.value))


def test_a_model_of_torch_is_refused(nano: Pair) -> None:
    with pytest.raises(OptionError, match='backend="max"') as raised:
        transcribe_many(nano.torch, ["a.wav"])
    assert_one_sentence(str(raised.value))
