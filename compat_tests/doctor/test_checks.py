"""`whisper-max doctor` as a whole: each check says what it found, each problem how to mend it."""

from __future__ import annotations

import dataclasses
import site
import sys
import sysconfig
from pathlib import Path

import pytest

from whisper_max_plugin import environment
from whisper_max_plugin.doctor import checks as doctor
from whisper_max_plugin.execution import artifacts

from .fixtures import commands, is_problem, modules, versions

__all__ = ["commands", "modules", "versions"]  # fixtures, found by name


def test_every_check_has_its_own_name_and_says_what_it_found():
    checks = doctor.run_checks()
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    assert all(check.value for check in checks)


def test_every_problem_has_a_remedy(versions, commands, modules, monkeypatch, tmp_path):
    for distribution in ("torch", "max", "openai-whisper", "av"):
        versions[distribution] = None
    modules.update({"whisper": None, "max": None, "torch": None})
    monkeypatch.setattr(sys, "version_info", (3, 9, 2, "final", 0))
    monkeypatch.setattr(site, "getsitepackages", lambda: [str(tmp_path)])
    monkeypatch.setattr(site, "ENABLE_USER_SITE", False)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(artifacts, "cache_dir", lambda: Path("/dev/null/cache"))
    monkeypatch.setattr(environment, "DRIVER_FILE", Path("/nonexistent"))
    monkeypatch.setenv("WHISPER_BACKEND", "nonsense")
    problems = {check.name for check in doctor.run_checks() if is_problem(check)}
    assert problems == {
        "python",
        "torch",
        "max",
        "openai-whisper",
        "whisper package",
        "av",
        "cache folder",
        "whisper command",
        "start-up hook",
        "WHISPER_BACKEND",
        "backend max",
        "backend torch",
    }


def test_a_check_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        doctor.check_python().ok = False
