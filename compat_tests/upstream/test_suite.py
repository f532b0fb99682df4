"""Upstream's own tests, unedited, pass with the package switched on, and they run graphs.

They run in a pytest of their own; upstream/whisper_max_upstream_tests.py says which checkpoints they get.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import whisper

import whisper_max_plugin

from ..data import NANO, jfk, upstream_tests

PLUGIN = Path(__file__).with_name("whisper_max_upstream_tests.py")
FILES = ["test_audio.py", "test_normalizer.py", "test_timing.py", "test_tokenizer.py", "test_transcribe.py"]
NO_CUDA = "requires_cuda: torch sees no CUDA device"

pytestmark = pytest.mark.timeout(6 * 3600)  # with all official models at hand


@dataclass(frozen=True)
class Run:
    """What a pytest of its own said about the test files of `folder`."""

    folder: Path
    exit_status: int
    output: str
    report: dict[str, object]
    outcomes: dict[str, dict[str, str]]  # by file and test: passed, failed, error or skipped


def run_tests(folder: Path, files: dict[str, bytes], **environment: str) -> Run:
    """Run test files beside upstream's recording and nano, with the package switched on as a pytest plugin."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "pytest.ini").write_text("[pytest]\n")
    shutil.copy(jfk(), folder / "jfk.flac")  # may be the recording as a wav file: decoders look at the content
    (folder / "nano.pt").symlink_to(NANO)
    options = ["-p", PLUGIN.stem, "-p", "no:cacheprovider", "-v", "--junitxml", "junit.xml"]
    ours = ("PYTEST_", "WHISPER_BACKEND", "WHISPER_MAX_STRICT", "WHISPER_MAX_NO_HOOK")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    process = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(name for name in files if name.startswith("test_"))],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(PLUGIN.parent), **environment},  # on the path there is not this repository
        capture_output=True,
        text=True,
    )
    output = process.stdout + process.stderr
    assert (folder / "report.json").exists(), output
    outcomes: dict[str, dict[str, str]] = {}
    for case in ElementTree.parse(folder / "junit.xml").iter("testcase"):
        problems = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        outcome = {"failure": "failed", "error": "error", "skipped": "skipped"}[problems[0]] if problems else "passed"
        outcomes.setdefault(f"{case.attrib['classname']}.py", {})[case.attrib["name"]] = outcome
    return Run(folder, process.returncode, output, json.loads((folder / "report.json").read_text()), outcomes)


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory, record_testsuite_property) -> Run:
    """The run of all of upstream's tests."""
    run = run_tests(tmp_path_factory.mktemp("upstream"), upstream_tests())
    passed = [test for tests in run.outcomes.values() for test, outcome in tests.items() if outcome == "passed"]
    record_testsuite_property("upstream_passed", len(passed))
    record_testsuite_property("upstream_total", sum(map(len, run.outcomes.values())))
    record_testsuite_property("upstream_deselected", len(run.report["deselected"]))
    record_testsuite_property("upstream_graph_runs", sum(run.report["graph_runs"].values()))
    return run


@pytest.fixture
def printed_on_failure(request: pytest.FixtureRequest, upstream: Run) -> None:
    """Show the output of upstream's run beside each of the tests that judge it."""
    request.node.add_report_section("call", "upstream's tests", upstream.output)


# Upstream's tests


@pytest.mark.parametrize("file", FILES)
def test_upstreams_tests_pass(upstream: Run, printed_on_failure, file: str):
    assert upstream.outcomes[file]
    assert set(upstream.outcomes[file].values()) == {"passed"}, upstream.outcomes[file]


def test_the_run_as_a_whole_passes(upstream: Run, printed_on_failure):
    assert upstream.exit_status == 0
    assert upstream.report["complaints"] == []


def test_they_are_all_there_and_unedited(upstream: Run):
    assert sorted(upstream_tests()) == FILES == sorted(upstream.outcomes)
    assert {name: (upstream.folder / name).read_bytes() for name in FILES} == upstream_tests()


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a CUDA device nothing is deselected")
def test_nothing_is_deselected_but_what_needs_cuda_and_each_is_named_with_the_reason(upstream: Run):
    marked = [
        *(f"test_timing.py::test_dtw_cuda_equivalence[{size}]" for size in ("10-20", "32-16", "123-1500", "234-189")),
        *(f"test_timing.py::test_median_filter_equivalence[shape{number}]" for number in range(4)),
    ]
    assert upstream.report["deselected"] == dict.fromkeys(marked, NO_CUDA)
    for test in marked:
        assert f"DESELECTED {test} - {NO_CUDA}\n" in upstream.output
    assert f"{len(marked)} deselected" in upstream.output.splitlines()[-1]


