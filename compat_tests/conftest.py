"""What all tests share: the pairs of models to compare, and the proof that graphs ran and nothing fell back unseen."""

from __future__ import annotations

import faulthandler
import functools
import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import pytest
import whisper
import whisper.model
from whisper.model import Whisper

import whisper_max_plugin
from whisper_max_plugin.bench.weights import random_checkpoint
from whisper_max_plugin.checkpoints.sizes import OFFICIAL_DIMS
from whisper_max_plugin.inference.modules import MaxAudioEncoder, MaxTextDecoder
from whisper_max_plugin.report import REPORT

from .data import NANO

_torch_passes: list[str] = []  # forward passes of accelerated models that upstream's torch code computed
_graph_runs: list[int] = []  # per test
_fallbacks: Counter[bool] = Counter()  # declared ones: in tests that provoke them, and in others
_deselected: list[pytest.Item] = []
_needed_graphs: list[bool] = []  # of each process that ran tests


@dataclass(frozen=True)
class Pair:
    """One checkpoint, loaded as upstream does and accelerated."""

    torch: Whisper
    max: Whisper
    path: Path


def load_pair(path: Path) -> Pair:
    """Load `path` with both backends, in evaluation mode, whatever is installed at the moment."""
    whisper_max_plugin.install()
    reference = whisper.load_model(str(path), device="cpu", backend="torch").eval()
    accelerated = whisper.load_model(str(path), device="cpu", backend="max").eval()
    return Pair(reference, accelerated, path)


@pytest.fixture
def installed() -> Iterator[None]:
    """whisper as users of the plugin have it, whatever ran before: `transcribe()` takes spectrograms from graphs."""
    was_active = whisper_max_plugin.is_active()
    whisper_max_plugin.install()
    yield
    if not was_active:
        whisper_max_plugin.uninstall()


@pytest.fixture(scope="session")
def nano() -> Pair:
    """The small model that really transcribes."""
    return load_pair(NANO)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Random weights of tiny's dimensions."""
    return load_pair(random_checkpoint(tmp_path_factory.mktemp("weights") / "tiny.pt", OFFICIAL_DIMS["tiny"]))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Random weights of base's dimensions."""
    return load_pair(random_checkpoint(tmp_path_factory.mktemp("weights") / "base.pt", OFFICIAL_DIMS["base"]))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "falls_back: the test provokes a declared fallback to torch")
    config.addinivalue_line("markers", "large: needs gigabytes of memory and minutes; run by `pytest -m large`")
    _count_torch_passes()


def _count_torch_passes() -> None:
    """Note each pass that upstream's own code computes for an accelerated model.

    Upstream's functions stay what they are: graphs do not stand for others.
    """
    for cls in (MaxAudioEncoder, MaxTextDecoder):
        original = cls._forward_torch

        @functools.wraps(original)
        def forward(self, *args, _original=original, **kwargs):  # type: ignore[no-untyped-def]
            result = _original(self, *args, **kwargs)
            _torch_passes.append(type(self).__name__)
            return result

        cls._forward_torch = forward


@pytest.fixture(autouse=True)
def no_undeclared_fallback(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test in which torch computed what a graph should have, unless it is marked `falls_back`."""
    before = REPORT.snapshot()
    passes = len(_torch_passes)
    yield
    after = REPORT.snapshot()
    _graph_runs.append(sum(after["graph_runs"].values()) - sum(before["graph_runs"].values()))
    declared = sum(after["fallbacks"].values()) - sum(before["fallbacks"].values())
    provoked = request.node.get_closest_marker("falls_back") is not None
    _fallbacks[provoked] += declared
    if not provoked:
        assert len(_torch_passes) == passes, f"torch computed {_torch_passes[passes:]} in place of a graph"
        assert declared == 0, f"unexpected fallbacks: {after['fallbacks']}"
    else:
        of_passes = declared - _spectrograms(after["fallbacks"]) + _spectrograms(before["fallbacks"])
        assert len(_torch_passes) - passes == of_passes, "a fallback was not declared"


def _spectrograms(fallbacks: dict[str, int]) -> int:
    return sum(n for reason, n in fallbacks.items() if reason.startswith("the spectrogram"))


@pytest.fixture(scope="session", autouse=True)
def recorded_facts(record_testsuite_property: Callable[[str, object], None]) -> Iterator[None]:
    """Write into the results (`--junitxml`) what matrix.py shows of a run beside the outcomes."""
    for package in ("openai-whisper", "torch", "max"):
        record_testsuite_property(package, metadata.version(package))
    record_testsuite_property("python", platform.python_version())
    record_testsuite_property("package", whisper_max_plugin.__file__)
    yield
    record_testsuite_property("graph_runs", sum(_graph_runs))
    record_testsuite_property("fallbacks", _fallbacks[False])
    record_testsuite_property("provoked_fallbacks", _fallbacks[True])
    record_testsuite_property("deselected", len(_deselected))


def pytest_runtest_protocol(item: pytest.Item) -> None:
    """Leave beside the results, which a process that dies or hangs never writes, which test it was in, and where."""
    if results := item.config.getoption("xmlpath"):
        running = _running_file(Path(results).with_suffix(".running"))
        running.seek(0)
        running.truncate()
        running.write(f"{item.nodeid}\n")
        running.flush()
        if limit := float(item.config.getini("faulthandler_timeout")):
            # in place of pytest's, which writes the same among all else that is printed, and ends this as its own
            faulthandler.dump_traceback_later(limit, exit=True, file=running)


@functools.cache
def _running_file(path: Path) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    running = path.open("w")
    faulthandler.enable(running)
    return running


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    _deselected.extend(items)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a run that needed graphs but ran none."""
    models = {"nano", "tiny", "base", "turbo", "english"}
    _needed_graphs.append(any(models & set(item.fixturenames) for item in session.items))
    if hasattr(session.config, "workeroutput"):  # one process of several (`pytest -n`), which share the tests
        facts = {"graph_runs": sum(_graph_runs), "torch_passes": _torch_passes, "needed_graphs": _needed_graphs}
        session.config.workeroutput.update(facts)
    elif exitstatus == pytest.ExitCode.OK and any(_needed_graphs) and sum(_graph_runs) <= 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add what a process of several did, unless it died."""
    output = getattr(node, "workeroutput", {})
    _graph_runs.append(output.get("graph_runs", 0))
    _torch_passes.extend(output.get("torch_passes", []))
    _needed_graphs.extend(output.get("needed_graphs", []))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what ran where."""
    terminalreporter.write_line(
        f"graph runs: {sum(_graph_runs)}; passes of accelerated models on torch: {len(_torch_passes)}, all declared"
    )


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """End the process where a thread that a test left behind would keep it for ever; say what it waits for."""
    faulthandler.dump_traceback_later(120, exit=True, file=sys.__stderr__)
