"""`whisper … --backend max --batch_size N`: the files of one by one, whatever else happens on the way."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile  # type: ignore[import-untyped]
from whisper.audio import SAMPLE_RATE

import whisper_max_plugin
from whisper_max_plugin.cli import main

from .activation_fixtures import switched_off
from .compare import skip_unless_upstream_knows
from .data import NANO
from .many_fixtures import recordings
from .voice_fixtures import needs_silero

__all__ = ["recordings", "switched_off"]  # fixtures, found by name

Command = Callable[..., dict[str, str]]


@pytest.fixture
def files(recordings: list[np.ndarray], tmp_path: Path) -> list[Path]:
    """The recordings as files, the longest of the first five among them."""
    paths = [tmp_path / f"part{index}.wav" for index in range(5)]
    for path, recording in zip(paths, recordings, strict=False):
        soundfile.write(path, recording, SAMPLE_RATE)
    return paths


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `whisper FILE…` in this process, and return the files that it wrote by their names."""
    for attribute in ("argv", "excepthook"):
        monkeypatch.setattr(sys, attribute, getattr(sys, attribute))  # to be restored

    def command(*arguments: str | Path) -> dict[str, str]:
        folder = tmp_path / f"transcripts{len(list(tmp_path.iterdir()))}"
        options = ["--model", NANO, "--temperature", "0", "--output_dir", folder, *arguments]
        assert main(["transcribe", *map(str, options)]) == 0
        whisper_max_plugin.uninstall()
        return {path.name: path.read_text(encoding="utf8") for path in folder.iterdir()}

    return command


@pytest.mark.parametrize("options", [[], ["--word_timestamps", "True", "--language", "en"]], ids=["", "words"])
def test_the_files_are_those_of_one_by_one(command: Command, files: list[Path], options: list[str]) -> None:
    expected = command(*files, *options)
    assert len(expected) == 5 * len(files)
    assert command(*files, *options, "--batch_size", "3") == expected


def test_each_text_is_printed_when_its_file_is_done(
    command: Command, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command(*files)
    one_by_one = capsys.readouterr().out
    command(*files, "--batch_size", "5")
    out, err = capsys.readouterr()
    blocks = {}
    for line in out.splitlines():
        if line.endswith(".wav:"):
            lines = blocks[line[:-1]] = []
        else:
            lines.append(line)
    assert sorted(blocks) == [str(path) for path in files]
    assert [line for path in files for line in blocks[str(path)]] == one_by_one.splitlines()
    assert "5 of 5 files: 100%" in err
    assert "x real time" in err


def test_without_verbose_there_is_the_bar_alone(
    command: Command, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command(*files[:2], "--batch_size", "2", "--verbose", "False", "--progress")
    out, err = capsys.readouterr()
    assert out == ""
    assert "2 of 2 files: 100%" in err
    assert "frames/s" not in err  # upstream's bar
    assert "part0.wav" not in err  # and that of --progress, which this one replaces


def test_a_bad_file_is_skipped_as_upstream_does(
    command: Command, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = command(*files)
    missing, noise = files[0].with_name("missing.wav"), files[0].with_name("noise.wav")
    noise.write_bytes(b"this is no audio")
    assert command(missing, files[0], noise, *files[1:], "--batch_size", "2") == expected
    out = capsys.readouterr().out
    assert f"Skipping {missing} due to " in out
    assert f"Skipping {noise} due to " in out


def test_a_file_that_is_named_twice(command: Command, files: list[Path]) -> None:
    assert command(files[0], files[1], files[0], "--batch_size", "3") == command(files[0], files[1])


@needs_silero
def test_with_vad(command: Command, files: list[Path]) -> None:
    skip_unless_upstream_knows({"clip_timestamps": "0"})
    assert command(*files[:3], "--vad", "--batch_size", "3") == command(*files[:3], "--vad")


@pytest.mark.parametrize(("size", "status"), [("0", 2), ("-3", 2), ("many", 2)])
def test_a_size_that_cannot_be_meant(
    command: Command, files: list[Path], size: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command(files[0], "--batch_size", size)
    assert ended.value.code == status
    assert "--batch_size" in capsys.readouterr().err.splitlines()[-1]
