"""The files that `whisper_max_plugin.ray` writes: whatever ended a run, the next one finds whole results, each once."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from whisper_max_plugin.errors import OutputError
from whisper_max_plugin.ray.output import failures_of, open_output

from ..errors import assert_one_sentence
from .fixtures import lines, table

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed, the extra ray")
pytest.importorskip("pyarrow.parquet")


def rows(*names: str) -> list[dict[str, Any]]:
    segments = [{"id": 0, "start": 0.0, "end": 1.5, "text": "Grüße\n", "tokens": [1, 2]}]
    return [{"path": name, "duration": 1.5, "language": "de", "text": "Grüße", "segments": segments} for name in names]


def held(output: Path) -> list[dict[str, Any]]:
    return lines(output) if output.suffix == ".jsonl" else table(output)


@pytest.fixture(params=["texts.jsonl", "texts", "new/folder/texts.jsonl", "new/folder/texts"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / request.param


def test_what_was_added_is_there_and_known_to_the_next_run(output: Path) -> None:
    first = open_output(output)
    assert first.done == set()
    first.add(rows("a", "b"))
    first.add(rows("c"))
    assert first.done == {"a", "b", "c"}
    first.close()
    assert held(output) == rows("a", "b", "c")
    second = open_output(output)
    assert second.done == {"a", "b", "c"}
    second.add(rows("d"))
    second.close()
    assert held(output) == rows("a", "b", "c", "d")


def test_what_was_added_outlives_a_killed_writer(output: Path) -> None:
    program = (
        "import json, os, signal, sys; from whisper_max_plugin.ray.output import open_output\n"
        "output = open_output(sys.argv[1]); output.add(json.loads(sys.argv[2])); os.kill(os.getpid(), signal.SIGKILL)"
    )
    writer = subprocess.run([sys.executable, "-c", program, str(output), json.dumps(rows("a", "b"))], timeout=60)
    assert writer.returncode == -signal.SIGKILL
    continued = open_output(output)
    assert continued.done == {"a", "b"}
    continued.close()
    assert held(output) == rows("a", "b")


def test_two_runs_do_not_write_at_a_time(output: Path) -> None:
    first = open_output(output)
    with pytest.raises(OutputError, match="another run is writing") as raised:
        open_output(output)
    assert_one_sentence(raised.value, output)
    first.close()
    open_output(output).close()


@pytest.mark.parametrize("length", [1, 5, 9, 40, -1])
def test_a_line_that_was_not_finished_is_taken_back(tmp_path: Path, length: int) -> None:
    path = tmp_path / "texts.jsonl"
    output = open_output(path)
    output.add(rows("a"))
    output.close()
    whole = path.read_bytes()
    path.write_bytes(whole + whole.replace(b'"a"', b'"b"')[:length])
    output = open_output(path)
    assert output.done == {"a"}
    output.add(rows("b"))
    output.close()
    assert lines(path) == rows("a", "b")


@pytest.mark.parametrize("content", ['{"audio": "a.wav"}\n', "a.wav", "\n", '{"path": "a.wav", "text"\n'])
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text(content)
    with pytest.raises(OutputError) as raised:
        open_output(path)
    assert_one_sentence(raised.value, path, "line 1")
    assert path.read_text() == content


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "texts.jsonl"):
        with pytest.raises(OutputError, match="cannot be written") as raised:
            open_output(path)
        assert_one_sentence(raised.value, path)


# Parquet


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whisper_max_plugin.ray.output.ROWS_PER_FILE", 2)


def parts(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.parquet"))


@pytest.mark.usefixtures("small_parts")
def test_parts_are_written_when_there_is_enough_for_one(tmp_path: Path) -> None:
    output = open_output(tmp_path)
    output.add(rows("a"))
    assert parts(tmp_path) == []
    output.add(rows("b", "c"))
    assert parts(tmp_path) == ["part-00000.parquet"]
    assert table(tmp_path) == rows("a", "b", "c")
    output.add(rows("d"))
    output.close()
    assert parts(tmp_path) == ["part-00000.parquet", "part-00001.parquet"]
    assert table(tmp_path) == rows("a", "b", "c", "d")


def test_readers_of_the_folder_see_results_alone(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed, the extra ray")
    output = open_output(tmp_path)
    output.add(rows("a"))
    output.close()
    failures_of(tmp_path).write_text("{}\n")
    (row,) = pandas.read_parquet(tmp_path).to_dict("records")
    assert {**row, "segments": json.loads(row["segments"])} == rows("a")[0]


def test_an_end_between_a_part_and_its_journal_makes_nothing_twice(tmp_path: Path) -> None:
    output = open_output(tmp_path)
    output.add(rows("a", "b"))
    shutil.copy(tmp_path / "_journal.jsonl", tmp_path / "kept")
    output.close()
    (tmp_path / "kept").replace(tmp_path / "_journal.jsonl")
    (tmp_path / "part-00001.tmp").write_bytes(b"the beginning of a part")
    output = open_output(tmp_path)
    assert output.done == {"a", "b"}
    output.add(rows("c"))
    output.close()
    assert table(tmp_path) == rows("a", "b", "c")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("part-00000-5a1f.snappy.parquet", b"PAR1", "is not of a transcription's results"),
        ("others.parquet", b"PAR1", "is not of a transcription's results"),
        ("part-00000.parquet", b"", "is damaged: remove it"),
        ("part-00000.parquet", None, "is damaged: remove it"),
    ],
)
def test_parquet_of_something_else_is_refused_and_left_alone(
    tmp_path: Path, name: str, content: bytes | None, problem: str
) -> None:
    part = tmp_path / name
    if content is None:
        pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), part)
    else:
        part.write_bytes(content)
    before = part.read_bytes()
    for _ in range(2):  # and the first time leaves no lock
        with pytest.raises(OutputError, match=problem) as raised:
            open_output(tmp_path)
        assert_one_sentence(raised.value, part)
    assert part.read_bytes() == before
