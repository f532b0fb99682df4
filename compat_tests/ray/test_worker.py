"""What runs in each process of Ray, here without Ray: batches of recordings, and what becomes of errors."""

from __future__ import annotations

import functools
import json
import platform
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import whisper

from whisper_max_plugin.errors import (
    DeviceError,
    MemoryFullError,
    OptionError,
    UnknownModelError,
    WhisperMaxError,
    WorkerError,
)
from whisper_max_plugin.execution import devices
from whisper_max_plugin.ray.worker import Ledger, Transcriber

from ..conftest import Pair
from ..data import NANO, SAMPLE, SAMPLE_DE, SAMPLE_ES
from ..errors import assert_one_sentence
from .fixtures import OPTIONS, SHORT_SAMPLES, upstreams

pytest.importorskip("ray", reason="Ray is not installed, the extra ray")


@pytest.fixture(scope="module")
def transcriber() -> Transcriber:
    return Transcriber(str(NANO), batch_size=2, options=OPTIONS)


def run(transcriber: Transcriber, paths: list[Any], **columns: list[Any]) -> dict[str, dict[str, Any]]:
    """Return the rows of a batch by their paths."""
    batch = {"path": paths, **columns}
    arrays = {name: np.array(values, dtype=object) for name, values in batch.items()}
    rows = transcriber(arrays).to_pylist()
    assert len(rows) == len(paths)
    return {row["path"]: row for row in rows}


def test_a_batch_has_upstreams_results(nano: Pair, transcriber: Transcriber) -> None:
    rows = run(transcriber, [str(sample) for sample in SHORT_SAMPLES])
    for sample in SHORT_SAMPLES:
        row, result = rows[str(sample)], upstreams(nano, sample.read_bytes())
        assert (row["text"], row["language"], row["error"]) == (result["text"], result["language"], None)
        segments = json.loads(row["segments"])
        assert [segment["tokens"] for segment in segments] == [segment["tokens"] for segment in result["segments"]]
        assert row["duration"] == len(whisper.load_audio(str(sample))) / 16000


def test_without_a_gpu_of_rays_it_is_the_cpu(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """MAX may see a GPU all the same, which Ray has given to nobody, or to another."""
    monkeypatch.setattr(devices, "accelerator_count", lambda: 1)
    transcriber = Transcriber(str(NANO), options=OPTIONS)
    (row,) = run(transcriber, [str(SAMPLE)]).values()
    assert row["error"] is None
    assert transcriber._model is not None
    assert transcriber._model.decoder.runtime.device is devices.HOST
    assert "the model runs on the CPU" not in caplog.text  # as it would for a GPU that was tried


def test_bytes_have_the_results_of_their_files(transcriber: Transcriber) -> None:
    from_file = run(transcriber, [str(SAMPLE_DE)])[str(SAMPLE_DE)]
    from_bytes = run(transcriber, ["any name"], bytes=[SAMPLE_DE.read_bytes()])["any name"]
    assert from_bytes == {**from_file, "path": "any name"}


def test_one_that_cannot_be_read_has_its_reason_and_the_others_their_results(
    transcriber: Transcriber, tmp_path: Path
) -> None:
    text = tmp_path / "text.wav"
    text.write_text("no audio")
    rows = run(transcriber, [str(tmp_path / "nowhere.wav"), str(SAMPLE), str(text)])
    failed = {path: row for path, row in rows.items() if row["error"] is not None}
    assert failed.keys() == {str(tmp_path / "nowhere.wav"), str(text)}
    assert failed[str(tmp_path / "nowhere.wav")]["error"] == "No such file or directory"
    for row in failed.values():
        assert_one_sentence(row["error"])
        assert {row[name] for name in ("text", "language", "segments", "duration")} == {None}
    rows = run(transcriber, ["a", "b"], bytes=[b"", b"no audio"])
    assert [rows[name]["error"] for name in "ab"] == [
        "the file is empty",
        "it is not an audio file that can be decoded (Invalid data found when processing input)",
    ]


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        (
            ("nonesuch",),
            UnknownModelError,
            f"'nonesuch' on {platform.node()}: give the path of a checkpoint that is there on all machines",
        ),
        ((str(NANO), {"beams": 5}), OptionError, "beams"),
        ((str(NANO), {"language": "xx"}), OptionError, "xx"),
        ((str(NANO), {"patience": 2.0}), OptionError, "patience"),
    ],
)
def test_what_is_no_recordings_fault_is_raised_by_the_first_batch(
    arguments: tuple[str, dict[str, Any]], error: type[WhisperMaxError], named: str
) -> None:
    name, *options = arguments
    with pytest.raises(error) as raised:
        run(Transcriber(name, options=options[0] if options else {}), [str(SAMPLE)])
    assert_one_sentence(raised.value, named)


