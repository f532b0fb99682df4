"""Recordings of which it is known where somebody speaks, and silero-vad's own package to compare with."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import whisper
from whisper.audio import SAMPLE_RATE

from whisper_max_plugin import silero

from ..data import SAMPLE_DE, SAMPLE_LONG, Sentence, reference

needs_silero = pytest.mark.skipif(
    importlib.util.find_spec("silero_vad") is None, reason="silero-vad is not installed (the extra vad)"
)
QUIET = 1e-3  # the samples' own noise


def silero_vad() -> ModuleType:
    """Return the package; its import limits torch to one thread, which is taken back."""
    threads = torch.get_num_threads()
    package = importlib.import_module("silero_vad")
    torch.set_num_threads(threads)
    return package


def without_silero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the package be missing, and what was read of it forgotten."""
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    silero.load.cache_clear()


def noise(duration: float, loudness: float) -> np.ndarray:
    samples = np.random.default_rng(0).standard_normal(round(duration * SAMPLE_RATE))
    return (loudness * samples).astype(np.float32)


def cut(path: Path, start: float, end: float) -> np.ndarray:
    samples: np.ndarray = whisper.load_audio(str(path))
    return samples[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]


def with_pauses(pauses: list[np.ndarray], path: Path = SAMPLE_LONG) -> tuple[np.ndarray, list[Sentence]]:
    """Return a recording of `pauses`, between which are one sentence each, and these as they lie in it."""
    margin = 0.15
    parts, sentences, position = [pauses[0]], [], len(pauses[0]) / SAMPLE_RATE
    for sentence, pause in zip(reference(path), pauses[1:], strict=False):
        speech = cut(path, max(0, sentence.start - margin), sentence.end + margin)
        shift = position - max(0, sentence.start - margin)
        sentences.append(Sentence(sentence.start + shift, sentence.end + shift, sentence.text))
        parts += [speech, pause]
        position += (len(speech) + len(pause)) / SAMPLE_RATE
    return np.concatenate(parts), sentences


def mostly_silent() -> tuple[np.ndarray, list[Sentence]]:
    """Four minutes: four sentences, silence and noise."""
    return with_pauses(
        [noise(45, QUIET), noise(50, QUIET), noise(60, 0.05), np.zeros(40 * SAMPLE_RATE, np.float32), noise(35, QUIET)]
    )


def german_after_silence() -> np.ndarray:
    return np.concatenate([noise(40, QUIET), whisper.load_audio(str(SAMPLE_DE))])
