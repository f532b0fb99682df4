"""A pytest plugin that runs upstream's own tests, unedited, with the package switched on.

It stands alone, so that nothing but the installed package is imported: put its folder on PYTHONPATH, name it by `-p`
and start pytest in a folder that holds upstream's tests, `jfk.flac` and `nano.pt`. test_suite.py does so.

Of upstream's own conftest.py, which no release carries, it brings the marker and the fixture. It selects the
checkpoints that need no download, tells what ran where, and fails a run in which a graph should have run and did not.
"""

from __future__ import annotations

import hashlib
import json
import os
import random as python_random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import whisper_max_plugin

NANO = "nano.pt"  # upstream's load_model takes a path, too
NEEDED_GRAPHS = {"encoder", "prefill", "step"}
NO_CUDA = "requires_cuda: torch sees no CUDA device"

_deselected: list[pytest.Item] = []
_not_upstreams: list[Path] = []
_complaints: list[str] = []  # why a run whose tests passed is a failure all the same


def pytest_configure(config: pytest.Config) -> None:
    """Switch the package on, before upstream's tests import whisper and ask for its models."""
    config.addinivalue_line("markers", "requires_cuda: the test needs a CUDA device")
    whisper_max_plugin.install()
    import whisper

    folder = config.rootpath / "models"
    models = [NANO, *_link_official_models(folder)]

    def available_models() -> list[str]:
        return models

    whisper.available_models = available_models
    whisper.load_model = partial(whisper.load_model, download_root=str(folder))


def _link_official_models(folder: Path) -> list[str]:
    """Link the official checkpoints of this machine into `folder`, under upstream's names; return the models' names."""
    import whisper

    caches = [Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "whisper"]
    if extra := os.environ.get("WHISPER_MAX_TEST_MODELS"):
        caches.append(Path(extra))
    folder.mkdir(exist_ok=True)
    found = []
    for name, url in whisper._MODELS.items():
        *_, sha256, filename = url.split("/")
        files = [cache / filename for cache in caches if (cache / filename).is_file()]
        genuine = [file for file in files if _sha256(file) == sha256]
        _not_upstreams.extend(file for file in files if file not in genuine and file not in _not_upstreams)
        if genuine:
            link = folder / filename  # two names may share it, such as large and large-v3
            if not link.exists():
                link.symlink_to(genuine[0].resolve())
            found.append(name)
    return found


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@pytest.fixture
def random() -> None:
    """Seed as upstream's conftest.py does."""
    python_random.seed(42)
    np.random.seed(42)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a CUDA device where there is none."""
    if torch.cuda.is_available():
        return
    _deselected.extend(item for item in items if item.get_closest_marker("requires_cuda"))
    items[:] = [item for item in items if item not in _deselected]
    if _deselected:
        config.hook.pytest_deselected(items=_deselected)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a run in which graphs should have run and did not; write what ran to `report.json`."""
    status = whisper_max_plugin.status()
    if status["fallbacks"]:
        _complaints.append(f"torch computed in place of a graph: {status['fallbacks']}")
    transcribed = any(item.path.name == "test_transcribe.py" for item in session.items)
    if transcribed and NEEDED_GRAPHS - set(status["graph_runs"]):
        _complaints.append(f"upstream transcribed without all of the graphs: {status['graph_runs']}")
    if _complaints:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    report = {
        **status,
        "package": whisper_max_plugin.__file__,
        "complaints": _complaints,
        "deselected": {item.nodeid: NO_CUDA for item in _deselected},
    }
    (session.config.rootpath / "report.json").write_text(json.dumps(report, indent=2))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was left out and why, and what ran where."""
    status = whisper_max_plugin.status()
    for item in _deselected:
        terminalreporter.write_line(f"DESELECTED {item.nodeid} - {NO_CUDA}")
    for path in _not_upstreams:
        terminalreporter.write_line(f"NOT LISTED {path} - its SHA-256 is not that of upstream's file")
    terminalreporter.write_line(f"graph runs: {status['graph_runs']}; fallbacks: {status['fallbacks']}")
    for complaint in _complaints:
        terminalreporter.write_line(f"FAILED: {complaint}", red=True)
