"""`whisper_max_plugin.ray` on a Ray of this machine: each recording once, with upstream's result, whoever dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import whisper_max_plugin.ray
from whisper_max_plugin.errors import OptionError, OutputError, PackageError, UnknownModelError
from whisper_max_plugin.ray import Failure, Summary, Transcriber, transcribe_dataset

from ..conftest import Pair
from ..data import NANO, SAMPLE, reference_text
from ..errors import assert_one_sentence
from ..project.snippets import lay_out, snippets
from .fixtures import (
    HELD,
    OPTIONS,
    assert_upstreams,
    cluster,
    copies,
    hold_results,
    lines,
    table,
    transcribing,
)

__all__ = ["cluster"]  # a fixture, found by its name

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of Ray


def test_nothing_is_lost_when_a_worker_dies(nano: Pair, cluster: str, tmp_path: Path) -> None:
    paths = copies(tmp_path / "recordings", 8)
    killed: list[int] = []

    def kill(summary: Summary) -> None:
        if not killed:
            assert summary.done < len(paths)
            killed.extend(transcribing())
            for process in killed:
                os.kill(process, signal.SIGKILL)

    summary = transcribe_dataset(paths, tmp_path / "texts", model=str(NANO), batch_size=2, on_progress=kill, **OPTIONS)
    assert len(killed) == 1
    assert (summary.done, summary.skipped, summary.failed) == (8, 0, [])
    assert_upstreams(nano, table(tmp_path / "texts"), paths)


DRIVER = """
import sys, ray
from whisper_max_plugin.ray import transcribe_dataset
address, output, model, *paths = sys.argv[1:]
ray.init(address, log_to_driver=False)
show = lambda summary: print(summary.done, flush=True)
transcribe_dataset(paths, output, model=model, batch_size=2, temperature=0.0, on_progress=show)
"""


def test_a_run_whose_driver_dies_is_continued(
    nano: Pair, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = copies(tmp_path / "recordings", 8)
    output = tmp_path / "texts.jsonl"
    command = [sys.executable, "-W", "ignore", "-c", DRIVER, cluster, str(output), str(NANO), *paths]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as driver:
        first = driver.stdout.readline()
        driver.kill()
        assert first == "2\n", driver.stderr.read()
    before = output.read_bytes()
    n_before = before.count(b"\n")
    assert 2 <= n_before < 8

    came: list[str] = []
    keep = whisper_max_plugin.ray._Results.keep

    def count(self: Any, rows: list[dict[str, Any]]) -> None:
        came.extend(row["path"] for row in rows)
        keep(self, rows)

    monkeypatch.setattr(whisper_max_plugin.ray._Results, "keep", count)
    summary = transcribe_dataset(paths, output, model=str(NANO), batch_size=2, **OPTIONS)
    assert (summary.done, summary.skipped, summary.failed) == (8 - n_before, n_before, [])
    assert len(came) == 8 - n_before
    assert output.read_bytes().startswith(before)
    assert_upstreams(nano, lines(output), paths)


def test_bytes_and_what_failed(nano: Pair, cluster: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The last run did the first one, and failed with another, which was damaged then."""
    import ray

    first, *others = copies(tmp_path / "recordings", 4)
    damaged = tmp_path / "recordings" / "damaged.mp3"
    damaged.write_text("no audio")
    output = tmp_path / "texts.jsonl"
    hold_results(output, [first])
    failures = tmp_path / "texts.failed.jsonl"
    failures.write_text(json.dumps({"path": others[0], "error": "it was damaged"}))

    dataset = ray.data.read_binary_files(str(tmp_path / "recordings"), include_paths=True)
    summary = transcribe_dataset(dataset, output, model=str(NANO), batch_size=3, **OPTIONS)
    reason = "it is not an audio file that can be decoded (Invalid data found when processing input)"
    assert summary.failed == [Failure(str(damaged), reason)]
    assert lines(failures) == [{"path": str(damaged), "error": reason}]
    assert f"{damaged}: {reason}" in caplog.messages
    assert (summary.done, summary.skipped) == (3, 1)
    held, *came = lines(output)
    assert (held["path"], held["text"]) == (first, HELD)
    assert_upstreams(nano, came, others)


class Crashing(Transcriber):
    """Dies with the recordings that are named so."""

    max_deaths = 2

    def _transcribe_one(self, model: Any, recording: Any, **options: Any) -> dict[str, Any]:
        result = super()._transcribe_one(model, recording, **options)
        if recording.path.endswith("poison.flac"):
            os.kill(os.getpid(), signal.SIGKILL)
        return result


