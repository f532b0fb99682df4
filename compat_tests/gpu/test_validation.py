"""The script that validates this package on a machine with a GPU, run from start to end on the CPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from max import driver

from whisper_max_plugin.execution import devices

from ..conftest import Pair
from ..data import NANO
from ..devices.fixtures import ELSEWHERE
from ..devices.recorder import RECORDS, Recorder, recorder

__all__ = ["recorder"]  # a fixture, found by name

FOLDER = Path(__file__).parent
BREAKS_PARITY = """
from whisper_max_plugin.import_hook import when_imported

when_imported("whisper_max_plugin.doctor.comparison", lambda comparison: comparison.LIMITS.update(float32=0.0))
"""


@pytest.fixture(scope="module")
def validate() -> ModuleType:
    return module_of("validate")


def module_of(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def run(out: Path, *options: str, path: Path | None = None) -> tuple[int, dict[str, Any], str]:
    """Return the script's exit status and both of its files."""
    environment = {**os.environ, "PYTHON": sys.executable}
    if path is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")])
    command = ["bash", str(FOLDER / "run.sh"), str(out), "--device", "cpu", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads((out / "validation.json").read_text()), (out / "validation.md").read_text()


def results(found: dict[str, Any]) -> dict[str, str]:
    return {step["name"]: step["result"] for step in found["steps"]}


def test_correctness_alone(nano: Pair, tmp_path: Path) -> None:  # nano's graphs are compiled, and are named
    status, found, table = run(tmp_path / "out", "--sizes", "nano", "--bench-sizes", "none", "--recordings", "none")
    assert results(found) == dict.fromkeys(["facts", "copy", "parity nano float32", "transcripts float32"], "pass")
    assert status == 0
    assert "3 of 3 steps about correctness passed." in table
    steps = {step["name"]: step for step in found["steps"]}
    assert all(step["seconds"] > 0 for step in steps.values())
    assert steps["facts"]["found"]["compiled"] == "nano in float32"
    (parity,) = steps["parity nano float32"]["found"]["parity"]["models"]
    names = {"mel", "encoder", "prefill", "steps", "beams", "ranking", "alignment", "words"}
    assert {row["name"] for row in parity["rows"]} == names
    transcripts = steps["transcripts float32"]["found"]["transcripts"]
    assert {row["options"] for row in transcripts} >= {"greedy", "beam 5", "prompt", "word timestamps"}
    assert all(row["equal_tokens"] == row["tokens"] > 50 for row in transcripts)


@pytest.mark.large
def test_what_fails_is_reported_and_the_rest_still_runs(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BREAKS_PARITY)
    options = ["--sizes", "nano", "--bench-sizes", "nano", "--recordings", "nano:5"]
    options += ["--bench-options", "--rounds 1 --tokens 20 --threads 1 --peers none --stages step"]
    status, found, table = run(tmp_path / "out", *options, path=tmp_path)
    assert status == 1
    passed = dict.fromkeys(["facts", "copy", "transcripts float32", "bench nano", "transcribe nano 5 s"], "pass")
    assert results(found) == {**passed, "parity nano float32": "FAIL"}
    assert list(results(found))[2] == "parity nano float32"
    problem = next(step["problem"] for step in found["steps"] if step["name"] == "parity nano float32")
    assert "encoder " in problem
    assert "| parity nano float32 | FAIL | " in table
    assert problem in table
    assert "2 of 3 steps about correctness passed." in table
    assert table.count("| nano | greedy step | ") == 2
    assert table.count("| nano 5 s | ") == 2


def test_what_no_longer_fits_is_not_run(tmp_path: Path) -> None:
    status, found, table = run(tmp_path / "out", "--minutes", "0")
    assert status == 1
    assert set(results(found).values()) == {"not run"}
    assert [step["name"] for step in found["steps"]] == [
        *("facts", "copy", "parity nano float32", "parity tiny float32", "parity base float32"),
        *("parity small float32", "parity turbo float32", "parity large-v3 float32", "transcripts float32"),
        *("bench tiny", "bench small", "bench turbo", "bench large-v3"),
        *("transcribe nano 161.5 s", "transcribe tiny 161.5 s", "transcribe turbo 3600 s"),
    ]
    assert "0 s were left, and it needs 10" in table


def test_a_gpu_is_compared_in_half_width_and_in_float32(validate: ModuleType, tmp_path: Path) -> None:
    arguments = [str(tmp_path), "--sizes", "tiny", "--bench-sizes", "none", "--recordings", "none"]
    steps = validate.plan(validate._parser().parse_args(arguments), tmp_path)
    named = {step.name: step.command for step in steps}
    compared = [f"{what} {p}" for what in ("parity tiny", "transcripts") for p in ("float16", "float32")]
    assert list(named)[2:] == [*compared, "replay nano"]
    assert named["parity tiny float16"][-2:] == ["--precision", "float16"]
    assert named["transcripts float16"][-1] == "float16"


# The recorded step


class Event:
    def __init__(self, device: object, enable_timing: bool) -> None:
        assert enable_timing

    def elapsed_time(self, end: Event) -> float:
        return 32.0


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, recorder: Recorder) -> list[tuple[str, str]]:
    """What MAX says that a step launches: kinds, by their names as it has them, and names."""
    launched = [("KERNEL_LAUNCH", "linear")] * 18 + [("KERNEL_LAUNCH", "search")] * 5  # of nano's two layers

    @contextmanager
    def launch_trace() -> Iterator[list[SimpleNamespace]]:
        entries: list[SimpleNamespace] = []
        yield entries
        kinds = driver.LaunchTraceEntry.OperationKind
        entries += [SimpleNamespace(kind=getattr(kinds, kind), name=name) for kind, name in launched]

    monkeypatch.setattr(driver, "launch_trace", launch_trace)
    monkeypatch.setattr(driver, "DeviceEvent", Event)
    monkeypatch.setattr(type(RECORDS.driver.default_queue), "record_event", lambda *_: None)
    monkeypatch.setattr(devices, "find", lambda _: RECORDS)
    return launched


