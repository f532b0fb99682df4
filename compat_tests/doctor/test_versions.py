"""What `whisper-max doctor` says about Python and the libraries: versions, the wrong whisper, how to install."""

from __future__ import annotations

import importlib.machinery
import sys
from pathlib import Path

import pytest

from whisper_max_plugin.doctor import checks as doctor

from .fixtures import commands, is_problem, modules, versions

__all__ = ["commands", "modules", "versions"]  # fixtures, found by name


@pytest.mark.parametrize(
    ("version", "supported"), [((3, 9), False), ((3, 10), True), ((3, 14), True), ((3, 15), False)]
)
def test_python_is_supported_where_max_has_wheels(monkeypatch, version, supported):
    monkeypatch.setattr(sys, "version_info", (*version, 1, "final", 0))
    check = doctor.check_python()
    assert check.ok is supported
    assert check.value.startswith(".".join(map(str, version)))
    assert is_problem(check) is not supported


@pytest.mark.parametrize(
    ("version", "works"), [("26.7.0", True), ("26.7.1", True), ("26.6.9", False), ("27.7.0", False)]
)
def test_max_is_the_tested_minor_release(versions, version, works):
    versions["max"] = version
    check = doctor.check_max()
    assert check.ok is works
    assert check.value.startswith(version)
    assert is_problem(check) is not works


def test_max_missing_names_the_release_to_install(versions):
    versions["max"] = None
    check = doctor.check_max()
    assert is_problem(check)
    assert "max==26.7.*" in check.remedy


@pytest.mark.parametrize(
    ("version", "works"),
    [("20250625", True), ("20231106", True), ("20231106.post1", True), ("20231105", False), ("1.0", False)],
)
def test_openai_whisper_is_recent_enough(versions, version, works):
    versions["openai-whisper"] = version
    check = doctor.check_whisper()
    assert check.ok is works
    assert is_problem(check) is not works


@pytest.mark.parametrize("name", ["torch", "openai-whisper", "av"])
def test_a_missing_distribution_is_a_problem(versions, commands, name):
    versions[name] = None
    check = {"torch": doctor.check_torch, "openai-whisper": doctor.check_whisper, "av": doctor.check_av}[name]()
    assert is_problem(check)
    assert check.value == "not installed"
    assert check.remedy.split()[-1] == name


def test_remedies_use_the_pip_of_this_interpreter(versions, modules):
    versions["torch"] = None
    modules["pip"] = importlib.machinery.ModuleSpec("pip", None)
    assert doctor.check_torch().remedy == f"{sys.executable} -m pip install torch"


def test_remedies_use_uv_where_the_environment_has_no_pip(versions, modules):
    versions["torch"] = None
    modules["pip"] = None
    assert doctor.check_torch().remedy == f"uv pip install --python {sys.executable} torch"


def test_the_whisper_package_is_openais():
    check = doctor.check_whisper_package()
    assert check.ok is True
    assert (Path(check.value) / "transcribe.py").is_file()


def test_the_wrong_whisper_from_pypi_is_a_problem(versions, modules, tmp_path):
    versions["whisper"] = "1.1.10"
    modules["whisper"] = importlib.machinery.ModuleSpec("whisper", None, origin=str(tmp_path / "whisper.py"))
    check = doctor.check_whisper_package()
    assert is_problem(check)
    assert "whisper 1.1.10" in check.value
    uninstall, install = check.remedy.split(" && ")
    assert uninstall.split()[-1] == "whisper"
    assert install.split()[-1] == "openai-whisper"


def test_the_wrong_whisper_beside_openais_is_only_information(versions):
    versions["whisper"] = "1.1.10"
    check = doctor.check_whisper_package()
    assert check.ok is None
    assert "1.1.10" in check.value


def test_a_local_file_named_whisper_is_a_problem(modules, tmp_path):
    shadow = str(tmp_path / "whisper.py")
    modules["whisper"] = importlib.machinery.ModuleSpec("whisper", None, origin=shadow)
    check = doctor.check_whisper_package()
    assert is_problem(check)
    assert check.remedy == f"mv {shadow} {shadow}_hidden"
