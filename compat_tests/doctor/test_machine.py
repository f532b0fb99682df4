"""What `whisper-max doctor` says about the machine: driver, devices, cuBLAS, ffmpeg, the cache folder."""

from __future__ import annotations

import importlib.machinery
import subprocess
from pathlib import Path

import pytest

from whisper_max_plugin import environment
from whisper_max_plugin.doctor import checks as doctor
from whisper_max_plugin.execution import artifacts

from .fixtures import commands, is_problem, modules, versions

__all__ = ["commands", "modules", "versions"]  # fixtures, found by name


@pytest.fixture
def driver(monkeypatch, commands):
    """Return a function that installs an NVIDIA driver of some version."""

    def install(version):
        commands["nvidia-smi"] = "/usr/bin/nvidia-smi"

        def run(command, **_options):
            return subprocess.CompletedProcess(command, 0, stdout=f"{version}\n{version}\n", stderr="")

        monkeypatch.setattr(subprocess, "run", run)

    return install


# The driver


def test_no_nvidia_driver_is_fine(commands, monkeypatch):
    monkeypatch.setattr(environment, "DRIVER_FILE", Path("/nonexistent"))
    check = doctor.check_nvidia_driver()
    assert check.ok is None
    assert "none" in check.value


@pytest.mark.parametrize(("version", "works"), [("580.65.06", True), ("590.10", True), ("550.127.08", False)])
def test_the_nvidia_driver_is_recent_enough(driver, monkeypatch, version, works):
    monkeypatch.delenv("MODULAR_NVPTX_COMPILER_PATH", raising=False)
    driver(version)
    check = doctor.check_nvidia_driver()
    assert check.ok is works
    assert check.value.startswith(version)
    assert is_problem(check) is not works


def test_an_older_nvidia_driver_works_through_an_external_ptxas(driver, commands, monkeypatch):
    monkeypatch.delenv("MODULAR_NVPTX_COMPILER_PATH", raising=False)
    driver("550.127.08")
    commands["ptxas"] = "/usr/local/cuda/bin/ptxas"
    remedy = doctor.check_nvidia_driver().remedy
    assert remedy == "export MODULAR_NVPTX_COMPILER_PATH=/usr/local/cuda/bin/ptxas"
    monkeypatch.setenv("MODULAR_NVPTX_COMPILER_PATH", "/usr/local/cuda/bin/ptxas")
    assert doctor.check_nvidia_driver().ok is True


def test_the_kernel_tells_the_driver_where_nvidia_smi_is_missing_or_fails(commands, monkeypatch, tmp_path):
    file = tmp_path / "version"
    file.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\nGCC 12.2.0\n")
    monkeypatch.setattr(environment, "DRIVER_FILE", file)
    assert doctor.check_nvidia_driver().value == "580.65.06"
    commands["nvidia-smi"] = "/bin/false"
    assert doctor.check_nvidia_driver().value == "580.65.06"


# Devices


def test_max_sees_at_least_the_cpu():
    check = doctor.check_devices()
    assert check.ok is True
    assert "cpu" in check.value.split(", ")


@pytest.fixture
def only_a_cpu(monkeypatch):
    from max import driver as max_driver

    cpu = type("DeviceSpec", (), {"id": -1, "device_type": "cpu"})()
    monkeypatch.setattr(max_driver, "scan_available_devices", lambda: [cpu])


def test_a_gpu_that_max_does_not_see_is_a_problem(driver, only_a_cpu, monkeypatch):
    driver("580.65.06")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert is_problem(doctor.check_devices())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    check = doctor.check_devices()
    assert is_problem(check)
    assert check.remedy == "unset CUDA_VISIBLE_DEVICES"


def test_devices_are_unknown_without_max(versions):
    versions["max"] = None
    assert doctor.check_devices().ok is None


# cuBLAS


def test_cublas_is_found_in_nvidias_wheel(modules, tmp_path):
    library = tmp_path / "cublas" / "lib" / "libcublas.so.12"
    library.parent.mkdir(parents=True)
    library.touch()
    spec = importlib.machinery.ModuleSpec("nvidia", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    modules["nvidia"] = spec
    check = doctor.check_cublas()
    assert check.ok is True
    assert check.value == str(library)


@pytest.fixture
def no_cublas(modules, monkeypatch):
    modules["nvidia"] = None
    monkeypatch.setattr(environment.glob, "glob", lambda pattern: [])
    monkeypatch.setattr(environment.ctypes.util, "find_library", lambda name: None)


def test_without_cublas_nothing_is_wrong_beside_a_gpu_either(no_cublas, driver):
    driver("580.65.06")
    check = doctor.check_cublas()
    assert (check.ok, check.remedy) == (None, None)


# ffmpeg and PyAV


def test_ffmpeg_is_found_or_pyav_decodes(commands):
    check = doctor.check_ffmpeg()
    assert check.ok is None
    assert "PyAV" in check.value
    commands["ffmpeg"] = "/usr/bin/ffmpeg"
    check = doctor.check_ffmpeg()
    assert (check.ok, check.value) == (True, "/usr/bin/ffmpeg")


def test_missing_pyav_is_only_information_beside_ffmpeg(versions, commands):
    versions["av"] = None
    commands["ffmpeg"] = "/usr/bin/ffmpeg"
    assert doctor.check_av().ok is None


# The cache folder


def test_the_cache_folder_reports_its_entries_and_size(monkeypatch, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "one.mef").write_bytes(bytes(1_500_000))
    (tmp_path / "two.mef").write_bytes(bytes(900_000))
    (tmp_path / "two.json").write_bytes(bytes(100_000))
    monkeypatch.setattr(artifacts, "cache_dir", lambda: tmp_path)
    check = doctor.check_cache_folder()
    assert check.ok is True
    assert check.value == f"{tmp_path} (2 entries, 2.5 MB)"


def test_a_cache_folder_that_does_not_exist_yet_is_fine_and_stays_away(monkeypatch, tmp_path):
    folder = tmp_path / "not" / "yet"
    monkeypatch.setattr(artifacts, "cache_dir", lambda: folder)
    check = doctor.check_cache_folder()
    assert check.ok is True
    assert check.value == f"{folder} (0 entries, 0.0 MB)"
    assert list(tmp_path.iterdir()) == []


def test_a_cache_folder_that_cannot_be_written_to_is_a_problem(monkeypatch, tmp_path):
    # Below a regular file not even root can write.
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "cache"
    monkeypatch.setattr(artifacts, "cache_dir", lambda: folder)
    check = doctor.check_cache_folder()
    assert is_problem(check)
    assert str(folder) in check.value
    assert "Not a directory" in check.value
    assert check.remedy.startswith("export MODULAR_MAX_CACHE_DIR=")


def test_the_remedy_for_the_cache_folder_mends_it(monkeypatch, tmp_path):
    monkeypatch.setenv("MODULAR_MAX_CACHE_DIR", "/dev/null/cache")
    check = doctor.check_cache_folder()
    assert is_problem(check)
    variable, _, value = check.remedy.removeprefix("export ").partition("=")
    monkeypatch.setenv(variable, value.strip('"').replace("$HOME", str(tmp_path)))
    check = doctor.check_cache_folder()
    assert check.ok is True
    assert check.value.startswith(str(tmp_path))