@pytest.fixture(scope="module")
def steps() -> ModuleType:
    return module_of("steps")


def test_the_recorded_step_is_what_the_graph_launches(
    steps: ModuleType, validate: ModuleType, recorder: Recorder, launched: list[tuple[str, str]]
) -> None:
    found = steps.replay("cuda", str(NANO), "float32")
    assert found["problem"] is None
    assert recorder.n_verified == 1
    assert found["kernels"] == {"linear": 18, "search": 5}
    assert found["replay_seconds"] == pytest.approx(0.032 / 64)
    assert found["bytes"] > 7e6  # of weights as float16, for the most part the vocabulary's
    told = validate.report._found({"problem": None, "found": found})
    assert told.startswith("23 kernels; a step takes 0.500 ms by events, ")


def test_a_step_that_is_not_what_was_recorded_is_a_failure(
    steps: ModuleType, recorder: Recorder, launched: list[tuple[str, str]]
) -> None:
    recorder.has_changed = True
    assert steps.replay("cuda", str(NANO), "float32")["problem"].endswith("recorded of it: launch 3 differs")


def test_a_step_that_copies_is_a_failure(
    steps: ModuleType, recorder: Recorder, launched: list[tuple[str, str]]
) -> None:
    launched.append(("MEMCPY", "cuMemcpyHtoD"))
    assert "23 kernels, not 23, and cuMemcpyHtoD else" in steps.replay("cuda", str(NANO), "float32")["problem"]


def test_a_device_that_recorded_nothing_is_a_failure(steps: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "find", lambda _: ELSEWHERE)
    assert steps.replay("cuda", str(NANO), "float32")["problem"] == "cpu has recorded no step"


@pytest.fixture
def step_of(validate: ModuleType, tmp_path: Path) -> Any:
    """Return a function that runs a line of Python as a step."""
    (tmp_path / "logs").mkdir()

    def step_of(line: str, seconds: float = 60) -> Any:
        step = validate.Step("a step", "correctness", [sys.executable, "-c", line], 0)
        validate.run(step, tmp_path, dict(os.environ), time.monotonic() + seconds)
        return step

    return step_of


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("import os; os.abort()", "it was ended by SIGABRT, see a-step.log"),
        ("raise ValueError('no such thing')", "ValueError: no such thing"),
        ("""print('{"problem": "two tokens differ"}'); raise SystemExit(1)""", "two tokens differ"),
        ("raise SystemExit(3)", "it ended with exit status 3"),
    ],
)
def test_a_step_that_dies_is_told_with_the_reason(step_of: Any, line: str, problem: str) -> None:
    step = step_of(line)
    assert (step.result, step.problem) == ("FAIL", problem)


def test_a_step_that_takes_too_long_is_ended(step_of: Any) -> None:
    step = step_of("import time; time.sleep(60)", seconds=1)
    assert step.result == "FAIL"
    assert step.seconds < 20
    assert "when the time was over" in step.problem


def test_graphs_that_were_compiled_elsewhere_are_put_where_they_are_looked_for(
    validate: ModuleType, tmp_path: Path
) -> None:
    folder = tmp_path / "elsewhere" / "whisper_max_plugin"
    folder.mkdir(parents=True)
    for name in ("384x4-4-mel80-vocab51865-a.mef", "384x4-4-mel80-vocab51865-a.json", "other.json"):
        (folder / name).write_text("{}")
    out = tmp_path / "out"
    options = validate._parser().parse_args([str(out), "--artifacts", str(tmp_path / "elsewhere")])
    environment = validate._environment(options, out)
    found = Path(environment["MODULAR_MAX_CACHE_DIR"]) / "whisper_max_plugin"
    assert {path.suffix for path in found.iterdir()} == {".mef", ".json"}
    assert len(list(found.iterdir())) == 2


def test_a_peer_that_does_not_run_does_not_take_the_others_times_along(validate: ModuleType) -> None:
    again = validate.without_peers(validate.Step("bench tiny", "speed", ["bench", "--peers", "faster-whisper"], 1))
    assert again.name == "bench tiny without peers"
    assert again.command[-2:] == ["--peers", "none"]  # the last one counts


def test_max_in_a_folder_without_its_metadata_is_given_some(
    validate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **_: object) -> SimpleNamespace:
        return SimpleNamespace(returncode="metadata" in command[-1], stdout="26.7.0\n")

    monkeypatch.setattr(validate.subprocess, "run", run)
    environment = validate._environment(validate._parser().parse_args([str(tmp_path)]), tmp_path)
    found = metadata.distributions(name="max", path=environment["PYTHONPATH"].split(os.pathsep)[-1:])
    assert [distribution.version for distribution in found] == ["26.7.0"]
