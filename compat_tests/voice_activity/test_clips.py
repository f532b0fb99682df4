"""`speech_clips`: where somebody speaks, as silero-vad finds it, as clips that upstream's `transcribe()` takes."""

from __future__ import annotations

import inspect
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import whisper
from hypothesis import given
from hypothesis import strategies as st
from whisper.audio import FRAMES_PER_SECOND, HOP_LENGTH, N_FRAMES, SAMPLE_RATE

import whisper_max_plugin
from whisper_max_plugin import silero, vad
from whisper_max_plugin.errors import PackageError, VoiceActivityError
from whisper_max_plugin.silero import CHUNK

from ..data import SAMPLE, SAMPLE_DE, SAMPLE_LONG, jfk
from .fixtures import QUIET, mostly_silent, needs_silero, noise, silero_vad, with_pauses, without_silero

speech_clips = whisper_max_plugin.speech_clips

# name: recordings without a voice
VOICELESS = {
    "no samples": np.zeros(0, np.float32),
    "one sample": np.zeros(1, np.float32),
    "silence": np.zeros(35 * SAMPLE_RATE, np.float32),
    "quiet": noise(35, QUIET),
    "noise": noise(35, 0.1),
    "a hum": (0.3 * np.sin(np.arange(35 * SAMPLE_RATE) * 2 * np.pi * 50 / SAMPLE_RATE)).astype(np.float32),
}


def test_the_command_finds_speech_by_the_same_defaults() -> None:
    of_the_command, public = (inspect.signature(find).parameters for find in (vad.speech_clips, speech_clips))
    assert {name: parameter.default for name, parameter in of_the_command.items()} == {
        name: parameter.default for name, parameter in public.items()
    }


def pairs(clips: list[float]) -> list[tuple[float, float]]:
    return list(zip(clips[::2], clips[1::2], strict=True))


@needs_silero
@pytest.mark.parametrize("path", [SAMPLE_LONG, SAMPLE_DE])
def test_the_probabilities_are_those_of_silero_vad(path: Path) -> None:
    samples = torch.from_numpy(np.concatenate([whisper.load_audio(str(path)), noise(10.01, 0.1)]))
    (expected,) = silero_vad().load_silero_vad().audio_forward(samples[None], SAMPLE_RATE)
    actual = silero.speech_probabilities(samples)
    torch.testing.assert_close(actual, expected.detach(), rtol=0, atol=1e-4)


@needs_silero
def test_a_long_recording_is_computed_in_blocks() -> None:
    """186 s are more than two of them, and the last is not full."""
    n_samples = len(whisper.load_audio(str(SAMPLE_LONG)))
    assert 2 * silero.BLOCK < n_samples / CHUNK < 3 * silero.BLOCK
    assert n_samples % (silero.BLOCK * CHUNK)


@needs_silero
@pytest.mark.parametrize(
    "options", [{}, {"threshold": 0.8}, {"min_silence": 0.5, "speech_pad": 0.1}, {"speech_pad": 0.0}]
)
def test_the_stretches_are_those_of_silero_vad(options: dict[str, float]) -> None:
    """Each a clip, to the next frame of upstream's."""
    samples, _ = mostly_silent()
    package = silero_vad()
    expected = package.get_speech_timestamps(
        torch.from_numpy(samples),
        package.load_silero_vad(),
        threshold=options.get("threshold", 0.5),
        min_silence_duration_ms=1000 * options.get("min_silence", 2.0),
        speech_pad_ms=1000 * options.get("speech_pad", 0.4),
        min_speech_duration_ms=0,
    )
    frames = [(speech["start"] // HOP_LENGTH, -(-speech["end"] // HOP_LENGTH)) for speech in expected]
    assert pairs(speech_clips(samples, max_silence=0, **options)) == [(begin / 100, end / 100) for begin, end in frames]


@needs_silero
def test_speech_is_found_between_silence_and_noise() -> None:
    samples, sentences = mostly_silent()
    clips = pairs(speech_clips(samples))
    assert len(clips) == len(sentences) == 4
    for (begin, end), sentence in zip(clips, sentences, strict=True):
        assert sentence.start - 0.9 < begin < sentence.start
        assert sentence.end < end < sentence.end + 0.9


@needs_silero
def test_a_real_recording_is_found_in_noise() -> None:
    recording = whisper.load_audio(str(jfk()))
    ((begin, end),) = pairs(
        speech_clips(np.concatenate([noise(33, 0.01), recording + noise(11, 0.01)[: len(recording)], noise(33, 0.01)]))
    )
    assert 33 - 0.4 <= begin < 33.4  # he begins at 0.3 s
    assert 43.4 < end <= 44 + 0.9


@needs_silero
@pytest.mark.parametrize("name", VOICELESS)
def test_where_nobody_speaks_there_is_one_empty_clip(name: str) -> None:
    assert speech_clips(VOICELESS[name]) == [0.0, 0.0]


@needs_silero
@pytest.mark.parametrize(
    ("pause", "options", "n_clips"),
    [
        (1.0, {}, 1),  # no silence at all
        (4.0, {}, 1),  # shares a window
        (4.0, {"max_silence": 0}, 3),
        (4.0, {"min_silence": 5.0, "max_silence": 0}, 1),
        (7.0, {}, 3),  # too long to be kept
        (7.0, {"max_silence": 10}, 1),
        (31.0, {"max_silence": math.inf}, 3),  # a window's worth of nothing
        (7.0, {"speech_pad": 4.0}, 1),  # padded, the stretches touch
    ],
)
def test_near_stretches_share_a_clip(pause: float, options: dict[str, float], n_clips: int) -> None:
    samples, _ = with_pauses([noise(pause, QUIET)] * 4)
    assert len(pairs(speech_clips(samples, **options))) == n_clips


stretches = st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 3000)), max_size=20)  # silence, speech: chunks
seconds = st.sampled_from([0.0, 0.4, 2.0, 5.0, 40.0, math.inf])


