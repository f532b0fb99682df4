"""Rows of options for `transcribe()`, recordings among them, in which all pairs of values occur together.

What only makes sense together is one choice: beams and patience, a prompt and whether it is carried. So no value hides
another one, and every pair is possible.
"""

from __future__ import annotations

import copy
import itertools
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cache, partial
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
import whisper
from torch import Tensor
from whisper.audio import SAMPLE_RATE
from whisper.decoding import DecodingOptions, DecodingResult
from whisper.model import Whisper

from ..data import JFK_BESIDE_THE_REPOSITORY, SAMPLE, SAMPLE_DE, SAMPLE_ES, SAMPLE_LONG, jfk

Row = dict[str, str]  # the name of a choice for each factor
Pair = tuple[tuple[str, str], ...]  # two factors, each with the name of a choice

FOLDER_VARIABLE = "WHISPER_MAX_TEST_AUDIO"  # names a folder of recordings, in place of the one beside the repository
SHORTEST, LONGEST = 3.0, 12.0  # seconds that a row takes of a recording
MOST_WINDOWS = 16  # that one call decodes, each temperature counted


def recordings() -> dict[str, Callable[[], Path]]:
    """Return real recordings by name: all of a folder, or jfk.flac where there is none."""
    folder = Path(os.environ.get(FOLDER_VARIABLE, JFK_BESIDE_THE_REPOSITORY.parent))
    found = sorted(path for path in folder.glob("*") if path.is_file()) if folder.is_dir() else []
    return {path.name: partial(Path, path) for path in found} or {"jfk": jfk}


@cache
def samples(path: Path) -> np.ndarray:
    """The samples of a file; both models are given the same ones."""
    found: np.ndarray = whisper.load_audio(str(path))
    return found


def seconds(path: Path, start: float, end: float) -> np.ndarray:
    return samples(path)[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]


def silence(duration: float) -> np.ndarray:
    return np.zeros(round(duration * SAMPLE_RATE), dtype=np.float32)


def noise(duration: float) -> np.ndarray:
    values = 0.1 * np.random.default_rng(0).standard_normal(round(duration * SAMPLE_RATE))
    return values.astype(np.float32)


def beginning(path: Callable[[], Path]) -> np.ndarray:
    """Up to 12 seconds of a recording, at least 3 with silence behind it."""
    start = seconds(path(), 0, LONGEST)
    return np.concatenate([start, silence(max(0.0, SHORTEST - len(start) / SAMPLE_RATE))])


def interrupted_speech() -> np.ndarray:
    return np.concatenate([seconds(SAMPLE, 0, 3), silence(3), 0.2 * noise(2), seconds(SAMPLE, 3, 6)])


AUDIOS: dict[str, Callable[[], np.ndarray]] = {
    **{name: partial(beginning, path) for name, path in recordings().items()},
    "three sentences": lambda: seconds(SAMPLE, 24.5, 33.5),
    "Spanish": lambda: samples(SAMPLE_ES),
    "German": lambda: samples(SAMPLE_DE),
    "31 seconds": lambda: seconds(SAMPLE_LONG, 0, 31),
    "interrupted speech": interrupted_speech,
    "silence": lambda: silence(2),
    "noise": lambda: noise(2),
    "0.1 seconds": lambda: seconds(SAMPLE, 1, 1.1),
}

SHORT_PROMPT = "The old man saw a green boat."
LONG_PROMPT = "A story about a boat. " * 50  # of which upstream keeps the last 223 tokens
FALLBACK = (0.0, 0.2, 0.4)

CHOICES: dict[str, dict[str, dict[str, Any]]] = {
    "task": {"transcribe": {}, "translate": {"task": "translate"}},
    "language": {"detected": {}, "en": {"language": "en"}, "es": {"language": "es"}, "de": {"language": "de"}},
    "search": {
        "greedy": {"temperature": 0.0},
        "one beam": {"temperature": 0.0, "beam_size": 1},
        "beams": {"temperature": 0.0, "beam_size": 5},
        "patient beams": {"temperature": 0.0, "beam_size": 2, "patience": 2.0},
        "sampling": {"temperature": 0.8},
        "best of two": {"temperature": 0.8, "best_of": 2},
        "fallback": {"temperature": FALLBACK},
        "beams, then best of two": {"temperature": FALLBACK, "beam_size": 5, "best_of": 2},
    },
    "ranking": {"by length": {}, "length penalty": {"length_penalty": 0.6}},
    "suppressed": {
        "symbols": {},
        "nothing": {"suppress_tokens": None},
        "empty string": {"suppress_tokens": ""},
        "empty list": {"suppress_tokens": []},
        "list": {"suppress_tokens": [11, 13, 257]},
        "string": {"suppress_tokens": "-1,257,262"},
    },
    "blank": {"suppressed": {}, "allowed": {"suppress_blank": False}},
    "timestamps": {
        "yes": {},
        "none": {"without_timestamps": True},
        "first one free": {"max_initial_timestamp": None},
        "first one early": {"max_initial_timestamp": 0.2},
    },
    "prompt": {
        "none": {},
        "short": {"initial_prompt": SHORT_PROMPT},
        "long": {"initial_prompt": LONG_PROMPT},
        "short, carried": {"initial_prompt": SHORT_PROMPT, "carry_initial_prompt": True},
        "long, carried": {"initial_prompt": LONG_PROMPT, "carry_initial_prompt": True},
        "of decode()": {"prompt": SHORT_PROMPT},  # which `transcribe()` overwrites
    },
    "prefix": {"none": {}, "text": {"prefix": "And so my"}, "tokens": {"prefix": [400, 370]}},
    # other tests set no limit: here nano is often made to talk nonsense, which goes on to the 224th token
    "length": {"10 tokens": {"sample_len": 10}, "30 tokens": {"sample_len": 30}},
    "previous text": {"used": {}, "unused": {"condition_on_previous_text": False}},
    "repetition": {
        "some": {},
        "any": {"compression_ratio_threshold": None},
        "never": {"compression_ratio_threshold": 0.5},
    },
    "doubt": {
        "some": {},
        "none": {"logprob_threshold": None, "no_speech_threshold": None},
        "about text": {"logprob_threshold": -0.01},
        "about speech": {"no_speech_threshold": 0.0},
        "about text, none about speech": {"logprob_threshold": -0.01, "no_speech_threshold": None},
    },
    "words": {
        "no": {},
        "yes": {"word_timestamps": True},
        "without hallucinations": {"word_timestamps": True, "hallucination_silence_threshold": 2.0},
        "without pauses": {"word_timestamps": True, "hallucination_silence_threshold": 0.3},
    },
    "clips": {  # in parts of the audio: upstream would look for ever for a clip behind its end
        "none": {},
        "empty string": {"clip_timestamps": ""},
        "two": {"clip_timestamps": "0.1,0.4,0.5,0.9"},
        "list": {"clip_timestamps": [0.25]},
    },
}


