"""Devices that graphs do not run on, backends that nobody knows, and no MAX: one sentence that says what to do."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import whisper

import whisper_max_plugin
from whisper_max_plugin import loading
from whisper_max_plugin.backends import UnknownBackendError
from whisper_max_plugin.errors import DeviceError
from whisper_max_plugin.max_backend import INSTALL_MAX

from ..bad_input_fixtures import installed
from ..data import NANO
from ..errors import assert_one_sentence, error_of

__all__ = ["installed"]  # fixtures, found by name


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps", "meta", torch.device("cuda"), torch.device("xpu", 0)])
def test_a_device_that_graphs_do_not_run_on(device: str | torch.device) -> None:
    error = error_of(lambda: whisper.load_model(str(NANO), device=device, backend="max"))
    assert isinstance(error, DeviceError)
    assert_one_sentence(error, repr(str(device)), 'device="cpu"', 'backend="torch"')


@pytest.mark.parametrize("device", ["gpu", "toaster", "", "cuda:-1"])
def test_a_device_that_is_none(device: str) -> None:
    error = error_of(lambda: whisper.load_model(str(NANO), device=device, backend="max"))
    assert isinstance(error, DeviceError)
    assert isinstance(error, type(error_of(lambda: torch.device(device))))  # for those who catch torch's
    assert str(error) == f"no device {device!r}: give cpu, cuda, or a GPU by its number as in cuda:1"
    assert str(error_of(lambda: loading.warmup("tiny", device))).startswith(str(error))


def test_a_number_is_a_gpus_as_torch_has_it() -> None:
    by_number, by_name = (
        error_of(lambda device=device: whisper.load_model(str(NANO), device=device, backend="max"))
        for device in (0, "cuda:0")
    )
    assert isinstance(by_number, DeviceError)
    assert str(by_number) == str(by_name)


@pytest.mark.parametrize("name", ["cuda", "", "max,torch", 5])
def test_an_unknown_backend(name: object) -> None:
    error = error_of(lambda: whisper.load_model(str(NANO), backend=name))
    assert isinstance(error, UnknownBackendError)
    assert_one_sentence(error, repr(str(name)), "known backends: max, torch")
    assert str(error_of(lambda: whisper_max_plugin.install(backend=name))) == str(error)


@pytest.fixture
def without_max(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH that holds what is installed here, but for MAX."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    for site_packages in site.getsitepackages():
        for entry in Path(site_packages).iterdir():
            name = entry.name.lower()
            if (
                name == "max"
                or name.startswith(("max-", "max_core", "modular", "mojo"))
                or (folder / entry.name).exists()
            ):
                continue
            (folder / entry.name).symlink_to(entry)
    package = Path(whisper_max_plugin.__file__).parent
    if not (folder / package.name).exists():  # an editable install
        (folder / package.name).symlink_to(package)
    return folder


def test_without_max_the_backend_says_how_to_install_it_and_torch_works(without_max: Path) -> None:
    code = """
import json, sys
import torch, whisper, whisper_max_plugin
whisper_max_plugin.install()
results = {}
for backend in ("max", None, "torch"):
    try:
        results[str(backend)] = type(whisper.load_model(sys.argv[1], backend=backend)).__name__
    except RuntimeError as error:
        results[str(backend)] = [type(error).__name__, str(error)]
whisper_max_plugin.uninstall()
results["uninstalled"] = type(whisper.load_model(sys.argv[1])).__name__
results["status"] = whisper_max_plugin.status()["graph_runs"]
print(json.dumps(results))
"""
    result = subprocess.run(
        [sys.executable, "-S", "-c", code, str(NANO)],
        env={**os.environ, "PYTHONPATH": str(without_max)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    refusal = ["BackendUnavailableError", f"MAX is not installed: {INSTALL_MAX}"]
    assert json.loads(result.stdout) == {
        "max": refusal,
        "None": refusal,
        "torch": "Whisper",
        "uninstalled": "Whisper",
        "status": {},
    }