def test_a_dataset_without_paths_is_refused(transcriber: Transcriber) -> None:
    with pytest.raises(OptionError) as raised:
        transcriber({"bytes": np.array([b""], dtype=object)})
    assert_one_sentence(raised.value, "path", "include_paths")


def failing(error: Exception, for_seconds: Callable[[float], bool]) -> Callable[..., Any]:
    """Return a `transcribe` that raises for recordings of some lengths."""
    original = whisper.transcribe

    @functools.wraps(original)
    def transcribe(model: Any, audio: Any, **options: Any) -> Any:
        if for_seconds(len(audio) / 16000):
            raise error
        return original(model, audio, **options)

    return transcribe


def test_an_error_that_others_do_not_have_is_the_recordings(
    transcriber: Transcriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = len(whisper.load_audio(str(SAMPLE))) / 16000
    error = IndexError("of upstream\nin two lines")
    monkeypatch.setattr(whisper, "transcribe", failing(error, lambda length: length == seconds))
    rows = run(transcriber, [str(SAMPLE), str(SAMPLE_ES)])
    assert rows[str(SAMPLE)]["error"] == "IndexError: in two lines"
    assert rows[str(SAMPLE_ES)]["error"] is None


@pytest.mark.parametrize(
    ("error", "is_raised", "lengths"),
    [
        (RuntimeError("a graph failed"), WorkerError, lambda length: True),
        (MemoryError(), WorkerError, lambda length: length > 2),
        (DeviceError("the memory of cuda:0 is full"), DeviceError, lambda length: length > 2),
    ],
    ids=["everywhere", "memory", "device"],
)
def test_an_error_of_the_process_is_raised(
    transcriber: Transcriber,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    is_raised: type[Exception],
    lengths: Callable[[float], bool],
) -> None:
    monkeypatch.setattr(whisper, "transcribe", failing(error, lengths))
    with pytest.raises(is_raised) as raised:
        run(transcriber, [str(SAMPLE_DE), str(SAMPLE_ES)])
    assert_one_sentence(raised.value)


# Recordings that were begun when a process died


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """Return a ledger that notes who was with whom, called as an actor of Ray is."""

    class Noted(Ledger):
        def __init__(self) -> None:
            super().__init__()
            self.at_a_time: list[int] = []

        def begin(self, path: str) -> None:
            super().begin(path)
            self.at_a_time.append(len(self._begun))

    ledger = Noted()
    monkeypatch.setattr("whisper_max_plugin.ray.worker._ray", lambda: types.SimpleNamespace(get=lambda value: value))
    return ledger


class AsActor:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def __getattr__(self, name: str) -> Any:
        return types.SimpleNamespace(remote=getattr(self._ledger, name))


def test_they_are_tried_alone_until_they_count_as_the_cause(ledger: Any) -> None:
    transcriber = Transcriber(str(NANO), device="cpu", batch_size=4, options=OPTIONS, ledger=AsActor(ledger))
    twice, often, *others = paths = [*map(str, SHORT_SAMPLES), str(SAMPLE.with_name("nowhere.wav"))]
    for path, n in {twice: 2, often: transcriber.max_deaths}.items():
        for _ in range(n):
            ledger.begin(path)
    ledger.at_a_time.clear()
    rows = run(transcriber, paths)
    assert rows[twice]["error"] is None
    assert "3 processes died" in rows[often]["error"]
    assert rows[others[0]]["error"] is None
    assert ledger.begun(paths) == [0, transcriber.max_deaths, 0, 0]
    assert len(ledger.at_a_time) == 3
    assert ledger.at_a_time[-1] == 2  # the one that is not tried, and this one


def test_one_that_is_begun_again_since_memory_was_full_is_begun_once(
    ledger: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, begun = whisper.transcribe, []

    @functools.wraps(original)
    def transcribe(model: Any, audio: Any, **options: Any) -> Any:
        begun.append(max(ledger.begun(paths)))
        if len(begun) == 2:  # behind the worker's own trial
            raise MemoryFullError("the memory of cuda:0 is full")
        return original(model, audio, **options)

    transcriber = Transcriber(str(NANO), device="cpu", batch_size=2, options=OPTIONS, ledger=AsActor(ledger))
    paths = [str(SAMPLE_DE), str(SAMPLE_ES)]
    monkeypatch.setattr(whisper, "transcribe", transcribe)
    rows = run(transcriber, paths)
    assert [rows[path]["error"] for path in paths] == [None, None]
    assert begun == [0, 1, 1, 1]
    assert ledger.begun(paths) == [0, 0]
