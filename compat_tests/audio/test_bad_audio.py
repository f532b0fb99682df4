"""Bad audio files and samples: upstream's own error where it has one, else a clear sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import whisper_max_plugin

from ..bad_input_fixtures import QUICK, assert_same_outcome, installed
from ..compare import assert_same_result
from ..conftest import Pair
from ..errors import assert_one_sentence, error_of
from .fixtures import needs_ffmpeg

__all__ = ["installed"]  # fixtures, found by name

AUDIO_FILES: dict[str, bytes | None] = {
    "missing.wav": None,
    "empty.wav": b"",
    "text.wav": b"This is no audio.\n" * 50,
    "noise.mp3": bytes(range(256)) * 40,
    "header only.wav": b"RIFF\x24\x00\x00\x00WAVEfmt ",
}


@pytest.fixture(params=[*AUDIO_FILES, "a folder"])
def bad_audio(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The name of a file that is not audio."""
    path = tmp_path / request.param
    if request.param == "a folder":
        path.mkdir()
    elif (content := AUDIO_FILES[request.param]) is not None:
        path.write_bytes(content)
    return str(path)


@needs_ffmpeg
def test_bad_audio_with_ffmpeg_is_upstreams_error(nano: Pair, bad_audio: str) -> None:
    ours = error_of(lambda: nano.max.transcribe(bad_audio, **QUICK))
    whisper_max_plugin.uninstall()
    theirs = error_of(lambda: nano.torch.transcribe(bad_audio, **QUICK))
    assert type(ours) is type(theirs) is RuntimeError
    # ffmpeg prints memory addresses
    assert str(ours).splitlines()[0] == str(theirs).splitlines()[0]
    assert bad_audio in str(ours)


def test_bad_audio_without_ffmpeg_is_one_sentence_like_upstreams(
    nano: Pair, bad_audio: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    error = error_of(lambda: nano.max.transcribe(bad_audio, **QUICK))
    assert type(error) is RuntimeError
    assert str(error).startswith(f"Failed to load audio: {bad_audio}: ")
    assert_one_sentence(error)


@pytest.mark.parametrize(
    "audio",
    [
        pytest.param(None, id="None"),
        pytest.param([0.0] * 16000, id="list"),
        pytest.param(np.zeros(16000, np.int16), id="int16"),
        pytest.param(np.zeros((2, 16000), np.float32), id="two channels", marks=pytest.mark.falls_back),
    ],
)
def test_other_things_than_a_waveform_are_upstreams_error(nano: Pair, audio: Any) -> None:
    assert_same_outcome(nano, lambda model: model.transcribe(audio, fp16=False))


@pytest.mark.parametrize("n_samples", [0, 1, 159, 161])
def test_hardly_any_samples(nano: Pair, n_samples: int) -> None:
    audio = np.full(n_samples, 0.1, np.float32)
    options = {"fp16": False, "sample_len": 3, "temperature": 0.0}
    assert_same_result(nano.max.transcribe(audio, **options), nano.torch.transcribe(audio, **options))


def test_silence(nano: Pair) -> None:
    audio = np.zeros(16000, np.float32)
    assert_same_result(
        nano.max.transcribe(audio, temperature=0.0, **QUICK), nano.torch.transcribe(audio, temperature=0.0, **QUICK)
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n_bad", [1, 16000])
def test_samples_that_are_no_numbers(nano: Pair, value: float, n_bad: int) -> None:
    audio = np.zeros(16000, np.float32)
    audio[:n_bad] = value
    error = error_of(lambda: nano.max.transcribe(audio, fp16=False))
    assert type(error) is ValueError
    assert_one_sentence(error, "NaN or infinite", "audio samples")
