"""`transcribe_stream`: the segments of upstream's `transcribe()`, each when its window is done."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
import whisper

import whisper_max_plugin
from whisper_max_plugin import transcribe_stream

from ..compare import assert_same_result, skip_unless_upstream_knows
from ..conftest import Pair
from ..data import NANO, ROOT, SAMPLE, SAMPLE_LONG, reference_text

OPTIONS: dict[str, Any] = {"language": "en", "fp16": False}


@pytest.fixture(scope="module")
def audio() -> np.ndarray:
    """75 seconds of the long sample: three windows or four."""
    return whisper.load_audio(str(SAMPLE_LONG))[: 75 * 16000]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert threads() == []


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "whisper-max-stream"]


class Windows:
    """Lets each window but the first be decoded only when it is told to, and counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: whisper.Whisper) -> None:
        self.begun = 0
        self.allowed = threading.Semaphore(1)
        decode = type(model).decode

        def decode_when_allowed(*arguments: Any) -> Any:
            self.begun += 1
            assert self.allowed.acquire(timeout=30)
            return decode(*arguments)

        monkeypatch.setattr(type(model), "decode", decode_when_allowed)


# The same segments


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"word_timestamps": True},
        {"word_timestamps": True, "hallucination_silence_threshold": 0.5},
        {"clip_timestamps": [5, 20, 40, 70]},
        {"language": None, "temperature": 0.0, "beam_size": 2},
        {"condition_on_previous_text": False, "without_timestamps": True, "temperature": 0.0},
        {"task": "translate", "initial_prompt": "the garden", "temperature": 0.0},
    ],
    ids=lambda options: ",".join(options) or "defaults",
)
def test_the_segments_and_the_result_are_those_of_transcribe(
    nano: Pair, audio: np.ndarray, options: dict[str, Any]
) -> None:
    skip_unless_upstream_knows(options)
    options = {**OPTIONS, **options}
    stream = transcribe_stream(nano.max, audio, **options)
    segments = list(stream)
    expected = whisper.transcribe(nano.torch, audio, **options)
    assert stream.result is not None
    assert_same_result(stream.result, expected)
    assert segments == stream.result["segments"]
    assert len(segments) > 1


def test_sampling_takes_the_same_tokens(nano: Pair, audio: np.ndarray) -> None:
    options = {**OPTIONS, "temperature": 0.8, "best_of": 2, "sample_len": 20}
    torch.manual_seed(5)
    segments = list(transcribe_stream(nano.max, audio[: 40 * 16000], **options))
    torch.manual_seed(5)
    assert segments == whisper.transcribe(nano.max, audio[: 40 * 16000], **options)["segments"]


def test_a_path_object(nano: Pair) -> None:
    assert [segment["text"] for segment in transcribe_stream(nano.max, SAMPLE, **OPTIONS)] == [
        segment["text"] for segment in transcribe_stream(nano.max, str(SAMPLE), **OPTIONS)
    ]


def test_a_path_and_upstreams_own_model(nano: Pair) -> None:
    stream = transcribe_stream(nano.torch, str(SAMPLE), **OPTIONS, temperature=0.0)
    segments = list(stream)
    assert stream.result == whisper.transcribe(nano.torch, str(SAMPLE), **OPTIONS, temperature=0.0)
    assert segments == stream.result["segments"]


def test_two_streams_of_one_model_do_not_mix(nano: Pair, audio: np.ndarray) -> None:
    parts = [audio[: 45 * 16000], audio[20 * 16000 :]]
    streams = [transcribe_stream(nano.max, part, **OPTIONS) for part in parts]
    found: list[list[dict[str, Any]]] = [[], []]
    waiting = [0, 1]
    while waiting:
        for index in tuple(waiting):
            segment = next(streams[index], None)
            found[index].append(segment) if segment else waiting.remove(index)
    assert found == [whisper.transcribe(nano.max, part, **OPTIONS)["segments"] for part in parts]


def test_audio_without_speech_has_no_segment(nano: Pair) -> None:
    stream = transcribe_stream(nano.max, np.zeros(0, np.float32), **OPTIONS)
    assert list(stream) == []
    assert stream.result == {"text": "", "segments": [], "language": "en"}


