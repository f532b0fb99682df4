"""What is told of upstream's `transcribe()` while it runs: where it is, and the segments that it will return."""

from __future__ import annotations

import importlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import whisper

from whisper_max_plugin.errors import UnsupportedWhisperError
from whisper_max_plugin.windows import Window, observed

from ..compare import skip_unless_upstream_knows
from ..conftest import Pair
from ..data import SAMPLE_LONG

MODULE = importlib.import_module("whisper.transcribe")
OPTIONS = {"language": "en", "temperature": 0.0, "fp16": False}


@pytest.fixture(scope="module")
def audio() -> np.ndarray:
    """75 seconds of the long sample: three windows or four."""
    return whisper.load_audio(str(SAMPLE_LONG))[: 75 * 16000]


def watch(model: Any, audio: np.ndarray, **options: Any) -> tuple[list[Window], dict[str, Any]]:
    windows: list[Window] = []
    with observed(windows.append):
        result = whisper.transcribe(model, audio, **{**OPTIONS, **options})
    return windows, result


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that upstream cuts out for each window."""
    begins: list[float] = []
    original = MODULE.pad_or_trim

    def pad_or_trim(array: Any, length: int) -> Any:
        begins.append(array.shape[-1] / 100)
        return original(array, length)

    monkeypatch.setattr(MODULE, "pad_or_trim", pad_or_trim)
    return begins


@pytest.mark.parametrize("words", [False, True])
def test_the_segments_of_all_windows_are_those_of_the_result(nano: Pair, audio: np.ndarray, words: bool) -> None:
    windows, result = watch(nano.max, audio, word_timestamps=words)
    assert [segment for window in windows for segment in window.segments] == result["segments"]
    assert len([window for window in windows if window.segments]) >= 3
    assert all("words" in segment for window in windows for segment in window.segments) or not words
    plain = whisper.transcribe(nano.max, audio, **OPTIONS, word_timestamps=words)
    assert result == plain


def test_each_call_says_where_upstream_is(nano: Pair, audio: np.ndarray) -> None:
    windows, result = watch(nano.max, audio)
    seeks = list(dict.fromkeys(segment["seek"] / 100 for segment in result["segments"]))
    assert [window.seconds for window in windows] == [*seeks, 75.0]
    assert windows[0].segments == []
    assert {(window.duration, window.language) for window in windows} == {(75.0, "en")}
    for window in windows:
        assert all(segment["seek"] / 100 < window.seconds for segment in window.segments)


def test_windows_without_speech_are_told(nano: Pair, cuts: list[float]) -> None:
    # With thresholds that every window meets, upstream skips all of them, and its own bar never moves.
    windows, result = watch(nano.max, np.zeros(70 * 16000, np.float32), no_speech_threshold=-1, logprob_threshold=None)
    assert result["segments"] == []
    assert len(cuts) == 3
    assert [window.seconds for window in windows] == [0, 30, 60, 70]
    assert [window.segments for window in windows] == [[]] * 4


def test_clips_are_told_by_their_place_in_the_audio(nano: Pair, audio: np.ndarray) -> None:
    skip_unless_upstream_knows({"clip_timestamps": 0})
    windows, result = watch(nano.max, audio, clip_timestamps="10,20,50,60")
    assert windows[0].seconds == 10
    assert 50 in [window.seconds for window in windows]
    assert windows[-1].seconds == 75
    assert [segment for window in windows for segment in window.segments] == result["segments"]


def test_the_detection_of_the_language_is_no_window(nano: Pair, audio: np.ndarray) -> None:
    windows, result = watch(nano.max, audio, language=None)
    assert {window.language for window in windows} == {result["language"]}
    assert [window.seconds for window in windows][:1] == [0]
    assert [window.seconds for window in windows] == sorted({window.seconds for window in windows})


def test_audio_without_a_window_is_not_told(nano: Pair) -> None:
    windows, result = watch(nano.max, np.zeros(0, np.float32))
    assert windows == []
    assert result["segments"] == []


def test_upstreams_model_is_observed_without_the_plugin(nano: Pair, audio: np.ndarray) -> None:
    windows, result = watch(nano.torch, audio)
    assert [segment for window in windows for segment in window.segments] == result["segments"]


def test_an_error_of_the_observer_ends_the_transcription_and_its_observation(nano: Pair, audio: np.ndarray) -> None:
    told: list[Window] = []

    def stop_at_the_second(window: Window) -> None:
        told.append(window)
        if len(told) == 2:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"), observed(stop_at_the_second):
        whisper.transcribe(nano.max, audio, **OPTIONS)
    whisper.transcribe(nano.max, audio, **OPTIONS)
    assert len(told) == 2


def test_other_threads_are_not_observed(nano: Pair, audio: np.ndarray) -> None:
    mine: list[Window] = []
    theirs: list[Window] = []
    results: list[dict[str, Any]] = []

    def observe_another_file() -> None:
        with observed(theirs.append):
            results.append(whisper.transcribe(nano.max, audio[: 40 * 16000], **OPTIONS))

    def observe_nothing() -> None:
        results.append(whisper.transcribe(nano.max, audio[: 20 * 16000], **OPTIONS))

    threads = [threading.Thread(target=target) for target in (observe_another_file, observe_nothing)]
    with observed(mine.append):
        for thread in threads:
            thread.start()
        result = whisper.transcribe(nano.max, audio, **OPTIONS)
        for thread in threads:
            thread.join()
    assert [segment for window in mine for segment in window.segments] == result["segments"]
    assert {window.duration for window in mine} == {75.0}
    assert {window.duration for window in theirs} == {40.0}
    assert sum(len(other["segments"]) for other in results) > sum(len(window.segments) for window in theirs) > 0


def test_whisper_is_as_before_when_nobody_watches(nano: Pair, audio: np.ndarray) -> None:
    before = dict(vars(MODULE))
    with observed(print), observed(print):
        assert MODULE.pad_or_trim is not before["pad_or_trim"]
    assert dict(vars(MODULE)) == before


def test_another_patch_of_what_is_watched_stays(nano: Pair, audio: np.ndarray, cuts: list[float]) -> None:
    windows, result = watch(nano.max, audio)
    assert len(cuts) == len(windows) - 1
    with observed(windows.append):
        over_ours, inner = MODULE.pad_or_trim, []
        MODULE.pad_or_trim = lambda array, length: inner.append(1) or over_ours(array, length)  # and stays
    again, same_result = watch(nano.max, audio)
    assert same_result == result
    assert again == windows
    assert len(inner) == len(windows) - 1


@pytest.mark.parametrize("name", ["all_segments", "seek"])
def test_an_unknown_loop_is_an_error(nano: Pair, audio: np.ndarray, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(MODULE.__file__).read_text().replace(name, f"{name}_of_another_release")
    namespace = {**vars(MODULE)}
    exec(compile(source, "whisper/transcribe.py", "exec"), namespace)
    monkeypatch.setattr(MODULE, "transcribe", namespace["transcribe"])
    monkeypatch.setitem(namespace, "pad_or_trim", lambda array, length: MODULE.pad_or_trim(array, length))
    with pytest.raises(UnsupportedWhisperError, match=r"lacks variables.*pip install openai-whisper==") as error:  # noqa: SIM117
        with observed(print):
            MODULE.transcribe(nano.max, audio, **OPTIONS)
    assert name in str(error.value)
