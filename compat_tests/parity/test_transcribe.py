"""`transcribe()` gives upstream's whole result dict, and encodes each window once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import whisper
from torch import Tensor
from whisper.audio import SAMPLE_RATE

import whisper_max_plugin

from ..compare import assert_same_result, skip_unless_upstream_knows
from ..conftest import Pair
from ..data import SAMPLE, SAMPLE_ES, SAMPLE_LONG, jfk


@cache
def recording(path: str) -> np.ndarray:
    """The samples of a file; both models are given the same ones."""
    samples: np.ndarray = whisper.load_audio(path)
    return samples


def long_recording() -> np.ndarray:
    """Three minutes."""
    return recording(str(SAMPLE_LONG))


def one_minute() -> np.ndarray:
    return seconds(long_recording(), 0, 60)


def two_windows() -> np.ndarray:
    """The second one has a second of its own."""
    return seconds(long_recording(), 0, 31)


def real_recording() -> np.ndarray:
    """One window, shorter than 30 seconds."""
    return recording(str(jfk()))


def seconds(samples: np.ndarray, start: float, end: float) -> np.ndarray:
    return samples[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]


def silence(duration: float) -> np.ndarray:
    return np.zeros(round(duration * SAMPLE_RATE), dtype=np.float32)


def noise(duration: float) -> np.ndarray:
    samples = 0.1 * np.random.default_rng(0).standard_normal(round(duration * SAMPLE_RATE))
    return samples.astype(np.float32)


def speech_with_pauses() -> np.ndarray:
    """Speech, ten seconds of silence, speech, ten seconds of noise, speech."""
    speech = recording(str(SAMPLE))
    return np.concatenate(
        [seconds(speech, 0, 9), silence(10), seconds(speech, 9, 20), 0.2 * noise(10), seconds(speech, 20, 28)]
    )


pytestmark = pytest.mark.usefixtures("installed")

FALLBACK = {"temperature": (0.0, 0.2, 0.4)}
WORDS = {"word_timestamps": True}
PROMPT = "A story about a boat. " * 20  # so long that a minute's text pushes it out, unless it is carried

# name: (audio, options of `transcribe()`)
SCENARIOS: dict[str, tuple[Callable[[], np.ndarray], dict[str, Any]]] = {
    "three minutes": (long_recording, {}),
    "three minutes, words": (long_recording, WORDS),
    "three minutes, beam search": (long_recording, {"beam_size": 5}),
    "three minutes, unconditioned": (long_recording, {"condition_on_previous_text": False}),
    "real recording": (real_recording, {}),
    "real recording, words": (real_recording, WORDS),
    "real recording, words, beams, patience": (real_recording, {"beam_size": 5, "patience": 2.0, **WORDS}),
    "real recording, language given": (real_recording, {"language": "en"}),
    "real recording, without timestamps": (real_recording, {"without_timestamps": True}),
    "Spanish": (lambda: recording(str(SAMPLE_ES)), WORDS),
    "Spanish, translated": (lambda: recording(str(SAMPLE_ES)), {"task": "translate", "language": "es"}),
    "a minute": (one_minute, {}),
    "initial prompt": (one_minute, {"initial_prompt": PROMPT}),
    "initial prompt carried": (one_minute, {"initial_prompt": PROMPT, "carry_initial_prompt": True}),
    "clips": (long_recording, {"clip_timestamps": "0,12.5,40,80.2,150"}),
    "clips, words": (long_recording, {"clip_timestamps": [5.0, 31.0, 100.0, 110.0], **WORDS}),
    "pauses": (speech_with_pauses, {}),
    "pauses, hallucinations skipped": (speech_with_pauses, {"hallucination_silence_threshold": 2.0, **WORDS}),
    "a minute, hallucinations skipped": (one_minute, {"hallucination_silence_threshold": 0.5, **WORDS}),
    "improbable": (real_recording, {"logprob_threshold": 0.0, **FALLBACK, **WORDS}),
    "improbable, best of five": (real_recording, {"logprob_threshold": 0.0, "best_of": 5, "beam_size": 5, **FALLBACK}),
    "repetitive": (two_windows, {"compression_ratio_threshold": 0.2, "language": "en", **FALLBACK}),
    "31 seconds": (two_windows, WORDS),
    "0.1 seconds": (lambda: seconds(recording(str(SAMPLE)), 1, 1.1), WORDS),
    "no samples": (lambda: silence(0), {}),
    "silence": (lambda: silence(35), WORDS),
    "silence, not skipped": (lambda: silence(5), {"no_speech_threshold": None, "temperature": 0.0, **WORDS}),
    "noise": (lambda: noise(35), WORDS),
}


@dataclass(frozen=True)
class Run:
    """One file transcribed with the accelerated model and with upstream's.

    Attributes
    ----------
    actual, expected : the results of the two
    upstream_windows : a digest of each mel spectrogram that upstream's model encoded, in order
    encoder_runs : how often the accelerated model ran its encoder's graph
    encoder_runs_saved : how often it did not need to
    spectrograms : how many graphs made for it
    """

    actual: dict[str, Any]
    expected: dict[str, Any]
    upstream_windows: list[bytes]
    encoder_runs: int
    encoder_runs_saved: int
    spectrograms: int


@pytest.fixture(scope="module")
def run(nano: Pair) -> Callable[[str], Run]:
    """Return what runs a scenario, once for all tests."""

    @cache
    def run(name: str) -> Run:
        audio, options = SCENARIOS[name]
        skip_unless_upstream_knows(options)
        samples = audio()
        nano.max.embed_audio(torch.zeros(1, 80, 3000))  # forget the previous test's window
        before = counts()
        actual = transcribe(nano.max, samples, options)
        encoder_runs, saved, spectrograms = (after - earlier for after, earlier in zip(counts(), before, strict=True))
        windows: list[bytes] = []
        hook = nano.torch.encoder.register_forward_pre_hook(lambda _, inputs: windows.append(digest(inputs[0])))
        try:
            expected = transcribe(nano.torch, samples, options)
        finally:
            hook.remove()
        return Run(actual, expected, windows, encoder_runs, saved, spectrograms)

    return run


def transcribe(model: whisper.Whisper, samples: np.ndarray, options: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(0)  # sampling at temperatures above 0, see `test_decode.py`
    result: dict[str, Any] = whisper.transcribe(model, samples, **{"fp16": False, **options})
    return result


def counts() -> tuple[int, int, int]:
    """Return how often the encoder's graph ran in this process, and how often it did not need to; spectrograms."""
    status: dict[str, Any] = whisper_max_plugin.status()
    runs = status["graph_runs"]
    return runs.get("encoder", 0), status["encoder_runs_saved"], runs.get("log_mel", 0)


