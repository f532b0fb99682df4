"""Recordings in many formats, and the comparison of their samples with upstream's."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile  # type: ignore[import-untyped]
import whisper.audio

from whisper_max_plugin.audio import load_audio

FFMPEG = shutil.which("ffmpeg")
needs_ffmpeg = pytest.mark.skipif(FFMPEG is None, reason="the ffmpeg command is not on PATH to compare with")

# name: (sample rate in Hz, channels, soundfile's name of the sample format)
SOURCES = {
    "mono16": (16000, 1, "PCM_16"),
    "mono16_float": (16000, 1, "FLOAT"),
    "mono8": (8000, 1, "PCM_16"),
    "mono11_u8": (11025, 1, "PCM_U8"),
    "stereo16": (16000, 2, "PCM_16"),
    "stereo44": (44100, 2, "PCM_16"),
    "stereo44_24": (44100, 2, "PCM_24"),
    "surround48": (48000, 6, "PCM_16"),
    "mono96_double": (96000, 1, "DOUBLE"),
}


def speech_like(sample_rate: int, channels: int) -> np.ndarray:
    """3 s of a voice gliding in pitch, a sweep and noise, shape = (n_samples, channels), always the same."""
    # Whole AAC frames, as FFmpeg versions cut the last one differently.
    n_samples = 3 * sample_rate // 1024 * 1024
    t = np.arange(n_samples) / sample_rate
    noise = np.random.default_rng(0).standard_normal((channels, n_samples))
    sweep = np.sin(2 * np.pi * (100 * t + 0.15 * sample_rate / 3 * t**2))
    signal = np.zeros((n_samples, channels))
    for channel in range(channels):
        phase = 2 * np.pi * np.cumsum(120 + 40 * np.sin(2 * np.pi * 0.7 * t + channel)) / sample_rate
        voice = np.sum([np.sin(k * phase) / k for k in range(1, 12)], axis=0)
        loudness = 0.6 + 0.4 * np.sin(2 * np.pi * 3 * t + channel)
        signal[:, channel] = 0.25 * loudness * voice + 0.2 * sweep + 0.05 * noise[channel]
    return np.clip(signal, -1, 1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that writes one of SOURCES as a WAV file, once, and returns its path."""
    folder = tmp_path_factory.mktemp("sources")

    @functools.cache
    def write(name: str) -> Path:
        sample_rate, channels, subtype = SOURCES[name]
        path = folder / f"{name}.wav"
        soundfile.write(path, speech_like(sample_rate, channels), sample_rate, subtype=subtype)
        return path

    return write


@pytest.fixture(scope="module")
def largest_step(source: Callable[[str], Path]) -> int:
    """How far resampled samples may be from the command's, in steps of the 16-bit scale: 1.

    After version 5, ffmpeg resamples 16-bit audio in float: up to 4 steps apart from version 5 and from us.
    """
    command = ["ffmpeg", "-nostdin", "-v", "debug", "-i", str(source("stereo44"))]
    command += ["-ac", "1", "-ar", "16000", "-f", "null", "-"]
    log = subprocess.run(command, capture_output=True, check=True).stderr
    return 5 if b"Using fltp internally" in log else 1


def ffmpeg(*arguments: str | Path) -> None:
    """Run the ffmpeg command; skip the test if this ffmpeg was built without the encoder."""
    command = ["ffmpeg", "-nostdin", "-y", "-v", "error", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if "Unknown encoder" in result.stderr:
        pytest.skip(f"this ffmpeg lacks an encoder the test needs: {result.stderr.splitlines()[0]}")
    assert result.returncode == 0, result.stderr


def int16(waveform: np.ndarray) -> np.ndarray:
    assert waveform.dtype == np.float32
    assert waveform.ndim == 1
    samples = waveform * 32768
    assert np.array_equal(samples, np.round(samples))
    return samples.astype(np.int32)


def assert_same_samples(path: str | Path, largest_step: int, sr: int = 16000) -> None:
    """Upstream's load_audio, with the ffmpeg command, gives as many samples, each at most so far apart."""
    expected = int16(whisper.audio.load_audio(str(path), sr))
    actual = int16(load_audio(str(path), sr))
    assert len(actual) == len(expected) > 0
    assert np.abs(actual - expected).max() <= largest_step
