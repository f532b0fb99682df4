"""What `transcribe()` makes of speech alone: upstream's result for the same clips, at the times of the recording."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import whisper
from whisper.audio import SAMPLE_RATE

import whisper_max_plugin
from whisper_max_plugin import vad
from whisper_max_plugin.errors import PackageError, VoiceActivityError

from ..compare import assert_same_result, skip_unless_upstream_knows
from ..conftest import Pair
from ..data import SAMPLE, SAMPLE_DE, reference_text
from .fixtures import QUIET, cut, german_after_silence, mostly_silent, needs_silero, noise, without_silero

ENGLISH = {"fp16": False, "language": "en"}


@pytest.fixture
def transcribe() -> Callable[..., dict[str, Any]]:
    """Upstream's, hearing nothing but speech; skipped where upstream cannot transcribe clips."""
    skip_unless_upstream_knows({"clip_timestamps": "0"})
    return vad.only_speech(whisper.transcribe)


def encoder_counts() -> tuple[int, int]:
    """Return how often the encoder's graph ran in this process, and how often it did not need to."""
    status: dict[str, Any] = whisper_max_plugin.status()
    return status["graph_runs"].get("encoder", 0), status["encoder_runs_saved"]


def counted(model: whisper.Whisper, run: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], int, int]:
    """Return the result of `run`, how often the encoder's graph ran for it, and how often it did not need to."""
    model.embed_audio(torch.zeros(1, 80, 3000))  # forget the previous test's window
    runs, saved = encoder_counts()
    result = run()
    runs_after, saved_after = encoder_counts()
    return result, runs_after - runs, saved_after - saved


@needs_silero
@pytest.mark.parametrize("options", [{}, {"word_timestamps": True}, {"beam_size": 5}])
def test_the_result_is_upstreams_for_the_same_clips(nano: Pair, transcribe, options: dict[str, Any]) -> None:
    samples, _ = mostly_silent()
    clips = whisper_max_plugin.speech_clips(samples)
    expected = nano.torch.transcribe(samples, clip_timestamps=clips, **ENGLISH, **options)
    assert len(expected["segments"]) == 4
    assert_same_result(transcribe(nano.max, samples, **ENGLISH, **options), expected)
    assert_same_result(nano.max.transcribe(samples, clip_timestamps=clips, **ENGLISH, **options), expected)


@needs_silero
def test_times_are_those_of_the_recording(nano: Pair, transcribe) -> None:
    samples, sentences = mostly_silent()
    segments = transcribe(nano.max, samples, word_timestamps=True, **ENGLISH)["segments"]
    assert [segment["text"].strip() for segment in segments] == [sentence.text for sentence in sentences]
    for segment, sentence in zip(segments, sentences, strict=True):
        assert segment["start"] == pytest.approx(sentence.start, abs=0.5)
        assert segment["end"] == pytest.approx(sentence.end, abs=0.5)
        for word in segment["words"]:
            assert sentence.start - 0.5 <= word["start"] <= word["end"] <= sentence.end + 0.5


@needs_silero
def test_a_recording_full_of_speech_is_transcribed_whole(nano: Pair, transcribe) -> None:
    assert transcribe(nano.max, str(SAMPLE), **ENGLISH)["text"].strip() == reference_text(SAMPLE)


@needs_silero
@pytest.mark.parametrize("cut_off", [0, 1, 80, 81, 159])
def test_speech_to_the_last_sample_comes_to_an_end(nano: Pair, transcribe, cut_off: int) -> None:
    """Upstream would wait for a clip that ends behind its last whole frame of 160 samples."""
    samples = np.concatenate([noise(20, QUIET), cut(SAMPLE, 0, 5)])[: 25 * SAMPLE_RATE - 2 * SAMPLE_RATE - cut_off]
    clips = whisper_max_plugin.speech_clips(samples)
    assert clips[1] == len(samples) // 160 / 100
    assert transcribe(nano.max, samples, **ENGLISH)["segments"]