def digest(mel: Tensor) -> bytes:
    return hashlib.sha256(mel.numpy().tobytes()).digest()


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_result_is_upstreams(run: Callable[[str], Run], name: str) -> None:
    assert_same_result(run(name).actual, run(name).expected)


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_window_is_encoded_once(run: Callable[[str], Run], name: str) -> None:
    """However often upstream encodes it: for the language, for each temperature, for the words.

    The language of a file shorter than 30 seconds is detected from another mel spectrogram than its first window:
    the one is of audio padded with silence, the other is itself padded with zeros.
    """
    windows = run(name).upstream_windows
    assert run(name).encoder_runs == len(set(windows))
    assert run(name).encoder_runs_saved == len(windows) - len(set(windows))


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_graph_makes_the_spectrogram_once(run: Callable[[str], Run], name: str) -> None:
    assert run(name).spectrograms == 1


def test_the_long_recording_is_transcribed(run: Callable[[str], Run]) -> None:
    """What is compared above is a long transcript with all its segments."""
    result = run("three minutes").expected
    assert len(result["segments"]) > 40
    assert result["segments"][-1]["end"] > 150


@pytest.mark.parametrize("name", ["three minutes, words", "real recording, words", "31 seconds"])
def test_words_are_compared(run: Callable[[str], Run], name: str) -> None:
    assert sum(len(segment["words"]) for segment in run(name).expected["segments"]) > 20


@pytest.mark.parametrize("name", ["improbable", "improbable, best of five", "repetitive"])
def test_the_thresholds_force_every_temperature(run: Callable[[str], Run], name: str) -> None:
    """What is compared above was sampled, and the windows were encoded again for it."""
    assert {segment["temperature"] for segment in run(name).expected["segments"]} == {0.4}
    assert run(name).encoder_runs_saved >= 2


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("three minutes, unconditioned", "three minutes"),
        ("three minutes, beam search", "three minutes"),
        ("pauses, hallucinations skipped", "pauses"),
        ("initial prompt", "a minute"),
        ("initial prompt carried", "initial prompt"),
    ],
)
def test_the_option_changes_the_result(run: Callable[[str], Run], name: str, plain: str) -> None:
    """The comparison would otherwise not notice that an option is ignored."""
    with pytest.raises(AssertionError):
        assert_same_result(run(name).expected, run(plain).expected)


def test_nothing_is_heard_in_silence(run: Callable[[str], Run]) -> None:
    for name in ("no samples", "silence", "noise"):
        assert run(name).actual["text"] == ""


def test_a_model_transcribes_a_path(nano: Pair) -> None:
    """`model.transcribe(path)`, which reads the file itself."""
    results = [model.transcribe(str(SAMPLE_ES), fp16=False, language="es") for model in (nano.max, nano.torch)]
    assert_same_result(*results)
    assert results[0]["text"]
