"""stable-ts on an accelerated model gives what it gives on upstream's, without a fallback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import stable_whisper
import torch
import whisper
from stable_whisper import WhisperResult
from stable_whisper.whisper_word_level.original_whisper import modify_model
from whisper.model import Whisper

import whisper_max_plugin
from whisper_max_plugin.inference.model import MaxWhisper

from ..conftest import Pair
from ..data import NANO, SAMPLE, SAMPLE_ES, SAMPLE_LONG, jfk
from .words import Word, assert_same_words

JFK_TEXT = "And so my fellow Americans ask not what your country can do for you ask what you can do for your country."


@pytest.fixture(scope="module")
def stable() -> Pair:
    """nano as stable-ts loads it while the plugin is active, and upstream's."""
    whisper_max_plugin.install()
    accelerated = stable_whisper.load_model(str(NANO), device="cpu")
    reference = whisper.load_model(str(NANO), device="cpu", backend="torch")
    modify_model(reference)
    return Pair(reference, accelerated, NANO)


def words_of(result: WhisperResult) -> list[Word]:
    return [Word(word.word, float(word.start), float(word.end), word.probability) for word in result.all_words()]


def transcribe(model: Whisper, audio: Path, **options: Any) -> WhisperResult:
    torch.manual_seed(0)
    return model.transcribe(str(audio), **{"fp16": False, "language": "en", "verbose": None, **options})


def both(stable: Pair, audio: Path, **options: Any) -> tuple[WhisperResult, WhisperResult]:
    return transcribe(stable.max, audio, **options), transcribe(stable.torch, audio, **options)


def test_its_own_load_model_returns_the_accelerated_model(stable: Pair) -> None:
    assert isinstance(stable.max, MaxWhisper)
    assert type(stable.torch) is Whisper


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"suppress_silence": False},
        {"suppress_ts_tokens": True},
        {"beam_size": 5},
        {"temperature": (0.0, 0.4), "logprob_threshold": -0.05, "best_of": 2},
        {"regroup": False},
        {"condition_on_previous_text": False, "initial_prompt": "The king of the park"},
        {"language": None},
        {"dynamic_heads": 3},
    ],
    ids=str,
)
def test_transcribe(stable: Pair, options: dict[str, Any]) -> None:
    actual, expected = both(stable, SAMPLE, **options)
    assert actual.language == expected.language
    assert actual.text == expected.text
    assert_same_words(words_of(actual), words_of(expected))
    assert [len(segment.words) for segment in actual] == [len(segment.words) for segment in expected]


def test_transcribe_without_words(stable: Pair) -> None:
    actual, expected = both(stable, SAMPLE, word_timestamps=False, regroup=False)
    spans = [(segment.text, segment.start, segment.end) for segment in expected]
    assert [(segment.text, segment.start, segment.end) for segment in actual] == spans


def test_transcribe_a_long_file(stable: Pair) -> None:
    actual, expected = both(stable, SAMPLE_LONG)
    assert_same_words(words_of(actual), words_of(expected))


def test_transcribe_another_language(stable: Pair) -> None:
    actual, expected = both(stable, SAMPLE_ES, language="es")
    assert_same_words(words_of(actual), words_of(expected))


@pytest.mark.parametrize(
    "options", [{}, {"original_split": True}, {"fast_mode": True}, {"token_step": 20}, {"dynamic_heads": 3}], ids=str
)
def test_align(stable: Pair, options: dict[str, Any]) -> None:
    actual, expected = (
        model.align(str(jfk()), JFK_TEXT, language="en", verbose=None, **options)
        for model in (stable.max, stable.torch)
    )
    assert_same_words(words_of(actual), words_of(expected))


def test_align_words(stable: Pair) -> None:
    actual, expected = (
        model.align_words(str(jfk()), transcribe(model, jfk()), language="en", verbose=None)
        for model in (stable.max, stable.torch)
    )
    assert_same_words(words_of(actual), words_of(expected))


@pytest.mark.parametrize(
    "options", [{}, {"steps": "s"}, {"precision": 0.05}, {"single_batch": True}, {"word_level": False}], ids=str
)
def test_refine(stable: Pair, options: dict[str, Any]) -> None:
    """Encodes many silenced copies of a window as one batch, and runs the decoder on the batch."""
    before = words_of(transcribe(stable.torch, SAMPLE))
    actual, expected = (
        model.refine(str(SAMPLE), transcribe(model, SAMPLE), verbose=None, **options)
        for model in (stable.max, stable.torch)
    )
    assert_same_words(words_of(actual), words_of(expected))
    assert [word[:3] for word in words_of(expected)] != [word[:3] for word in before], "nothing was refined"


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_locate(stable: Pair, mode: int) -> None:
    """Steps by hand with a `kv_cache`, which it clears when it goes back."""
    actual, expected = (
        model.locate(str(jfk()), "country", language="en", mode=mode, verbose=None)
        for model in (stable.max, stable.torch)
    )
    assert len(expected) > 0
    if mode == 0:
        spans = [(segment.text, segment.start, segment.end) for segment in expected]
        assert [(segment.text, segment.start, segment.end) for segment in actual] == spans
    elif mode == 1:
        assert [found["duration_window_text"] for found in actual] == [
            found["duration_window_text"] for found in expected
        ]
        assert [found["end"] for found in actual] == [found["end"] for found in expected]
    else:
        assert actual == expected


def test_torch_has_its_threads_again_afterwards(stable: Pair) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        transcribe(stable.max, jfk())
        stable.max.locate(str(jfk()), "country", language="en", verbose=None)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_its_command_with_the_environment_variable(
    stable: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`WHISPER_BACKEND=max stable-ts …` runs on graphs; strict, so that a fallback would be an error."""
    monkeypatch.setenv("WHISPER_MAX_STRICT", "1")
    results = {}
    for backend in ("max", "torch"):
        monkeypatch.setenv("WHISPER_BACKEND", backend)
        output = tmp_path / f"{backend}.json"
        command = [sys.executable, "-m", "stable_whisper", str(jfk()), "--model", str(NANO), "--device", "cpu"]
        subprocess.run([*command, "--language", "en", "--fp16", "False", "-o", str(output)], check=True)
        segments = json.loads(output.read_text(encoding="utf8"))["segments"]
        results[backend] = [
            Word(word["word"], word["start"], word["end"], word["probability"])
            for segment in segments
            for word in segment["words"]
        ]
    assert_same_words(results["max"], results["torch"])