def test_they_ran_the_graphs_of_the_installed_package(upstream: Run):
    assert upstream.report["package"] == whisper_max_plugin.__file__
    assert (upstream.report["active"], upstream.report["backend"]) == (True, "max")
    runs = upstream.report["graph_runs"]
    of_words = {"cross_scores", "alignment", "token_probs"}
    assert set(runs) == {"log_mel", "encoder", "cross_kv", "prefill", "step", "search", *of_words}
    assert all(count > 0 for count in runs.values())
    assert upstream.report["fallbacks"] == {}


def test_they_transcribed_with_nano_and_the_official_models_at_hand(upstream: Run):
    transcribed = set(upstream.outcomes["test_transcribe.py"])
    official = {f"test_transcribe[{name}]" for name in whisper.available_models()}
    at_hand = list((upstream.folder / "models").iterdir())
    assert transcribed - official == {"test_transcribe[nano.pt]"}
    assert bool(transcribed & official) == bool(at_hand)


# A run that should be red is red

PASSES_BUT_FALLS_BACK = b"""
import whisper

def test_transcribe():
    model = whisper.load_model(whisper.available_models()[0])
    model.encoder.blocks[0].register_forward_hook(lambda *_: None)  # a graph cannot serve this
    assert "fellow" in model.transcribe("jfk.flac", temperature=0.0)["text"]
"""
PASSES_ON_TORCH = b"""
import whisper

def test_transcribe():
    model = whisper.load_model(whisper.available_models()[0], backend="torch")
    assert "fellow" in model.transcribe("jfk.flac", temperature=0.0)["text"]
"""


@pytest.mark.parametrize(
    ("test", "complaint"),
    [
        (PASSES_BUT_FALLS_BACK, "torch computed in place of a graph: {"),
        (PASSES_ON_TORCH, "upstream transcribed without all of the graphs: {}"),
    ],
    ids=["fallback", "no graphs"],
)
def test_a_run_is_red_although_its_tests_pass(tmp_path: Path, test: bytes, complaint: str):
    run = run_tests(tmp_path, {"test_transcribe.py": test})
    assert run.outcomes == {"test_transcribe.py": {"test_transcribe": "passed"}}
    assert run.exit_status == pytest.ExitCode.TESTS_FAILED
    assert f"FAILED: {complaint}" in run.output


def test_a_run_is_red_when_one_of_upstreams_tests_fails(tmp_path: Path):
    broken = upstream_tests()["test_tokenizer.py"].replace(b"def test_tokenizer(", b"def test_tokenizer(absent, ")
    run = run_tests(tmp_path, {"test_tokenizer.py": broken})
    assert set(run.outcomes["test_tokenizer.py"].values()) == {"passed", "error"}
    assert run.exit_status == pytest.ExitCode.TESTS_FAILED
    assert run.report["complaints"] == []


# Official models


def test_an_official_model_at_hand_is_listed_and_loaded_by_its_name_and_another_file_is_not(tmp_path: Path):
    """Here nano passes for upstream's tiny.en, and also lies there as base, whose checksum is another."""
    at_hand, folder = tmp_path / "at hand", tmp_path / "tests"
    at_hand.mkdir()
    folder.mkdir()
    for name in ("tiny.en.pt", "base.pt"):
        shutil.copy(NANO, at_hand / name)
    sha256 = hashlib.sha256(NANO.read_bytes()).hexdigest()
    models = {"tiny.en": f"https://example.org/{sha256}/tiny.en.pt", "base": f"https://example.org/{'0' * 64}/base.pt"}
    conftest = f"import whisper\nwhisper._MODELS = {models}\nwhisper._ALIGNMENT_HEADS = dict.fromkeys({list(models)})\n"
    test = """
        import whisper

        def test_models():
            assert whisper.available_models() == ["nano.pt", "tiny.en"]
            assert whisper.load_model("tiny.en").dims == whisper.load_model("nano.pt").dims
    """
    files = {"conftest.py": conftest.encode(), "test_models.py": inspect.cleandoc(test).encode()}
    run = run_tests(folder, files, WHISPER_MAX_TEST_MODELS=str(at_hand))
    assert run.outcomes == {"test_models.py": {"test_models": "passed"}}
    assert f"NOT LISTED {at_hand / 'base.pt'} - its SHA-256 is not that of upstream's file\n" in run.output
