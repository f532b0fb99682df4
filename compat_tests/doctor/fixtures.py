"""What a test of `whisper-max doctor` can override: versions, commands on PATH, modules."""

from __future__ import annotations

import importlib.util
import shlex
from importlib import metadata

import pytest

from whisper_max_plugin.doctor import checks as doctor


@pytest.fixture
def versions(monkeypatch):
    """A dict in which a test overrides versions of distributions; None is not installed."""
    overrides = {}
    real = metadata.version

    def version(distribution):
        found = overrides[distribution] if distribution in overrides else real(distribution)
        if found is None:
            raise metadata.PackageNotFoundError(distribution)
        return found

    monkeypatch.setattr(metadata, "version", version)
    return overrides


@pytest.fixture
def commands(monkeypatch):
    """A dict of the commands on PATH, empty at first."""
    found = {}
    monkeypatch.setattr(doctor.shutil, "which", found.get)
    return found


@pytest.fixture
def modules(monkeypatch):
    """A dict in which a test overrides where modules are found; None is nowhere."""
    overrides = {}
    real = importlib.util.find_spec

    def find_spec(name, package=None):
        return overrides[name] if name in overrides else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    return overrides


def is_problem(check):
    """Whether a check failed, which it may not do without naming a command that mends it."""
    if check.ok is False:
        assert check.remedy is not None
        assert shlex.split(check.remedy)
    return check.ok is False
