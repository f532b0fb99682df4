"""What README.md, docs/migration.md and docs/many-files.md tell people to write does what they say."""

from __future__ import annotations

import glob
import inspect
import re
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import whisper
from whisper.decoding import DecodingOptions

import whisper_max_plugin
from whisper_max_plugin.cli import main
from whisper_max_plugin.inference.model import MaxWhisper
from whisper_max_plugin.report import REPORT

from ..conftest import Pair
from ..data import NANO, ROOT, SAMPLE, reference_text
from .snippets import RECORDINGS, Snippet, lay_out, snippets

MIGRATION = snippets("migration.md")
MANY_FILES = snippets("many-files.md")


def section(name: str, language: str = "python", package: str | None = None) -> list[Snippet]:
    return [
        snippet
        for snippet in (*MIGRATION, *MANY_FILES)
        if (snippet.section, snippet.language, snippet.package) == (name, language, package)
    ]


@pytest.fixture(autouse=True)
def recordings(nano: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that a reader is in, in a process in which nothing was imported yet; graphs are compiled."""
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "whisper_max_plugin.auto", raising=False)
    monkeypatch.setattr(REPORT, "_fallbacks", Counter())
    whisper_max_plugin.uninstall()


def test_every_block_is_run_here_or_where_its_package_is_installed() -> None:
    run_here = {"… openai-whisper", "… faster-whisper", "Many files at a time", "Order and errors"}
    for snippet in (*MIGRATION, *MANY_FILES):
        assert snippet.section in run_here or snippet.package in ("stable-ts", "whisper-timestamped")


def test_the_first_lines_of_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {}
    (script,) = (snippet for snippet in snippets("../README.md") if snippet.language == "python")
    script.run(namespace)
    assert capsys.readouterr().out.strip() == reference_text(SAMPLE)
    assert isinstance(namespace["model"], MaxWhisper)


def test_from_openai_whisper(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {}
    first, second = section("… openai-whisper")
    first.run(namespace)
    assert capsys.readouterr().out.strip() == reference_text(SAMPLE)
    assert isinstance(namespace["model"], MaxWhisper)
    second.run(namespace)
    assert len(namespace["again"]["segments"]) == 11


def test_from_faster_whisper(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {}
    transcribe, probabilities, speech = section("… faster-whisper")
    transcribe.run(namespace)
    ours = capsys.readouterr().out
    assert ours.startswith("en\n")
    assert len(ours.splitlines()) == 1 + 11
    probabilities.run(namespace)
    language, probability = capsys.readouterr().out.split()
    assert language == "en"
    assert float(probability) > 0.9
    if "clip_timestamps" in inspect.signature(whisper.transcribe).parameters:
        pytest.importorskip("silero_vad", reason="silero-vad is not installed, the extra vad")
        speech.run(namespace)
        assert namespace["result"]["text"].strip() == reference_text(SAMPLE)


def test_faster_whispers_own_block_prints_the_same(
    nano: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faster_whisper", reason="faster-whisper is not installed, the extra bench")
    from whisper_max_plugin.bench.subjects.ctranslate2_model import write

    folder = tmp_path / "converted"
    folder.mkdir()
    write(nano.torch, folder)
    (theirs,) = section("… faster-whisper", package="faster-whisper")
    theirs.run({}, folder)
    printed = capsys.readouterr().out
    section("… faster-whisper")[0].run({})
    assert capsys.readouterr().out == printed


def table(heading: str) -> dict[str, str]:
    """Return a table of docs/migration.md: for each name in a row's first cell, what the row says."""
    page = (ROOT / "docs" / "migration.md").read_text(encoding="utf8")
    _, _, rest = page.partition(f"| `{heading}` | here |\n|---|---|\n")
    rows = [line.strip("| ").split(" | ") for line in rest.partition("\n\n")[0].splitlines()]
    return {name: here for theirs, here in rows for name in re.findall(r"`([a-z]\w+)`", theirs)}


def test_the_table_names_every_option_of_faster_whisper_and_what_is_the_same_is() -> None:
    faster_whisper = pytest.importorskip("faster_whisper", reason="faster-whisper is not installed, the extra bench")
    load, transcribe = table("WhisperModel(…)"), table("transcribe(…)")
    not_options = {"self", "audio", "model_kwargs"}
    assert load.keys() == {*inspect.signature(faster_whisper.WhisperModel).parameters} - not_options
    theirs = inspect.signature(faster_whisper.BatchedInferencePipeline.transcribe).parameters
    assert transcribe.keys() == theirs.keys() - not_options
    ours = {*inspect.signature(whisper.transcribe).parameters, *inspect.signature(DecodingOptions).parameters}
    same = {name for name, here in transcribe.items() if here.startswith("the same")}
    assert same <= ours
    assert {name for name, here in transcribe.items() if here.startswith("none")}.isdisjoint(ours)
    renamed = {re.match(r"`(\w+)", here)[1] for here in transcribe.values() if re.match(r"`(\w+)[`=]", here)}
    assert renamed <= {*ours, "transcribe_many"}


@pytest.mark.parametrize(
    "snippet", section("Many files at a time") + section("Order and errors"), ids=lambda s: s.section
)
def test_many_files(nano: Pair, snippet: Snippet, capsys: pytest.CaptureFixture[str]) -> None:
    whisper_max_plugin.install()
    language = "en" if 'language="en"' in snippet.code else None
    options = {"language": language, "fp16": False}
    texts = {name: nano.max.transcribe(name, **options)["text"] for name in RECORDINGS if name != "interview.mp3"}
    capsys.readouterr()
    snippet.run({"model": nano.max, "transcribe_many": whisper_max_plugin.transcribe_many})
    printed = capsys.readouterr().out.splitlines()
    if language is None:
        assert printed == list(texts.values())
    else:
        assert sorted(printed) == sorted(f"{name}: {text}" for name, text in texts.items())


@pytest.mark.parametrize(
    "snippet", [s for s in (*MIGRATION, *MANY_FILES) if s.language == "sh"], ids=lambda snippet: snippet.code.strip()
)
def test_commands(snippet: Snippet, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: `whisper-max transcribe` is `whisper` without its start-up."""
    for attribute in ("argv", "excepthook"):
        monkeypatch.setattr(sys, attribute, getattr(sys, attribute))  # to be restored
    program, *words = shlex.split(snippet.with_model(NANO))
    assert program == "whisper"
    arguments = [name for word in words for name in (sorted(glob.glob(word)) if "*" in word else [word])]
    assert main(["transcribe", *arguments]) == 0
    texts = {Path(word).with_suffix(".txt") for word in arguments if word in RECORDINGS}
    assert texts
    assert all(path.read_text(encoding="utf8") for path in texts)
    assert reference_text(SAMPLE).split() == Path("interview.txt").read_text(encoding="utf8").split()
