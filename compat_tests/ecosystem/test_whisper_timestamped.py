"""whisper-timestamped on an accelerated model gives what it gives on upstream's, without a fallback.

Its `detect_disfluencies` counts peaks among attention weights that saturate at 1.0, where the last bit decides: it
is compared where it finds peaks that stand out.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import whisper
import whisper_timestamped
from whisper.model import Whisper

import whisper_max_plugin
from whisper_max_plugin.inference.model import MaxWhisper

from ..conftest import Pair
from ..data import NANO, SAMPLE, SAMPLE_DE, SAMPLE_LONG, jfk
from .words import Word, assert_same_words

ACCURATE = {"beam_size": 5, "best_of": 5, "temperature": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)}
SETTINGS: dict[str, dict[str, Any]] = {
    "efficient": {},
    "accurate": ACCURATE,
    "naive_approach": {"naive_approach": True},
    "language detected": {"language": None},
    "language detected, naive": {"language": None, "naive_approach": True},
    "without confidence": {"compute_word_confidence": False},
    "own timestamps": {"trust_whisper_timestamps": False},
    "own timestamps, naive": {"trust_whisper_timestamps": False, "naive_approach": True},
    "upstream's word timestamps": {"use_backend_timestamps": True},
    "heads of the last layer": {"word_alignment_most_top_layers": 1},
    "temperature": {"temperature": 0.3, "seed": 1},
    "fallback": {"temperature": (0.0, 0.4), "logprob_threshold": -0.05, "best_of": 2},
    "prompt": {"initial_prompt": "The king of the park", "condition_on_previous_text": False},
    "no speech": {"no_speech_threshold": 0.01, "logprob_threshold": 0.0},
}


@pytest.fixture(scope="module")
def timestamped() -> Pair:
    """nano as whisper-timestamped loads it while the plugin is active, and upstream's."""
    whisper_max_plugin.install()
    accelerated = whisper_timestamped.load_model(str(NANO), device="cpu")
    return Pair(whisper.load_model(str(NANO), device="cpu", backend="torch"), accelerated, NANO)


def transcribe(model: Whisper, audio: Path, **options: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    return whisper_timestamped.transcribe(
        model, str(audio), **{"fp16": False, "language": "en", "verbose": None, **options}
    )


def words_of(result: dict[str, Any]) -> list[Word]:
    return [
        Word(word["text"], float(word["start"]), float(word["end"]), word.get("confidence"))
        for segment in result["segments"]
        for word in segment["words"]
    ]


def assert_same(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    for key in ("text", "language"):
        assert actual[key] == expected[key]
    assert_same_words(words_of(actual), words_of(expected), digits=3)
    for segment, wanted in zip(actual["segments"], expected["segments"], strict=True):
        assert segment.keys() == wanted.keys()
        for key in ("id", "seek", "start", "end", "text", "tokens", "temperature", "compression_ratio"):
            assert segment[key] == wanted[key], f"{key} of segment {wanted['id']}"
    if "language_probs" in expected:
        assert actual["language_probs"] == pytest.approx(expected["language_probs"], rel=0, abs=1e-5)


def test_its_own_load_model_returns_the_accelerated_model(timestamped: Pair) -> None:
    assert isinstance(timestamped.max, MaxWhisper)
    assert type(timestamped.torch) is Whisper


@pytest.mark.parametrize("name", SETTINGS)
def test_transcribe(timestamped: Pair, name: str) -> None:
    actual, expected = (transcribe(model, SAMPLE, **SETTINGS[name]) for model in (timestamped.max, timestamped.torch))
    assert_same(actual, expected)


@pytest.mark.parametrize("name", ["efficient", "accurate", "naive_approach"])
def test_transcribe_a_real_recording(timestamped: Pair, name: str) -> None:
    actual, expected = (transcribe(model, jfk(), **SETTINGS[name]) for model in (timestamped.max, timestamped.torch))
    assert_same(actual, expected)


@pytest.mark.parametrize("name", ["efficient", "naive_approach"])
def test_transcribe_a_long_file(timestamped: Pair, name: str) -> None:
    actual, expected = (
        transcribe(model, SAMPLE_LONG, **SETTINGS[name]) for model in (timestamped.max, timestamped.torch)
    )
    assert_same(actual, expected)


def test_transcribe_another_language(timestamped: Pair) -> None:
    actual, expected = (transcribe(model, SAMPLE_DE, language="de") for model in (timestamped.max, timestamped.torch))
    assert_same(actual, expected)


def test_disfluencies(timestamped: Pair) -> None:
    actual, expected = (
        transcribe(model, SAMPLE, detect_disfluencies=True) for model in (timestamped.max, timestamped.torch)
    )
    assert any(word.text == "[*]" for word in words_of(expected))
    assert_same(actual, expected)


def test_confidences_are_compared(timestamped: Pair) -> None:
    assert all(word.probability is not None for word in words_of(transcribe(timestamped.torch, jfk())))


def test_its_command_with_the_environment_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`WHISPER_BACKEND=max whisper_timestamped …` runs on graphs; strict, so that a fallback would be an error."""
    monkeypatch.setenv("WHISPER_MAX_STRICT", "1")
    results = {}
    for backend in ("max", "torch"):
        monkeypatch.setenv("WHISPER_BACKEND", backend)
        folder = tmp_path / backend
        command = [sys.executable, "-m", "whisper_timestamped.transcribe", str(jfk()), "--model", str(NANO)]
        options = ["--device", "cpu", "--language", "en", "--fp16", "False", "--output_format", "json"]
        subprocess.run([*command, *options, "--output_dir", str(folder)], check=True)
        (output,) = folder.glob("*.words.json")
        results[backend] = json.loads(output.read_text(encoding="utf8"))
    assert_same(results["max"], results["torch"])
