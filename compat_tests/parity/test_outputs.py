"""The `whisper` command writes upstream's files: txt, vtt, srt and tsv to the byte, json to the byte but for scores.

Scores are sums of float32 numbers, and upstream's own change with the processor; a test shows by how much.
"""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from whisper.transcribe import cli

import whisper_max_plugin
from whisper_max_plugin import choices, startup

from ..data import NANO, SAMPLE, SAMPLE_DE, SAMPLE_ES, SAMPLE_LONG
from . import grid
from .exact import assert_json_equal_but_for_scores, difference_of_scores

CAPABILITY = torch.backends.cpu.get_cpu_capability()
FORMATS = ("txt", "vtt", "srt", "tsv", "json")
WORDS = ["--word_timestamps", "True"]
LINES = ["--max_line_width", "30", "--max_line_count", "2"]

Command = Callable[..., tuple[dict[str, str], str]]

# The command's default is 5 beams.
COMMANDS: dict[str, tuple[list[Path], list[str]]] = {
    "three files": ([SAMPLE, SAMPLE_ES, SAMPLE_DE], []),
    "three files, words highlighted": ([SAMPLE, SAMPLE_ES, SAMPLE_DE], [*WORDS, "--highlight_words", "True"]),
    "a minute": ([SAMPLE_LONG], ["--clip_timestamps", "0,60"]),
    "long file, words highlighted": ([SAMPLE_LONG], [*WORDS, "--highlight_words", "True"]),
    "lines": ([SAMPLE_DE], [*WORDS, *LINES]),
    "lines, words highlighted": ([SAMPLE], [*WORDS, *LINES, "--highlight_words", "True"]),
    "three words a line": ([SAMPLE], [*WORDS, "--max_words_per_line", "3"]),
    "translation": ([SAMPLE_ES, SAMPLE_DE], ["--task", "translate"]),
    "greedy": ([SAMPLE], ["--beam_size", "None"]),
    "sampling": ([SAMPLE_ES], ["--temperature", "0.4", "--temperature_increment_on_fallback", "None"]),
    "patience, length penalty": ([SAMPLE], ["--patience", "2", "--length_penalty", "0.6"]),
    "a prompt, unconditioned": (
        [SAMPLE],
        ["--initial_prompt", "The old man.", "--condition_on_previous_text", "False"],
    ),
    "clips": ([SAMPLE], ["--clip_timestamps", "0,9.5,12,25"]),
    "hallucinations skipped": ([SAMPLE], [*WORDS, "--hallucination_silence_threshold", "0.5"]),
    "refused": ([SAMPLE_ES], ["--beam_size", "None", "--patience", "2"]),
}


@pytest.fixture
def whisper_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `whisper FILES… --backend NAME …` in this process; return its files by name, and what it printed."""
    whisper_max_plugin.install()
    for module, attribute in ((choices.command_line, "backend"), (sys, "excepthook"), (sys, "argv")):
        monkeypatch.setattr(module, attribute, getattr(module, attribute))  # to be restored

    def run(backend: str, audio: list[Path], options: list[str]) -> tuple[dict[str, str], str]:
        folder = tmp_path / backend
        sys.argv = [
            "whisper",
            *map(str, audio),
            "--model",
            str(NANO),
            "--backend",
            backend,
            "-o",
            str(folder),
            *options,
        ]
        startup.accept_backend_option()
        torch.manual_seed(0)
        capsys.readouterr()
        cli()
        return files_in(folder), capsys.readouterr().out

    return run


def files_in(folder: Path) -> dict[str, str]:
    return {path.name: path.read_bytes().decode() for path in folder.iterdir()}


def skip_unless_upstream_takes(options: list[str]) -> None:
    """Skip a test of options that the command of the installed upstream does not have yet."""
    source = inspect.getsource(cli)
    if unknown := [option for option in options if option.startswith("--") and f'"{option}"' not in source]:
        pytest.skip(f"this version of openai-whisper has no {', '.join(unknown)}")


def assert_same_files(actual: dict[str, str], expected: dict[str, str]) -> None:
    assert actual.keys() == expected.keys()
    for name, text in expected.items():
        if name.endswith(".json"):
            assert_json_equal_but_for_scores(actual[name], text)
        else:
            assert actual[name] == text, name


@pytest.mark.filterwarnings("ignore:FP16 is not supported on CPU")
@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_writes_and_prints_upstreams_bytes(whisper_command: Command, name: str) -> None:
    audio, options = COMMANDS[name]
    skip_unless_upstream_takes(options)
    ours, printed = whisper_command("max", audio, options)
    theirs, wanted = whisper_command("torch", audio, options)
    assert_same_files(ours, theirs)
    assert printed == wanted
    if name != "refused":
        assert theirs.keys() == {f"{path.stem}.{format}" for path in audio for format in FORMATS}
        assert all(theirs.values())


@pytest.mark.filterwarnings("ignore:FP16 is not supported on CPU")
@pytest.mark.parametrize("recording", grid.recordings())
def test_a_recording(whisper_command: Command, recording: str) -> None:
    audio = [grid.recordings()[recording]()]
    options = [*WORDS, "--highlight_words", "True", *LINES]
    ours, printed = whisper_command("max", audio, options)
    theirs, wanted = whisper_command("torch", audio, options)
    assert_same_files(ours, theirs)
    assert printed == wanted


def installed_command(folder: Path, backend: str, **environment: str) -> dict[str, str]:
    """Run the installed `whisper` in a process of its own; return its files."""
    command = shutil.which("whisper", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if command is None:
        pytest.skip("the whisper command is not installed")
    files = [str(SAMPLE), str(SAMPLE_ES)]
    result = subprocess.run(
        [command, *files, "--model", str(NANO), "--backend", backend, "-o", str(folder), *WORDS],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return files_in(folder)


def test_the_installed_command(tmp_path: Path) -> None:
    assert_same_files(
        installed_command(tmp_path / "max", "max"),
        installed_command(tmp_path / "torch", "torch"),
    )


@pytest.mark.skipif(CAPABILITY != "AVX512", reason="measured between AVX-512 and older instructions")
def test_upstreams_own_scores_change_with_the_processor(tmp_path: Path) -> None:
    """That is why json files are not compared to the byte: ours is closer to upstream's than its own from elsewhere."""
    here = installed_command(tmp_path / "here", "torch")
    elsewhere = installed_command(tmp_path / "elsewhere", "torch", ATEN_CPU_CAPABILITY="avx2")
    ours = installed_command(tmp_path / "max", "max")
    assert_same_files(elsewhere, here)
    for name in ("sample.json", "sample_es.json"):
        assert elsewhere[name] != here[name]
        assert difference_of_scores(ours[name], here[name]) < difference_of_scores(elsewhere[name], here[name])
