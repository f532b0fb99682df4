"""Damaged audio: what the ffmpeg command rescues is rescued, and all else is an error that says what is wrong."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile  # type: ignore[import-untyped]
import whisper.audio

from whisper_max_plugin.audio import load_audio

from .fixtures import FFMPEG, assert_same_samples, ffmpeg, int16, needs_ffmpeg, source, speech_like

__all__ = ["source"]  # fixtures, found by name


def corrupted(path: Path, n_spots: int) -> Path:
    """A copy with noise of 8 bytes at spots spread over it; its first 4 kB are left alone."""
    rng = np.random.default_rng(1)
    content = bytearray(path.read_bytes())
    for spot in rng.integers(4096, len(content) - 8, n_spots):
        content[spot : spot + 8] = rng.bytes(8)
    copy = path.with_name(f"corrupted{path.suffix}")
    copy.write_bytes(content)
    return copy


@needs_ffmpeg
def test_corrupt_packets_are_skipped_with_a_warning(
    source: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ffmpeg("-i", source("stereo44"), tmp_path / "speech.mp3")
    path = corrupted(tmp_path / "speech.mp3", 40)
    with caplog.at_level(logging.WARNING, "whisper_max_plugin.audio"):
        assert_same_samples(path, 1)
    [record] = caplog.records
    assert re.search(f"{re.escape(str(path))}: [0-9]+ of [0-9]+ packets are broken", record.getMessage())


@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "opus"])
def test_a_truncated_file_gives_the_rest(source: Callable[[str], Path], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"speech.{suffix}"
    ffmpeg("-i", source("mono16"), path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10 + 1])
    assert_same_samples(path, 1)
    assert 0.9 * 16000 < len(load_audio(path)) < 2 * 16000


def test_a_truncated_flac_warns(
    source: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "truncated.flac"
    soundfile.write(path, *soundfile.read(source("mono16"), dtype="int16"))
    path.write_bytes(path.read_bytes()[:-1000])
    with caplog.at_level(logging.WARNING, "whisper_max_plugin.audio"):
        samples = int16(load_audio(path))
    assert 0 < len(samples) < len(load_audio(source("mono16")))
    assert np.array_equal(samples, int16(load_audio(source("mono16")))[: len(samples)])
    assert re.search(r"1 of [0-9]+ packets are broken .*; what could be decoded is used", caplog.text)


def test_a_file_without_samples_is_an_empty_waveform(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "zero.wav", np.zeros(0), 16000)
    assert load_audio(tmp_path / "zero.wav").shape == (0,)
    if FFMPEG is not None:
        assert whisper.audio.load_audio(str(tmp_path / "zero.wav")).shape == (0,)


@needs_ffmpeg
def test_samples_that_are_not_numbers_become_what_the_command_makes_of_them(tmp_path: Path) -> None:
    signal = speech_like(16000, 1)[:, 0]
    signal[100:110], signal[200], signal[300], signal[400] = np.nan, np.inf, -np.inf, 3
    soundfile.write(tmp_path / "nan.wav", signal, 16000, subtype="FLOAT")
    assert_same_samples(tmp_path / "nan.wav", 0)


# What cannot be loaded: an error like upstream's that names the file and says what is wrong


def write_film_without_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for packet in [*stream.encode(av.VideoFrame(64, 64, "yuv420p")), *stream.encode(None)]:
            container.mux(packet)


def write_flac_of_a_few_bytes(path: Path, n_bytes: int) -> None:
    soundfile.write(path, speech_like(16000, 1), 16000)
    path.write_bytes(path.read_bytes()[:n_bytes])


UNREADABLE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": ("missing.wav", lambda path: None, "No such file or directory"),
    "directory": ("folder", lambda path: path.mkdir(), "Is a directory"),
    "empty": ("empty.wav", lambda path: path.touch(), "the file is empty"),
    "text": (
        "text.wav",
        lambda path: path.write_text("This is no audio at all.\n" * 100),
        r"it is not an audio file that can be decoded \(Invalid data found when processing input\)",
    ),
    "random": (
        "random.mp3",
        lambda path: path.write_bytes(bytes(range(1, 200)) * 50),
        r"it is not an audio file that can be decoded \(.*\)",
    ),
    "film-without-sound": ("film.mp4", write_film_without_sound, "it has no audio stream"),
    "flac-header": (
        "header.flac",
        lambda path: write_flac_of_a_few_bytes(path, 60),
        r"it is not an audio file that can be decoded \(.*\)",
    ),
    "flac-of-half-a-frame": (
        "half.flac",
        lambda path: write_flac_of_a_few_bytes(path, 5000),
        r"1 of 1 packets are broken \(Invalid data found when processing input\)",
    ),
    "flac-without-samples": (
        "zero.flac",
        lambda path: soundfile.write(path, np.zeros(0), 16000),
        "its audio stream is empty",
    ),
    "nine-channels": (
        "nine.wav",
        lambda path: soundfile.write(path, np.zeros((4096, 9)), 16000),
        r"its audio \(9 channels, 16000 Hz\) cannot be converted to mono at 16000 Hz",
    ),
    "unknown-protocol": ("nosuch:speech.wav", lambda path: None, "Protocol not found"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_an_unreadable_file_is_named_with_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    name, write, reason = UNREADABLE[case]
    monkeypatch.chdir(tmp_path)
    write(Path(name))
    with pytest.raises(RuntimeError, match=f"^Failed to load audio: {name}: {reason}$"):
        load_audio(name)
    if FFMPEG is not None:
        with pytest.raises(RuntimeError, match=r"^Failed to load audio: "):
            whisper.audio.load_audio(name)


@needs_ffmpeg
def test_a_file_of_which_most_is_broken_is_refused(source: Callable[[str], Path], tmp_path: Path) -> None:
    ffmpeg("-i", source("stereo44"), tmp_path / "speech.mp4")
    content = bytearray((tmp_path / "speech.mp4").read_bytes())
    start, end = content.index(b"mdat") + 4, content.index(b"moov")
    content[start:end] = b"\xff" * (end - start)
    path = tmp_path / "broken.mp4"
    path.write_bytes(content)
    message = f"^Failed to load audio: {re.escape(str(path))}: [0-9]+ of [0-9]+ packets are broken"
    with pytest.raises(RuntimeError, match=message):
        load_audio(path)
    with pytest.raises(RuntimeError, match=r"^Failed to load audio: "):
        whisper.audio.load_audio(str(path))
