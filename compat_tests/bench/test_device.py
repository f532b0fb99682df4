"""`whisper-max bench --device cuda`, as far as it can be tried without one: who is told what, and what is shown."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from whisper_max_plugin.bench import calibration, command, machine, subjects, table
from whisper_max_plugin.bench.plan import Plan
from whisper_max_plugin.bench.protocol import Setup
from whisper_max_plugin.bench.subjects.whisper_models import WhisperSubject
from whisper_max_plugin.cli import main
from whisper_max_plugin.execution.devices import HOST, Device

from ..data import NANO, SAMPLE
from ..devices.cuda_stand_in import with_cuda
from .test_report import REPORT

__all__ = ["with_cuda"]  # fixture, found by name

NANO_DIMS = torch.load(NANO, weights_only=True)["dims"]
PEERS = [kind.name for kind in subjects.PEERS]


def setup_of(folder: Path, device: str) -> Setup:
    return command._setup(str(NANO), NANO_DIMS, None, folder, device)


# Everything, on a stand-in


@pytest.fixture(scope="module")
def run(with_cuda: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """One short run: its output, and what it wrote as JSON."""
    results = tmp_path_factory.mktemp("bench") / "results.json"
    arguments = [NANO, "--device", "cuda", "--audio", SAMPLE, "--peers", "whisper.cpp", "--json", results]
    arguments += ["--rounds", 1, "--tokens", 3, "--stages", "encoder,step"]
    words = [sys.executable, "-m", "whisper_max_plugin.cli", "bench", *map(str, arguments)]
    done = subprocess.run(words, env=with_cuda, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(results.read_text())


def test_table_and_json_name_the_device(run: tuple[str, dict[str, Any]]) -> None:
    output, results = run
    assert results["device"] == "cuda:0"
    assert results["machine"]["gpu"] == "a GPU"
    assert "\ncuda:0: a GPU (sm_00, 8 GB), driver unknown\n" in output


def test_without_cuda_in_torch_upstream_is_left_out_with_the_reason(run: tuple[str, dict[str, Any]]) -> None:
    output, results = run
    assert [subject["name"] for subject in results["subjects"]] == ["max-float16", "max"]
    (reason,) = [line for line in results["missing"] if line.startswith("upstream (torch) was left out")]
    assert reason.endswith("has no CUDA")
    assert reason in output
    assert {stage["ratio"] for stage in results["stages"]} == {None}
    assert {stage["device_seconds"] for stage in results["stages"]} == {None}  # of the stand-in
    for transcription in results["transcriptions"]:
        assert (transcription["ratio"], transcription["common_tokens"]) == (None, None)
        assert transcription["tokens"] > 50


def test_float16_moves_less_than_float32(run: tuple[str, dict[str, Any]]) -> None:
    _, results = run
    moved = {(stage["subject"], stage["stage"]): stage["n_bytes"] for stage in results["stages"]}
    for stage in ("encoder", "step"):
        assert moved["max-float16", stage] < moved["max", stage]


def test_without_cuda_in_torch_limits_are_what_max_can_measure(run: tuple[str, dict[str, Any]]) -> None:
    output, results = run
    assert results["limits"]["copy_bytes_per_second"] > 0
    assert results["limits"]["flops_per_second"] is None
    assert all(stage["limit_part"] > 0 for stage in results["stages"])
    assert "products were not measured, as torch has no CUDA" in output


def test_whisper_cpp_is_left_out_with_the_reason(run: tuple[str, dict[str, Any]]) -> None:
    _, results = run
    if not subjects.is_installed(subjects.PEERS[2]):
        pytest.skip("pywhispercpp is not installed")
    assert "whisper.cpp float16 was left out: it is measured on the CPU alone" in results["missing"]


# Who is told what


@pytest.fixture
def cuda_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch and CTranslate2 as they are with one GPU."""
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    ctranslate2 = ModuleType("ctranslate2")
    ctranslate2.get_cuda_device_count = lambda: 1  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ctranslate2", ctranslate2)
    monkeypatch.setattr(subjects, "is_installed", lambda kind: True)


@pytest.mark.usefixtures("cuda_everywhere")
def test_on_a_gpu_upstream_and_faster_whisper_compute_in_float16() -> None:
    kinds, left_out = subjects.choose(PEERS, "cuda:0")
    assert [kind.name for kind in kinds] == ["upstream", "max-float16", "max", "faster-whisper"]
    assert kinds[0].options == {"backend": "torch", "precision": "float16"}
    assert kinds[1].options == {"backend": "max", "precision": "float16"}
    assert kinds[2] is subjects.MAX
    assert kinds[3].options == {"compute_type": "float16"}
    assert kinds[3].title == "faster-whisper float16"
    assert [line.split(" was left out")[0] for line in left_out] == ["faster-whisper int8", "whisper.cpp float16"]


@pytest.mark.usefixtures("cuda_everywhere")
def test_who_does_not_see_the_gpu_is_left_out() -> None:
    kinds, left_out = subjects.choose(["faster-whisper"], "cuda:1")
    assert [kind.name for kind in kinds] == ["max-float16", "max"]
    assert "sees 1 GPUs" in left_out[0]
    assert left_out[1] == "faster-whisper float16 was left out: CTranslate2 sees 1 GPUs"


def test_on_the_cpu_nothing_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subjects, "is_installed", lambda kind: True)
    assert subjects.choose(PEERS, "cpu") == ([subjects.UPSTREAM, subjects.MAX, *subjects.PEERS], [])


