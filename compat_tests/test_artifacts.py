"""The cache of compiled graphs: found again, shared, repaired, never in the way.

A graph of one addition stands in for the model's, which take minutes to compile. MAX's own cache lies in the same
folder, so that only the first compilation takes seconds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from max.driver import Buffer
from max.dtype import DType
from max.engine import CompiledModel, InferenceSession
from max.graph import DeviceRef, Graph, Module, TensorType
from whisper.model import ModelDimensions

from whisper_max_plugin import artifacts, engine
from whisper_max_plugin.artifacts import ArtifactKey
from whisper_max_plugin.report import REPORT

from .compare import assert_close
from .conftest import Pair, load_pair, random_checkpoint

SIZES = iter(range(1, 1000))


def build() -> Module:
    """Build a module that adds one."""
    module = Module()
    kind = TensorType(DType.float32, [4], device=DeviceRef.CPU())
    with Graph("add_one", input_types=[kind], module=module) as graph:
        graph.output(graph.inputs[0].tensor + 1.0)
    return module


def refuse_to_build() -> Module:
    raise AssertionError("compiled what should have been in the cache")


def works(compiled: CompiledModel) -> bool:
    """Run the graph."""
    (result,) = (
        session().init_all(compiled, weights_registry={})["add_one"].execute(Buffer.from_numpy(np.zeros(4, "f")))
    )
    return result.to_numpy().tolist() == [1.0] * 4


def session() -> InferenceSession:
    return engine._session()


@pytest.fixture(scope="module")
def max_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What MODULAR_MAX_CACHE_DIR names in these tests; nothing is taken from or left in the user's cache."""
    return tmp_path_factory.mktemp("max_cache")


@pytest.fixture(autouse=True)
def settings(max_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODULAR_MAX_CACHE_DIR", str(max_cache))


@pytest.fixture
def dims() -> ModelDimensions:
    """Dimensions that no other test has."""
    return ModelDimensions(next(SIZES), 1, 1, 1, 1, 1, 1, 1, 1, 1)


def obtain(dims: ModelDimensions, build: Callable[[], Module] = build) -> CompiledModel:
    return artifacts.obtain(session(), dims, "float32", "cpu", build)


def path_of(dims: ModelDimensions) -> Path:
    return artifacts.cache_dir() / ArtifactKey.of(dims, "float32", "cpu").filename


@pytest.fixture
def stored(dims: ModelDimensions) -> Path:
    """The path of an artifact that has just been compiled and stored."""
    assert works(obtain(dims))
    return path_of(dims)


@pytest.fixture
def compilations() -> Iterator[list[float]]:
    """The seconds of each compilation in the test."""
    seconds: list[float] = []
    compiled = REPORT.compiled

    def count(duration: float) -> None:
        seconds.append(duration)
        compiled(duration)

    REPORT.compiled = count  # type: ignore[method-assign]
    yield seconds
    del REPORT.compiled


# Where it is


def test_the_folder_lies_in_maxs_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MODULAR_MAX_CACHE_DIR", str(tmp_path / "a"))
    monkeypatch.setenv("MODULAR_CACHE_DIR", str(tmp_path / "b"))
    assert artifacts.cache_dir() == tmp_path / "a" / "whisper_max_plugin"
    monkeypatch.delenv("MODULAR_MAX_CACHE_DIR")
    assert artifacts.cache_dir() == tmp_path / "b" / ".max_cache" / "whisper_max_plugin"
    monkeypatch.delenv("MODULAR_CACHE_DIR")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "c")
    assert artifacts.cache_dir() == tmp_path / "c" / ".cache" / "modular" / ".max_cache" / "whisper_max_plugin"
    assert list(tmp_path.iterdir()) == []  # asking creates nothing


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MODULAR_MAX_CACHE_DIR", "")
    monkeypatch.setenv("MODULAR_CACHE_DIR", str(tmp_path))
    assert artifacts.cache_dir() == tmp_path / ".max_cache" / "whisper_max_plugin"


# Found again


def test_a_stored_artifact_is_not_compiled_again(dims: ModelDimensions, stored: Path) -> None:
    assert artifacts.is_cached(dims, "float32", "cpu")
    assert works(obtain(dims, refuse_to_build))


def test_compiling_is_reported_and_shown(
    dims: ModelDimensions, compilations: list[float], capfd: pytest.CaptureFixture[str]
) -> None:
    before = REPORT.snapshot()["compile_seconds"]
    assert not artifacts.is_cached(dims, "float32", "cpu")
    obtain(dims)
    assert len(compilations) == 1
    assert REPORT.snapshot()["compile_seconds"] == pytest.approx(before + compilations[0], abs=0.002)
    assert "Compiling MAX graphs, once for this model size" in capfd.readouterr().err
    obtain(dims)
    assert len(compilations) == 1
    assert capfd.readouterr().err == ""