def known_choices() -> dict[str, dict[str, dict[str, Any]]]:
    """Return the choices whose options the installed openai-whisper has."""
    known = signature(whisper.transcribe).parameters.keys() | {field.name for field in fields(DecodingOptions)}
    return {
        factor: {name: options for name, options in choices.items() if options.keys() <= known}
        for factor, choices in CHOICES.items()
    }


def factors() -> dict[str, list[str]]:
    """Return the names of the choices that a row can take."""
    return {"audio": list(AUDIOS), **{factor: list(choices) for factor, choices in known_choices().items()}}


def pairwise_rows() -> list[Row]:
    """Return rows in which each two choices of different factors occur together; always the same ones.

    Each row starts from a pair that has not occurred, and goes on by the choices with which most others occur.
    """
    names = factors()
    draw = random.Random(0)
    missing = dict.fromkeys(all_pairs())  # a set in the order of insertion
    rows = []
    while missing:
        row = dict(next(iter(missing)))
        for factor in draw.sample(list(names), len(names)):
            if factor not in row:
                shuffled = draw.sample(names[factor], len(names[factor]))
                row[factor] = max(shuffled, key=lambda name: len(missing.keys() & pairs({**row, factor: name})))
        rows.append({factor: row[factor] for factor in names})
        for pair in pairs(row):
            missing.pop(pair, None)
    return rows


def random_rows(count: int, seed: int) -> Iterator[Row]:
    """Yield `count` rows, drawn from all combinations."""
    draw = random.Random(seed)
    for _ in range(count):
        yield {factor: draw.choice(names) for factor, names in factors().items()}


def pairs(row: Row) -> set[Pair]:
    """Return the pairs of choices that occur in a row."""
    return set(itertools.combinations(sorted(row.items()), 2))


def all_pairs() -> list[Pair]:
    """Return the pairs of choices that there are."""
    names = sorted(factors().items())
    return [
        ((factor, name), (other, other_name))
        for (factor, choices), (other, other_choices) in itertools.combinations(names, 2)
        for name, other_name in itertools.product(choices, other_choices)
    ]


def describe(row: Row) -> str:
    """Name a row by its audio and by what is not upstream's default."""
    chosen = [f"{factor}: {row[factor]}" for factor, choices in CHOICES.items() if choices[row[factor]]]
    return "; ".join([row["audio"], *chosen])


def arguments(row: Row) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the samples and the options of `transcribe()` that a row stands for."""
    audio = AUDIOS[row["audio"]]()
    options: dict[str, Any] = {"fp16": False}
    for factor, choices in CHOICES.items():
        options.update(choices[row[factor]])
    if clips := options.get("clip_timestamps"):
        options["clip_timestamps"] = in_seconds(clips, len(audio) / SAMPLE_RATE)
    return audio, options


def transcribe(model: Whisper, audio: np.ndarray, options: dict[str, Any]) -> dict[str, Any]:
    """Return what `transcribe()` returns, or its error; it hears nothing any more after a number of windows.

    Upstream goes on behind the last word, and where that is nonsense of no length, in small steps or none at all.
    """
    n_decoded = 0

    def decode(mel: Tensor, options: DecodingOptions) -> DecodingResult:
        nonlocal n_decoded
        n_decoded += 1
        if n_decoded <= MOST_WINDOWS:
            return type(model).decode(model, mel, options)
        return DecodingResult(torch.empty(0), "en", avg_logprob=-9.0, no_speech_prob=1.0, compression_ratio=0.0)

    torch.manual_seed(0)  # for sampling at temperatures above 0, see `test_decode.py`
    model.decode = decode
    try:
        return whisper.transcribe(model, audio, **copy.deepcopy(options))
    except Exception as error:  # noqa: BLE001  whatever it raises is the result
        return {"error": repr(error)}
    finally:
        del model.decode


def in_seconds(parts: str | list[float], duration: float) -> str | list[float]:
    """Turn parts of the audio into seconds."""
    if isinstance(parts, str):
        return ",".join(f"{float(part) * duration:.2f}" for part in parts.split(","))
    return [part * duration for part in parts]