@given(stretches, st.integers(0, 1000), seconds, seconds)
def test_clips_hold_all_speech_in_few_windows(
    lengths: list[tuple[int, int]], tail: int, max_silence: float, speech_pad: float
) -> None:
    speech, position = [], 0
    for silent, spoken in lengths:
        speech.append(((position + silent) * CHUNK, (position + silent + spoken) * CHUNK))
        position += silent + spoken
    n_samples = max(position * CHUNK + tail - CHUNK, 0)  # the last chunk was filled up
    n_frames = n_samples // HOP_LENGTH
    clips = vad._clips(speech, max_silence, speech_pad, n_samples)

    edges = [edge for clip in clips for edge in clip]
    assert edges == sorted(edges)
    assert all(0 <= begin < end <= n_frames for begin, end in clips)
    for first, last in speech:
        covered = [
            clip for clip in clips if clip[0] * HOP_LENGTH <= first and clip[1] >= min(last // HOP_LENGTH, n_frames)
        ]
        assert covered or first >= n_frames * HOP_LENGTH
    if max_silence == math.inf:
        n_windows = sum(math.ceil((end - begin) / N_FRAMES) for begin, end in clips)
        assert n_windows <= math.ceil(n_frames / N_FRAMES)


@needs_silero
def test_every_kind_of_audio_gives_the_same() -> None:
    samples = whisper.load_audio(str(SAMPLE))
    expected = speech_clips(samples)
    assert expected != [0.0, 0.0]
    for audio in (str(SAMPLE), SAMPLE, torch.from_numpy(samples), samples.astype(np.float64)):
        assert speech_clips(audio) == expected
    assert all(round(time * FRAMES_PER_SECOND) / FRAMES_PER_SECOND == time for time in expected)


@needs_silero
@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros((1, 100), np.float32), "one channel .* torch.float32 of shape \\(1, 100\\)"),
        (np.zeros(100, np.int16), "float32 samples .* torch.int16"),
        (np.array([0, np.nan], np.float32), "no finite numbers"),
        (torch.tensor([math.inf]), "no finite numbers"),
        (None, "audio is a path or float32 samples .* and not NoneType"),
        (b"speech.wav", "audio is a path or float32 samples .* and not bytes"),
    ],
)
def test_audio_that_is_none_is_refused(audio: Any, message: str) -> None:
    with pytest.raises(VoiceActivityError, match=message):
        speech_clips(audio)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0}, "threshold is a probability between 0 and 1, and not 0"),
        ({"threshold": 50}, "threshold .* not 50"),
        ({"threshold": "a"}, "threshold .* not 'a'"),
        ({"min_silence": None}, "min_silence .* not None"),
        ({"min_silence": -1}, "min_silence is a number of seconds, and not -1"),
        ({"max_silence": math.nan}, "max_silence .* not nan"),
        ({"speech_pad": -0.1}, "speech_pad .* not -0.1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(VoiceActivityError, match=message):
        speech_clips(VOICELESS["silence"], **options)


def test_a_missing_file_is_upstreams_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="Failed to load audio"):
        speech_clips(tmp_path / "missing.wav")


@needs_silero
def test_the_package_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its import limits torch to one thread."""
    monkeypatch.delitem(sys.modules, "silero_vad", raising=False)
    silero.load.cache_clear()
    threads = torch.get_num_threads()
    speech_clips(SAMPLE)
    assert "silero_vad" not in sys.modules
    assert torch.get_num_threads() == threads


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the model in a package `silero_vad` that is found instead of the real one; it is not there yet."""
    (tmp_path / "silero_vad" / "data").mkdir(parents=True)
    (tmp_path / "silero_vad" / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "silero_vad", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    silero.load.cache_clear()
    return tmp_path / "silero_vad" / "data" / "silero_vad.jit"


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    without_silero(monkeypatch)
    with pytest.raises(PackageError, match=r"^silero-vad, .*, is not installed: pip install 'silero-vad>=6.2.3'$"):
        speech_clips(VOICELESS["noise"])


def test_a_package_without_its_model_is_one_sentence(package: Path) -> None:
    with pytest.raises(PackageError, match=r"silero_vad\.jit, cannot be read .*: pip install"):
        speech_clips(VOICELESS["noise"])


def test_a_damaged_model_is_one_sentence(package: Path) -> None:
    package.write_bytes(b"no model")
    with pytest.raises(PackageError, match=r"^.*cannot be read .*: pip install .*$"):
        speech_clips(VOICELESS["noise"])


def test_another_network_is_one_sentence(package: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), package)
    with pytest.raises(PackageError, match="is not the network that this version knows: pip install"):
        speech_clips(VOICELESS["noise"])