def test_nothing_temporary_is_left(stored: Path) -> None:
    names = {path.name for path in stored.parent.glob(f"{stored.stem}*")}
    assert names <= {f"{stored.stem}{suffix}" for suffix in (".mef", ".json", ".lock")}


def test_the_manifest_says_what_the_artifact_is_for(dims: ModelDimensions, stored: Path) -> None:
    manifest = json.loads(stored.with_suffix(".json").read_text())
    assert manifest["dims"] == list(vars(dims).values())
    assert (manifest["precision"], manifest["device"]) == ("float32", "cpu")
    assert manifest["max_version"].startswith("26.")


def test_a_build_that_fails_leaves_no_entry_and_no_lock(dims: ModelDimensions) -> None:
    def fail() -> Module:
        raise RuntimeError("cannot build")

    with pytest.raises(RuntimeError, match="cannot build"):
        obtain(dims, fail)
    assert not artifacts.is_cached(dims, "float32", "cpu")
    assert works(obtain(dims))


# Damaged or foreign

DAMAGES = {
    "artifact empty": lambda path: path.write_bytes(b""),
    "artifact truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "artifact with one byte flipped": lambda path: flip(path),
    "artifact deleted": lambda path: path.unlink(),
    "manifest empty": lambda path: path.with_suffix(".json").write_text(""),
    "manifest truncated": lambda path: os.truncate(path.with_suffix(".json"), 40),
    "manifest not UTF-8": lambda path: path.with_suffix(".json").write_bytes(b"\xff\xfe"),
    "manifest of another kind": lambda path: path.with_suffix(".json").write_text("[1]"),
    "manifest without the digest": lambda path: path.with_suffix(".json").write_text("{}"),
    "manifest deleted": lambda path: path.with_suffix(".json").unlink(),
    "both deleted": lambda path: (path.unlink(), path.with_suffix(".json").unlink()),
    "lock deleted": lambda path: (path.with_suffix(".lock").unlink(missing_ok=True), path.unlink()),
}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_entry_is_compiled_again_and_mended(
    dims: ModelDimensions, stored: Path, compilations: list[float], name: str
) -> None:
    DAMAGES[name](stored)
    assert not artifacts.is_cached(dims, "float32", "cpu")
    assert works(obtain(dims))
    assert len(compilations) == 1
    assert works(obtain(dims, refuse_to_build))


def test_sound_bytes_that_max_does_not_take_are_compiled_again(
    dims: ModelDimensions, stored: Path, compilations: list[float]
) -> None:
    stored.write_bytes(b"not an artifact")
    manifest = json.loads(stored.with_suffix(".json").read_text())
    manifest["sha256"] = hashlib.sha256(b"not an artifact").hexdigest()
    stored.with_suffix(".json").write_text(json.dumps(manifest))
    assert works(obtain(dims))
    assert len(compilations) == 1
    assert works(obtain(dims, refuse_to_build))


def test_a_damaged_entry_is_named_in_a_warning(
    dims: ModelDimensions, stored: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flip(stored)
    with caplog.at_level(logging.WARNING, logger="whisper_max_plugin"):
        obtain(dims)
    assert any(stored.name in record.message and "damaged" in record.message for record in caplog.records)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda patch: patch.setattr(artifacts.metadata, "version", lambda _: "26.8.0"), id="MAX"),
        pytest.param(lambda patch: patch.setattr(artifacts, "_graphs_digest", lambda: "other graphs"), id="graphs"),
        pytest.param(lambda patch: patch.setattr(artifacts, "_cpu_digest", lambda: "other processor"), id="processor"),
    ],
)
def test_an_entry_of_another_version_is_not_used_and_stays(
    dims: ModelDimensions,
    stored: Path,
    compilations: list[float],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pytest.MonkeyPatch], None],
) -> None:
    content = stored.read_bytes()
    with monkeypatch.context() as patch:
        change(patch)
        assert path_of(dims) != stored
        assert works(obtain(dims))
        assert len(compilations) == 1
    assert stored.read_bytes() == content
    assert works(obtain(dims, refuse_to_build))


def test_each_precision_device_and_size_has_its_own_entry(dims: ModelDimensions) -> None:
    names = {
        ArtifactKey.of(sizes, precision, device).filename
        for sizes in (dims, ModelDimensions(**{**vars(dims), "n_text_ctx": 2}))
        for precision in ("float32", "bfloat16")
        for device in ("cpu", "cuda:0", "cuda:1")
    }
    assert len(names) == 12
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.") for name in names)  # for any file system


# A folder that cannot be written