def test_a_recording_that_kills_its_worker_fails_and_no_other(
    nano: Pair, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would try it for ever."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(whisper_max_plugin.ray, "Transcriber", Crashing)
    paths = copies(tmp_path / "recordings", 3)
    poison = str(tmp_path / "recordings" / "poison.flac")
    shutil.copyfile(SAMPLE, poison)
    summary = transcribe_dataset([*paths, poison], tmp_path / "texts.jsonl", model=str(NANO), batch_size=4, **OPTIONS)
    ((path, error),) = [(failure.path, failure.error) for failure in summary.failed]
    assert path == poison
    assert error.startswith("2 processes died while they were transcribing it")
    assert_upstreams(nano, lines(tmp_path / "texts.jsonl"), paths)


def test_what_is_no_recordings_fault_ends_the_run_with_one_sentence(cluster: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError) as raised:
        transcribe_dataset([str(SAMPLE)] * 3, tmp_path / "texts.jsonl", model="nonesuch")
    assert_one_sentence(raised.value, "nonesuch")
    assert (tmp_path / "texts.jsonl").read_bytes() == b""
    deadline = time.monotonic() + 30
    while transcribing() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not transcribing(), "who keeps the error keeps the workers"
    with pytest.raises(OptionError) as raised:
        transcribe_dataset([str(SAMPLE)], tmp_path / "texts.jsonl", model=str(NANO), device="cuda")
    assert_one_sentence(raised.value, "cuda")


def test_what_the_page_tells_people_to_write(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_out(tmp_path)
    (tmp_path / "talks").mkdir()
    shutil.copyfile(SAMPLE, tmp_path / "talks" / "talk.flac")
    monkeypatch.chdir(tmp_path)
    of_paths, of_bytes, of_their_own = (
        replace(snippet, code=snippet.code.replace("/shared/", f"{tmp_path}/"))
        for snippet in snippets("ray.md")
        if snippet.language == "python"
    )
    namespace: dict[str, Any] = {}
    of_paths.run(namespace)
    assert capsys.readouterr().out == "2 []\n"
    of_bytes.run(namespace)
    assert [row["text"].strip() for row in table(tmp_path / "texts")] == [reference_text(SAMPLE)]
    of_their_own.run(namespace)
    assert reference_text(SAMPLE) in capsys.readouterr().out


# Where Ray has nothing to do


@pytest.mark.parametrize(
    ("recordings", "options"),
    [
        (["a.wav"], {"batch_size": 0}),
        (["a.wav"], {"concurrency": 0}),
        (["a.wav"], {"device": "cuda:1"}),
        ("a.wav", {}),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(tmp_path: Path, recordings: Any, options: dict[str, Any]) -> None:
    pytest.importorskip("ray", reason="Ray is not installed, the extra ray")
    with pytest.raises(OptionError) as raised:
        transcribe_dataset(recordings, tmp_path / "texts", model=str(NANO), **options)
    assert_one_sentence(raised.value)
    assert not (tmp_path / "texts").exists()


def test_an_output_of_something_else_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed, the extra ray")
    with pytest.raises(OutputError) as raised:
        transcribe_dataset([str(SAMPLE)], SAMPLE, model=str(NANO))
    assert_one_sentence(raised.value, SAMPLE)


def test_a_name_that_is_not_utf_8_is_a_failure(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed, the extra ray")
    summary = transcribe_dataset([b"caf\xe9.wav".decode(errors="surrogateescape")], tmp_path / "texts", model=str(NANO))
    ((path, error),) = [(failure.path, failure.error) for failure in summary.failed]
    assert path == r"caf\udce9.wav"
    assert "UTF-8" in error


def test_without_ray_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PackageError) as raised:
        transcribe_dataset([str(SAMPLE)], tmp_path / "texts", model=str(NANO))
    assert_one_sentence(raised.value, "whisper_max_plugin[ray]")


def test_nobody_else_pays_for_it() -> None:
    program = (
        "import sys; import whisper_max_plugin.cli, whisper_max_plugin.ray; print({'ray', 'pyarrow'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr


def test_arrow_computes_where_a_model_was_loaded() -> None:
    """Once it could not: it took OpenTelemetry's functions from MAX."""
    pytest.importorskip("pyarrow", reason="pyarrow is not installed, the extra ray")
    program = (
        "import sys, whisper, whisper_max_plugin\n"
        "whisper_max_plugin.install()\n"
        "whisper.load_model(sys.argv[1], device='cpu')\n"
        "import pyarrow as pa, pyarrow.compute as pc\n"
        "print(pc.add(pa.array([1]), 1).to_pylist())"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, str(NANO)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "[2]\n", done.stderr