def test_where_somebody_replaced_transcribe_segments_come_at_the_end(
    nano: Pair, audio: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = {"text": " a b", "segments": [{"text": " a"}, {"text": " b"}], "language": "en"}
    monkeypatch.setattr(whisper, "transcribe", lambda *arguments, **options: result)
    stream = transcribe_stream(nano.max, audio)
    assert list(stream) == result["segments"]
    assert stream.result is result


# As they come


def test_a_segment_comes_when_its_window_is_done(
    nano: Pair, audio: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = whisper.transcribe(nano.max, audio, **OPTIONS, temperature=0.0)["segments"]
    of_the_first = [segment for segment in expected if segment["seek"] == 0]
    windows = Windows(monkeypatch, nano.max)
    with transcribe_stream(nano.max, audio, **OPTIONS, temperature=0.0) as stream:
        assert [next(stream) for _ in of_the_first] == of_the_first
        assert windows.begun <= 2  # the second waits
        assert (stream.language, stream.duration) == ("en", 75.0)
        assert stream.seconds == expected[len(of_the_first)]["seek"] / 100
        assert stream.result is None
        for _ in range(5):
            windows.allowed.release()
        assert list(stream) == expected[len(of_the_first) :]
        assert stream.seconds == 75.0
        assert stream.result is not None


def test_nothing_begins_before_the_first_segment_is_asked_for(nano: Pair, audio: np.ndarray) -> None:
    stream = transcribe_stream(nano.max, audio, **OPTIONS)
    assert threads() == []
    assert (stream.language, stream.seconds, stream.duration, stream.result) == (None, 0.0, 0.0, None)
    stream.close()
    assert list(stream) == []


# Ends


def test_closing_ends_the_work_after_the_current_window(
    nano: Pair, audio: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = Windows(monkeypatch, nano.max)
    with transcribe_stream(nano.max, audio, **OPTIONS) as stream:
        next(stream)
        while windows.begun < 2:
            time.sleep(0.001)
        windows.allowed.release()
    assert windows.begun == 2
    assert threads() == []
    assert list(stream) == []
    assert stream.result is None


def test_another_thread_may_close_it(nano: Pair, audio: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = Windows(monkeypatch, nano.max)
    stream = transcribe_stream(nano.max, audio, **OPTIONS)
    first = next(stream)
    closing = threading.Thread(target=stream.close)
    rest: list[Any] = []
    reading = threading.Thread(target=lambda: rest.extend(stream))
    reading.start()
    while windows.begun < 2:
        time.sleep(0.001)
    closing.start()
    while not stream._ended:
        time.sleep(0.001)
    windows.allowed.release()
    for thread in (closing, reading):
        thread.join(30)
        assert not thread.is_alive()
    assert first not in rest
    assert stream.result is None
    assert windows.begun == 2


def test_a_forgotten_stream_ends_too(nano: Pair, audio: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = Windows(monkeypatch, nano.max)
    stream = transcribe_stream(nano.max, audio, **OPTIONS)
    next(stream)
    (thread,) = threads()
    del stream
    gc.collect()
    windows.allowed.release()
    thread.join(30)
    assert not thread.is_alive()
    assert windows.begun == 2


def test_a_program_ends_that_did_not_read_to_the_end() -> None:
    program = f"""
import numpy, sys, whisper, whisper_max_plugin.auto
model = whisper.load_model({str(NANO)!r})
audio = numpy.tile(whisper.load_audio({str(SAMPLE_LONG)!r}), 20)  # an hour
stream = whisper_max_plugin.transcribe_stream(model, audio, language="en", fp16=False)
print(next(stream)["text"])
sys.exit("enough")
"""
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (1, "enough\n")
    assert done.stdout.strip()
    assert time.monotonic() - begin < 60


def test_a_thread_that_outlives_the_main_one_gets_all_segments() -> None:
    program = f"""
import threading, whisper, whisper_max_plugin.auto
model = whisper.load_model({str(NANO)!r})
def work():
    threading.main_thread().join()
    stream = whisper_max_plugin.transcribe_stream(model, {str(SAMPLE_LONG)!r}, language="en", fp16=False)
    print(sum(1 for _ in stream), len(stream.result["segments"]))
threading.Thread(target=work).start()
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    n_segments, n_in_result = map(int, done.stdout.split())
    assert n_segments == n_in_result > 40


def test_several_threads_may_read_one_stream(nano: Pair, audio: np.ndarray) -> None:
    expected = whisper.transcribe(nano.max, audio, **OPTIONS)["segments"]
    stream = transcribe_stream(nano.max, audio, **OPTIONS)
    segments: list[dict[str, Any]] = []
    readers = [threading.Thread(target=lambda: segments.extend(stream), daemon=True) for _ in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(30)
        assert not reader.is_alive()
    assert sorted(segment["id"] for segment in segments) == [segment["id"] for segment in expected]


def test_each_segment_may_be_asked_for_by_a_thread_of_its_own(nano: Pair, audio: np.ndarray) -> None:
    """As a server's pool does, whose threads end when they were idle; work goes on meanwhile."""
    stream = transcribe_stream(nano.max, audio, **OPTIONS)
    found: list[dict[str, Any]] = []
    while stream.result is None:
        asking = threading.Thread(target=lambda: found.extend(islice(stream, 1)))
        asking.start()
        asking.join()
        for working in threads():
            working.join()
    assert found == stream.result["segments"]
    assert len(found) > 1


# Errors


@pytest.mark.parametrize(
    ("audio", "options"),
    [
        ("missing.wav", {}),
        (np.zeros(16000, np.float32), {"beam": 5}),
        (np.zeros(16000, np.float32), {"language": "xx"}),
        (np.zeros(16000, np.float32), {"temperature": 0.0, "beam_size": 2, "best_of": 2, "patience": -1.0}),
        (None, {}),
    ],
    ids=["missing file", "unknown option", "unknown language", "options that do not go together", "no audio"],
)
def test_errors_are_upstreams_and_come_where_a_segment_is_asked_for(
    nano: Pair, audio: Any, options: dict[str, Any]
) -> None:
    options = {**OPTIONS, **options}
    stream = transcribe_stream(nano.max, audio, **options)
    with pytest.raises(Exception) as ours:  # noqa: PT011 - which one, upstream tells
        next(stream)
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        whisper.transcribe(nano.torch, audio, **options)
    assert type(ours.value) is type(theirs.value)
    assert str(ours.value) == str(theirs.value)
    assert "transcribe" in [entry.name for entry in ours.traceback]
    assert list(stream) == []
    assert stream.result is None


def test_an_error_in_the_middle_comes_behind_the_segments_before_it(
    nano: Pair, audio: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = whisper.transcribe(nano.max, audio, **OPTIONS, temperature=0.0)["segments"]
    decode, calls = type(nano.max).decode, []

    def decode_once(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError("full")
        return decode(*arguments)

    monkeypatch.setattr(type(nano.max), "decode", decode_once)
    stream = transcribe_stream(nano.max, audio, **OPTIONS, temperature=0.0)
    found: list[dict[str, Any]] = []
    with pytest.raises(MemoryError, match="full"):
        found.extend(stream)
    assert found == [segment for segment in expected if segment["seek"] == 0]


def test_the_package_imports_nothing_for_it() -> None:
    program = (
        "import sys, whisper_max_plugin; whisper_max_plugin.transcribe_stream; "
        "assert not {'torch', 'max', 'whisper', 'whisper_max_plugin.stream'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert "transcribe_stream" in whisper_max_plugin.__all__


def test_the_example_in_the_docs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs" / "streaming.md").read_text()
    stream, live = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(stream, namespace)
    lines = capsys.readouterr().out.splitlines()
    shown = re.search(r"```\n(\d\.\d s: .*?)```", page, re.DOTALL)[1].splitlines()
    assert [line.partition(" s: ")[2] for line in lines] == [line.partition(" s: ")[2] for line in shown]
    exec(live, namespace)
    assert capsys.readouterr().out.splitlines()[-1].strip() == reference_text(SAMPLE)
