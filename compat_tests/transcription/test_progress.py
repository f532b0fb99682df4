"""`--progress`: one bar for each file, beside the same lines and files as without it."""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import soundfile
import whisper

import whisper_max_plugin
from whisper_max_plugin import choices
from whisper_max_plugin.cli import main

from ..data import NANO, SAMPLE_LONG

MODULE = importlib.import_module("whisper.transcribe")
OPTIONS = ["--model", str(NANO), "--language", "en", "--beam_size", "1", "--output_format", "json"]
BAR = re.compile(r"(\S*): +(\d+)%\|.*?\| (\d+)/(\d+) s \[\d\d:\d\d<[\d:?]+, ([\d.]+) x real time\]")


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    """75 seconds of the long sample: three windows."""
    samples, rate = soundfile.read(SAMPLE_LONG, frames=75 * 16000)
    soundfile.write(tmp_path / "audio.wav", samples, rate)
    return tmp_path / "audio.wav"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Run `whisper-max transcribe` in this process; return what it prints on stdout and on stderr."""
    monkeypatch.setattr(choices.command_line, "backend", None)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[str, str]:
        capsys.readouterr()
        assert main(["transcribe", *map(str, arguments), *OPTIONS]) == 0
        return capsys.readouterr()

    yield run
    whisper_max_plugin.uninstall()


def test_one_bar_goes_through_the_seconds_of_the_file(command, audio: Path) -> None:
    plain_lines, plain_bars = command(audio)
    plain = json.loads(audio.with_suffix(".json").read_text())
    assert plain_bars.count("real time") == 0
    lines, bars = command(audio, "--progress")
    assert lines == plain_lines
    assert json.loads(audio.with_suffix(".json").read_text()) == plain

    shown = BAR.findall(bars)
    assert {(name, int(total)) for name, _, _, total, _ in shown} == {("audio.wav", 75)}
    seconds = [int(second) for _, _, second, _, _ in shown]
    assert seconds == sorted(seconds)
    assert (seconds[0], seconds[-1]) == (0, 75)
    assert shown[-1][1] == "100"
    assert float(shown[-1][4]) > 1


def test_with_verbose_false_the_bar_is_upstreams_own(command, audio: Path) -> None:
    _, bars = command(audio, "--progress", "--verbose", "False")
    assert "7500/7500" in bars
    assert "real time" not in bars


def test_each_file_has_its_bar_and_a_bad_one_none(command, audio: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    lines, bars = command("bad.wav", "audio.wav", "--progress")
    assert "Skipping bad.wav" in lines
    assert {name for name, *_ in BAR.findall(bars)} == {"audio.wav"}


def test_silence_without_a_window_is_no_error(command, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "empty.wav", [], 16000)
    lines, bars = command("empty.wav", "--progress")
    assert "Skipping" not in lines
    assert BAR.findall(bars) == []


def test_afterwards_the_function_of_the_command_is_upstreams(command, audio: Path) -> None:
    assert whisper.transcribe is MODULE.transcribe
    command(audio, "--progress")
    assert whisper.transcribe is not MODULE.transcribe  # the package's own was upstream's all the time
    whisper_max_plugin.uninstall()
    assert whisper.transcribe is MODULE.transcribe


@pytest.mark.parametrize("module", ["whisper", "whisper.transcribe"])
def test_on_a_terminal_lines_stand_above_the_bar(audio: Path, module: str) -> None:
    options = ["--backend", "max", "--progress", "--output_dir", str(audio.parent), *OPTIONS]
    shown = on_a_terminal("-W", "ignore", "-m", module, str(audio), *options)
    assert "75/75 s" in shown
    lines = [re.split("\r", line.removesuffix("\r"))[-1] for line in shown.split("\n")]
    segments = json.loads(audio.with_suffix(".json").read_text())["segments"]
    assert [line.partition("]")[2][2:] for line in lines if line.startswith("[")] == [
        segment["text"].strip() for segment in segments
    ]


def on_a_terminal(*arguments: str) -> str:
    """Run Python with stdout and stderr on one terminal; return what went there."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # tqdm shows no bar without a width
    with subprocess.Popen([sys.executable, *arguments], stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        shown = b""
        try:
            while some := os.read(controller, 4096):
                shown += some
        except OSError:  # Linux's way to say that the other side is closed
            pass
    os.close(controller)
    assert process.returncode == 0, shown.decode()
    return shown.decode()
