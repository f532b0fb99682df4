"""The cache of compiled graphs: where it is, what is found there again, what if it cannot be written."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
from max.graph import KernelLibrary, Module
from whisper.model import ModelDimensions

from whisper_max_plugin.execution import artifacts
from whisper_max_plugin.report import REPORT

from .fixtures import compilations, dims, max_cache, obtain, path_of, refuse_to_build, settings, stored, works

__all__ = ["compilations", "dims", "max_cache", "settings", "stored"]  # fixtures, found by name


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


def test_without_a_stderr_as_with_a_daemon_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    with artifacts.compile_progress(60):
        pass


def test_compiling_takes_as_long_as_it_did_as_a_rule_on_the_same_device(tmp_path: Path) -> None:
    entries = [("cpu", 20.0), ("cpu", 300.0), ("cpu", 16.0), ("sm_90-0", 143.0)]
    for index, (device, seconds) in enumerate(entries):
        (tmp_path / f"{index}.json").write_text(json.dumps({"device": device, "compile_seconds": seconds}))
    (tmp_path / "damaged.json").write_text("[")
    assert artifacts._expected_seconds(tmp_path, "cpu") == 20
    assert artifacts._expected_seconds(tmp_path, "sm_90-0") == 143
    assert artifacts._expected_seconds(tmp_path, "sm_80-0") == artifacts.TYPICAL_COMPILE_SECONDS == 60


def test_nothing_temporary_is_left(stored: Path) -> None:
    names = {path.name for path in stored.parent.glob(f"{stored.stem}*")}
    assert names <= {f"{stored.stem}{suffix}" for suffix in (".mef", ".json", ".lock")}


def test_the_manifest_says_what_the_artifact_is_for(dims: ModelDimensions, stored: Path) -> None:
    manifest = json.loads(stored.with_suffix(".json").read_text())
    assert manifest["dims"] == list(vars(dims).values())
    assert (manifest["precision"], manifest["device"]) == ("float32", "cpu")
    assert manifest["max_version"].startswith("26.")


def test_a_build_that_fails_leaves_no_entry_and_no_lock(dims: ModelDimensions) -> None:
    def fail(_: KernelLibrary) -> Module:
        raise RuntimeError("cannot build")

    with pytest.raises(RuntimeError, match="cannot build"):
        obtain(dims, fail)
    assert not artifacts.is_cached(dims, "float32", "cpu")
    assert works(obtain(dims))


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
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if artifacts.cache_dir() not in Path(target).parents:
            return replace(source, target)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(artifacts.os, "replace", full)
        with caplog.at_level(logging.WARNING, logger="whisper_max_plugin"):
            assert works(obtain(dims))
    assert any("could not be stored" in record.getMessage() for record in caplog.records)
    assert [path.suffix for path in artifacts.cache_dir().glob(f"{path_of(dims).stem}*")] in ([], [".lock"])
    assert works(obtain(dims))