@needs_silero
def test_silence_costs_no_encoder_runs(nano: Pair, transcribe) -> None:
    """Four sentences are four windows; of the whole file there are nine at least."""
    samples, _ = mostly_silent()
    _, with_silence, _ = counted(nano.max, lambda: nano.max.transcribe(samples, **ENGLISH))
    _, of_speech, _ = counted(nano.max, lambda: transcribe(nano.max, samples, **ENGLISH))
    assert with_silence >= len(samples) / SAMPLE_RATE / 30 > 8
    assert of_speech == 4


@needs_silero
@pytest.mark.parametrize("samples", [np.zeros(40 * SAMPLE_RATE, np.float32), noise(40, 0.1), np.zeros(0, np.float32)])
def test_where_nobody_speaks_nothing_is_transcribed(nano: Pair, transcribe, samples: np.ndarray) -> None:
    """Not even with upstream's own judgement of silence switched off; without any clip it would be the whole file."""
    options = {"no_speech_threshold": None, "logprob_threshold": None, "temperature": 0.0, **ENGLISH}
    assert nano.torch.transcribe(samples, clip_timestamps=[], **options)["segments"] or not len(samples)
    result, encoder_runs, _ = counted(nano.max, lambda: transcribe(nano.max, samples, **options))
    assert (result["text"], result["segments"], encoder_runs) == ("", [], 0)
    for model in (nano.max, nano.torch):
        assert model.transcribe(samples, clip_timestamps=whisper_max_plugin.speech_clips(samples), **options) == result


@needs_silero
def test_the_language_is_that_of_the_first_speech(nano: Pair, transcribe, capsys: pytest.CaptureFixture[str]) -> None:
    """Upstream listens to the first 30 s, which are silent here; the window is the first transcribed, encoded once."""
    samples = german_after_silence()
    result, encoder_runs, saved = counted(nano.max, lambda: transcribe(nano.max, samples, fp16=False, verbose=False))
    assert capsys.readouterr().out == "Detected language: German\n"
    assert (result["language"], encoder_runs, saved) == ("de", 1, 1)

    clips = whisper_max_plugin.speech_clips(samples)
    mel = whisper.log_mel_spectrogram(samples, padding=30 * SAMPLE_RATE)
    begin, end = (round(100 * seconds) for seconds in clips)
    _, probabilities = nano.torch.detect_language(whisper.pad_or_trim(mel[:, begin:end], 3000))
    assert max(probabilities, key=probabilities.get) == "de"
    assert_same_result(result, nano.torch.transcribe(samples, clip_timestamps=clips, language="de", fp16=False))


@needs_silero
def test_a_given_language_stays(nano: Pair, transcribe, capsys: pytest.CaptureFixture[str]) -> None:
    result = transcribe(nano.max, str(SAMPLE_DE), language="es", fp16=False, verbose=None)
    assert result["language"] == "es"
    assert capsys.readouterr().out == ""


@needs_silero
def test_clips_of_ones_own_are_refused(nano: Pair, transcribe) -> None:
    with pytest.raises(VoiceActivityError, match="both say what to transcribe: give one of them"):
        transcribe(nano.max, str(SAMPLE), clip_timestamps="5,10")


def test_a_release_without_clips_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    if whisper.__version__ >= "20240927":
        monkeypatch.setattr(whisper, "__version__", "20231117")
    message = r"^openai-whisper 202311\d\d cannot transcribe clips of a file: pip install 'openai-whisper>=20240927'$"
    with pytest.raises(PackageError, match=message):
        vad.only_speech(whisper.transcribe)


def test_a_missing_package_is_told_before_anything_is_transcribed(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_unless_upstream_knows({"clip_timestamps": "0"})
    without_silero(monkeypatch)
    with pytest.raises(PackageError, match="is not installed: pip install"):
        vad.only_speech(whisper.transcribe)
