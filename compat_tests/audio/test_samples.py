"""Without the ffmpeg command `load_audio` gives the samples that upstream's gives with it, whatever the format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile  # type: ignore[import-untyped]
import whisper.audio

from whisper_max_plugin.audio import load_audio

from ..data import SAMPLE
from .fixtures import assert_same_samples, ffmpeg, int16, largest_step, needs_ffmpeg, source, speech_like

__all__ = ["largest_step", "source"]  # fixtures, found by name

VIDEO = ["-f", "lavfi", "-i", "testsrc=duration=3:size=64x48:rate=5", "-map", "0:a", "-map", "1:v"]


def test_16_khz_flac_and_wav_come_out_bit_by_bit(tmp_path: Path) -> None:
    samples = np.round(speech_like(16000, 1)[:, 0] * 32767).astype(np.int16)
    for name in ("speech.wav", "speech.flac"):
        soundfile.write(tmp_path / name, samples, 16000)
        assert np.array_equal(int16(load_audio(str(tmp_path / name))), samples)


@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize("name", ["mono16", "stereo16", "mono16_float"])
def test_without_resampling_the_samples_are_identical(
    source: Callable[[str], Path], tmp_path: Path, name: str, suffix: str
) -> None:
    path = tmp_path / f"speech.{suffix}"
    ffmpeg("-i", source(name), *(["-c", "copy"] if suffix == "wav" else []), path)
    assert_same_samples(path, 0)


@needs_ffmpeg
@pytest.mark.parametrize("name", ["mono8", "mono11_u8", "stereo44", "stereo44_24", "surround48", "mono96_double"])
def test_wav_of_any_rate_width_and_number_of_channels(
    source: Callable[[str], Path], largest_step: int, name: str
) -> None:
    assert_same_samples(source(name), largest_step)


@needs_ffmpeg
@pytest.mark.parametrize(
    ("name", "file", "options"),
    [
        pytest.param("stereo44", "speech.flac", [], id="flac"),
        pytest.param("stereo44_24", "speech.flac", [], id="flac-24-bit"),
        pytest.param("stereo44", "speech.mp3", [], id="mp3"),
        pytest.param("mono16", "speech.mp3", [], id="mp3-16kHz"),
        pytest.param("mono8", "speech.mp3", [], id="mp3-8kHz"),
        pytest.param("stereo44", "speech.opus", [], id="opus"),
        pytest.param("mono16", "speech.ogg", ["-c:a", "libopus"], id="opus-16kHz"),
        pytest.param("stereo44", "speech.ogg", ["-c:a", "libvorbis"], id="vorbis"),
        pytest.param("stereo44", "speech.m4a", [], id="m4a"),
        pytest.param("surround48", "speech.m4a", [], id="m4a-5.1"),
        pytest.param("mono16", "speech.aac", [], id="aac-16kHz"),
        pytest.param("stereo44", "speech.m4a", ["-c:a", "alac"], id="alac"),
        pytest.param("stereo44", "speech.wma", [], id="wma"),
        pytest.param("mono8", "speech.wav", ["-c:a", "pcm_mulaw"], id="telephone"),
        pytest.param("stereo44", "film.mp4", VIDEO, id="video-mp4"),
        pytest.param("stereo44", "film.mkv", VIDEO, id="video-mkv"),
        pytest.param("stereo44", "film.ts", VIDEO, id="video-ts"),
    ],
)
def test_formats(
    source: Callable[[str], Path], tmp_path: Path, largest_step: int, name: str, file: str, options: list[str]
) -> None:
    ffmpeg("-i", source(name), *options, tmp_path / file)
    assert_same_samples(tmp_path / file, largest_step)


@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["mp3", "m4a", "opus"])
def test_a_cut_within_a_frame(source: Callable[[str], Path], tmp_path: Path, suffix: str) -> None:
    """Encoder delay, edit lists and pre-skip are honoured as the command honours them."""
    path, cut = tmp_path / f"speech.{suffix}", tmp_path / f"cut.{suffix}"
    ffmpeg("-i", source("stereo44"), path)
    ffmpeg("-ss", "1.237", "-i", path, "-c", "copy", cut)
    expected, actual = int16(whisper.audio.load_audio(str(cut))), int16(load_audio(cut))
    # The last frame of an m4a is cut at its edit list from FFmpeg 9 on, and given whole before.
    assert len(actual) == pytest.approx(len(expected), abs=1024 if suffix == "m4a" else 0)
    n_samples = min(len(expected), len(actual)) - 64
    assert np.abs(actual[:n_samples] - expected[:n_samples]).max() <= 1


@needs_ffmpeg
def test_the_sample_rate_can_be_chosen(source: Callable[[str], Path], largest_step: int) -> None:
    assert_same_samples(source("stereo44"), largest_step, sr=22050)
    assert_same_samples(source("mono8"), 0, sr=8000)


@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["flac", "mp3", "opus"])
def test_the_sample_recording(tmp_path: Path, largest_step: int, suffix: str) -> None:
    if not SAMPLE.exists():
        pytest.skip("weights/sample.flac, the repository's sample recording, is not here")
    path = tmp_path / f"sample.{suffix}"
    ffmpeg("-i", SAMPLE, *(["-c", "copy"] if suffix == "flac" else []), path)
    assert_same_samples(path, largest_step)


@needs_ffmpeg
@pytest.mark.parametrize(
    ("dispositions", "channels"),
    [
        pytest.param(("default", "0"), 2, id="the-default-stream"),
        pytest.param(("0", "default"), 6, id="the-second-stream-is-the-default"),
        pytest.param(("0", "0"), 6, id="no-default-most-channels"),
    ],
)
def test_of_several_audio_streams_the_command_s_choice_is_read(
    source: Callable[[str], Path],
    tmp_path: Path,
    largest_step: int,
    dispositions: tuple[str, str],
    channels: int,
) -> None:
    path = tmp_path / "two.mkv"
    options = ["-map", "0", "-map", "1", "-c", "flac"]
    options += ["-disposition:a:0", dispositions[0], "-disposition:a:1", dispositions[1]]
    ffmpeg("-i", source("stereo44"), "-i", source("surround48"), *options, path)
    assert_same_samples(path, largest_step)
    picked = load_audio(str(source("stereo44" if channels == 2 else "surround48")))
    assert np.array_equal(load_audio(str(path)), picked)


@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["mp3", "aac"])
def test_rate_and_channels_may_change_within_the_stream(
    source: Callable[[str], Path], tmp_path: Path, largest_step: int, suffix: str
) -> None:
    parts = [tmp_path / f"{name}.{suffix}" for name in ("stereo44", "mono16")]
    for part in parts:
        ffmpeg("-i", source(part.stem), part)
    path = tmp_path / f"both.{suffix}"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert_same_samples(path, largest_step)
    assert len(load_audio(str(path))) > 5.9 * 16000


def test_what_is_returned_is_float32_and_writable(source: Callable[[str], Path]) -> None:
    waveform = load_audio(str(source("stereo44")))
    assert waveform.dtype == np.float32
    assert waveform.ndim == 1
    assert waveform.flags.writeable
    assert 0.1 < np.abs(waveform).max() <= 1
