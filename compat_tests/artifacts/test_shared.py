"""The cache of compiled graphs is shared: by processes at the same time, by checkpoints of the same dimensions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from whisper.model import ModelDimensions

from ..compare import assert_close
from ..conftest import Pair, load_pair, random_checkpoint
from ..waiting import wait_until
from .fixtures import compilations, dims, max_cache, obtain, refuse_to_build, settings, works

__all__ = ["compilations", "dims", "max_cache", "settings"]  # fixtures, found by name


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
from whisper_max_plugin.execution import artifacts

dims = SimpleNamespace(**json.loads(sys.argv[1]))
builds = 0

def build(library):
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
    # this process may have compiled nano's graphs into the cache of another test
    warmup = "import sys; from whisper_max_plugin.loading import warmup; warmup(sys.argv[1])"
    subprocess.run([sys.executable, "-c", warmup, str(nano.path)], check=True)
    code = """
import json, sys
from max.engine import InferenceSession
import whisper, whisper_max_plugin, whisper_max_plugin.execution.compiled

def refuse(*args):
    raise AssertionError("compiled")

InferenceSession.compile = whisper_max_plugin.execution.compiled.build_module = refuse
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