def test_faster_whisper_is_opened_on_the_gpu_of_that_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from whisper_max_plugin.bench.subjects.faster_whisper import FasterWhisperSubject

    opened = []
    faster_whisper = ModuleType("faster_whisper")
    faster_whisper.WhisperModel = lambda folder, **options: opened.append(options)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "faster_whisper", faster_whisper)
    loaded = FasterWhisperSubject("float16").load(setup_of(tmp_path, "cuda:1"))
    assert opened == [{"device": "cuda", "device_index": 1, "compute_type": "float16", "cpu_threads": 0}]
    assert (loaded.storage.step_weights, loaded.storage.kv, loaded.storage.half_products) == (2, 2, True)


def test_threads_are_not_tried_on_a_gpu(tmp_path: Path) -> None:
    setup = setup_of(tmp_path, "cuda:0")
    plan = Plan([], setup, tmp_path, ["step"], None, 0.0, None, n_tokens=3, rounds=1, threads=None, cold=False)
    progress = SimpleNamespace(doing=lambda what: pytest.fail(what))
    assert calibration.thread_choices(plan, subjects.UPSTREAM, progress) == {None: ["step"]}


# Stages


STAGES = ("mel", "encoder", "cross_kv", "prefill", "step", "beam_step", "alignment")


class Waiting:
    """The host, which notes how often someone waits for it."""

    def __init__(self) -> None:
        self.waits = 0
        self.driver = SimpleNamespace(synchronize=self.wait)

    def wait(self) -> None:
        self.waits += 1

    def __getattr__(self, name: str) -> Any:
        return getattr(HOST, name)


def test_every_stage_of_this_plugin_waits_for_the_device(tmp_path: Path) -> None:
    subject = WhisperSubject("max")
    subject.load(setup_of(tmp_path, "cpu"))
    device = subject._model.encoder.runtime.device = Waiting()
    for stage in STAGES:
        device.waits = 0
        subject.stage_seconds(stage, 2)
        assert device.waits >= 2, stage  # before the clock starts, and before it stops


def test_both_decodes_that_a_step_is_the_difference_of_find_keys_and_values(tmp_path: Path) -> None:
    subject = WhisperSubject("max")
    subject.load(setup_of(tmp_path, "cpu"))
    projected = []
    decode_seconds, cross_kv = subject._decode_seconds, subject._model.encoder.runtime.engine().cross_kv
    subject._model.encoder.runtime.engine().cross_kv = lambda x: projected.append("projected") or cross_kv(x)
    subject._decode_seconds = lambda *args, **options: projected.append("decode") or decode_seconds(*args, **options)
    subject.stage_seconds("step", 2)
    assert projected == ["decode", "projected", "decode", "decode"]


def test_every_stage_of_upstream_runs_in_float16(tmp_path: Path) -> None:
    """On the CPU here, where torch can it too."""
    subject = WhisperSubject("torch", "float16")
    loaded = subject.load(setup_of(tmp_path, "cpu"))
    assert (loaded.storage.kv, loaded.storage.half_products) == (2, True)
    computed = []
    subject._model.decoder.register_forward_hook(lambda module, args, output: computed.append(args[1].dtype))
    for stage in STAGES:
        subject.stage_seconds(stage, 2)
    assert set(computed) == {torch.float16}


# Limits


def test_limits_of_a_gpu_by_torch() -> None:
    limits = machine.limits_by_torch(torch.device("cpu"), lambda: None, n_bytes=2**16, n_rows=32)
    assert min(limits.read_bytes_per_second, limits.copy_bytes_per_second, limits.products(half=False) or 0) > 0
    assert limits.products(half=True) != limits.products(half=False)


def test_limits_of_a_gpu_by_max() -> None:
    limits = machine.limits_by_max(Device("cpu", shares_memory=False), n_bytes=2**16)
    assert limits.read_bytes_per_second == limits.copy_bytes_per_second > 0
    assert limits.products(half=False) is limits.products(half=True) is None


def test_the_better_of_limits_that_are_not_all_known() -> None:
    better = machine.Limits(1, 4, None, 7).better_of(machine.Limits(2, 3, None, None))
    assert better == machine.Limits(2, 4, None, 7)


# What is shown and refused


GPU_MACHINE = {**REPORT.machine, "gpu": "NVIDIA H200", "architecture": "sm_90a", "driver": "570.1", "memory": 144e9}


def test_the_table_of_a_gpu_tells_how_times_were_taken() -> None:
    limits = machine.Limits(4e12, 4e12, 50e12, 800e12)
    lines = table.lines(replace(REPORT, device="cuda:1", machine=GPU_MACHINE, limits=limits))
    assert "cuda:1: NVIDIA H200 (sm_90a, 144 GB), driver 570.1" in lines
    assert any("of float32 matrices: 50000 GFLOP/s, of float16 matrices: 800000 GFLOP/s" in line for line in lines)
    assert any("read when the device has finished" in line for line in lines)
    assert not any("ON DEVICE" in line for line in lines)


def test_the_table_shows_how_long_the_gpu_was_at_work() -> None:
    stages = [REPORT.stages[0], replace(REPORT.stages[1], device_seconds=0.002)]
    lines = table.lines(replace(REPORT, device="cuda:1", machine=GPU_MACHINE, stages=stages))
    (heading,) = (line for line in lines if "ON DEVICE  RATIO" in line)
    ends = heading.index("ON DEVICE") + len("ON DEVICE")
    below = [line[:ends].split("  ")[-1].strip() for line in lines if line.endswith(("15 %", "62 %"))]
    assert below == ["-", "2.000 ms"]
    assert any("by events before and behind" in line for line in lines)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "no device 'gpu': give cpu, cuda, or a GPU by its number"),
        ("cuda:99", "'cuda:99' was asked for and MAX sees"),
        ("mps", "does not run on 'mps'"),
    ],
)
def test_a_wrong_device_is_one_sentence(device: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(NANO), "--device", device]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("whisper-max: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
