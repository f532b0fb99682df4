"""`whisper … --backend max --vad`: upstream's command that hears nothing but speech."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile  # type: ignore[import-untyped]
from whisper.audio import SAMPLE_RATE

import whisper_max_plugin

from ..commands.fixtures import Command, command
from ..compare import skip_unless_upstream_knows
from ..data import SAMPLE_DE
from ..seam.activation_fixtures import switched_off
from .fixtures import QUIET, german_after_silence, mostly_silent, needs_silero, noise, without_silero

__all__ = ["command", "switched_off"]  # fixtures, found by name


@pytest.fixture(autouse=True)
def upstream_knows_clips() -> None:
    skip_unless_upstream_knows({"clip_timestamps": "0"})


@pytest.fixture
def silent(tmp_path: Path) -> Path:
    path = tmp_path / "silent.wav"
    soundfile.write(path, noise(40, QUIET), SAMPLE_RATE)
    return path


@needs_silero
def test_the_files_are_upstreams_for_the_same_clips(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "pauses.wav"
    samples, sentences = mostly_silent()
    soundfile.write(path, samples, SAMPLE_RATE)
    clips = ",".join(map(str, whisper_max_plugin.speech_clips(path)))
    expected = command(path, "--backend", "torch", "--clip_timestamps", clips, "--language", "en")
    actual = command(path, "--vad")
    assert actual.keys() == expected.keys()
    for name in ("pauses.srt", "pauses.txt", "pauses.tsv", "pauses.vtt"):
        assert actual[name] == expected[name]
    assert actual["pauses.txt"].splitlines() == [sentence.text for sentence in sentences]


@needs_silero
def test_each_file_has_its_own_speech_and_language(
    command: Command, silent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    late = tmp_path / "late.wav"
    soundfile.write(late, german_after_silence(), SAMPLE_RATE)
    files = command(silent, late, SAMPLE_DE, "--vad", "--output_format", "srt")
    assert files["silent.srt"] == ""
    assert "00:00:40" in files["late.srt"]
    assert "00:00:00" in files["sample_de.srt"]
    assert capsys.readouterr().out.count("Detected language: German") == 2


@needs_silero
def test_with_clips_of_ones_own_it_is_one_line_and_status_2(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        command(SAMPLE_DE, "--vad", "--clip_timestamps", "1,3")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("error: voice activity and clip_timestamps both say what to transcribe: give one of them")


def test_a_missing_package_is_one_line_and_status_2(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_silero(monkeypatch)
    with pytest.raises(SystemExit, match="2"):
        command(SAMPLE_DE, "--vad")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        "error: silero-vad, which finds speech in audio, is not installed: pip install 'silero-vad>=6.2.3'"
    )