def test_without_a_folder_to_write_the_graphs_are_compiled_and_the_remedy_is_said(
    dims: ModelDimensions,
    compilations: list[float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("in the way")  # permissions do not stop root, a file does
    monkeypatch.setenv("MODULAR_MAX_CACHE_DIR", str(tmp_path / "file" / "folder"))
    with caplog.at_level(logging.WARNING, logger="whisper_max_plugin"):
        assert works(obtain(dims))
    assert len(compilations) == 1
    (warning,) = [record.getMessage() for record in caplog.records if "cannot be written" in record.getMessage()]
    assert str(artifacts.cache_dir()) in warning
    assert "set MODULAR_MAX_CACHE_DIR to a folder that can be written" in warning
    assert len(warning.splitlines()) == 1
    assert not artifacts.is_cached(dims, "float32", "cpu")


def test_a_full_disk_is_a_warning_and_leaves_nothing_half_written(
    dims: ModelDimensions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(artifacts.os, "replace", full)
        with caplog.at_level(logging.WARNING, logger="whisper_max_plugin"):
            assert works(obtain(dims))
    assert any("could not be stored" in record.getMessage() for record in caplog.records)
    assert [path.suffix for path in artifacts.cache_dir().glob(f"{path_of(dims).stem}*")] in ([], [".lock"])
    assert works(obtain(dims))


# Several processes

PROCESS = """
import json, sys, time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from max.driver import CPU, Buffer
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef, Graph, Module, TensorType
from whisper_max_plugin import artifacts

dims = SimpleNamespace(**json.loads(sys.argv[1]))
builds = 0

def build():
    global builds
    builds += 1
    Path(sys.argv[2], "building").touch()
    while not Path(sys.argv[2], "go").exists():
        time.sleep(0.05)
    module = Module()
    kind = TensorType(DType.float32, [4], device=DeviceRef.CPU())
    with Graph("add_one", input_types=[kind], module=module) as graph:
        graph.output(graph.inputs[0].tensor + 1.0)
    return module

session = InferenceSession(devices=[CPU()])
compiled = artifacts.obtain(session, dims, "float32", "cpu", build)
model = session.init_all(compiled, weights_registry={})["add_one"]
(result,) = model.execute(Buffer.from_numpy(np.zeros(4, np.float32)))
print(json.dumps([builds, result.to_numpy().tolist()]))
"""


def start_process(dims: ModelDimensions, folder: Path, log: Path) -> subprocess.Popen[str]:
    with log.open("w") as stderr:
        return subprocess.Popen(
            [sys.executable, "-c", PROCESS, json.dumps(vars(dims)), str(folder)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def test_of_two_processes_one_compiles_and_the_other_waits(dims: ModelDimensions, tmp_path: Path) -> None:
    first = start_process(dims, tmp_path, tmp_path / "first.log")
    second = None
    try:
        wait_until(lambda: (tmp_path / "building").exists())
        second = start_process(dims, tmp_path, tmp_path / "second.log")
        wait_until(lambda: "waiting for another process" in (tmp_path / "second.log").read_text())
        (tmp_path / "go").touch()
        outputs = [process.communicate(timeout=60)[0] for process in (first, second)]
        assert [json.loads(output) for output in outputs] == [[1, [1.0] * 4], [0, [1.0] * 4]]
    finally:
        for process in (first, second):
            if process is not None:
                process.kill()
                process.wait()


def test_a_process_that_is_killed_while_compiling_does_not_block_others(dims: ModelDimensions, tmp_path: Path) -> None:
    process = start_process(dims, tmp_path, tmp_path / "log")
    try:
        wait_until(lambda: (tmp_path / "building").exists())
    finally:
        process.kill()
        process.communicate()
    assert works(obtain(dims))
    assert works(obtain(dims, refuse_to_build))


# The model's own graphs


@pytest.fixture
def users_cache(nano: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache in which the fixture `nano` has found or left its graphs."""
    monkeypatch.delenv("MODULAR_MAX_CACHE_DIR")


@pytest.mark.usefixtures("users_cache")
def test_checkpoints_of_the_same_dimensions_share_an_artifact(
    nano: Pair, tmp_path: Path, compilations: list[float]
) -> None:
    paths = [random_checkpoint(tmp_path / f"{seed}.pt", nano.max.dims, seed) for seed in (4, 5)]
    pairs = [load_pair(path) for path in paths]
    assert compilations == []
    mel = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for pair in pairs:
            assert_close(pair.max.encoder(mel), pair.torch.encoder(mel))


@pytest.mark.usefixtures("users_cache")
def test_another_process_builds_and_compiles_nothing(nano: Pair) -> None:
    code = """
import json, sys
from max.engine import InferenceSession
import whisper, whisper_max_plugin, whisper_max_plugin.engine

def refuse(*args):
    raise AssertionError("compiled")

InferenceSession.compile = whisper_max_plugin.engine.build_module = refuse
whisper_max_plugin.install()
model = whisper.load_model(sys.argv[1])
print(json.dumps([type(model).__name__, whisper_max_plugin.status()["compile_seconds"], "filelock" in sys.modules]))
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(nano.path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == ["MaxWhisper", 0.0, False]
    assert "Compiling" not in result.stderr
