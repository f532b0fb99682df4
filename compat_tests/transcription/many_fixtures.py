"""Recordings of several lengths, cut from the long sample, and what is done with them."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile  # type: ignore[import-untyped]
import whisper
from whisper.audio import SAMPLE_RATE

import whisper_max_plugin

from ..commands.fixtures import Command
from ..data import SAMPLE_LONG

SECONDS = [(0, 9), (20, 75), (61, 82), (90, 131), (100, 104), (131, 161), (150, 186)]
OPTIONS: dict[str, Any] = {"language": "en", "fp16": False, "temperature": 0.0}


@pytest.fixture(scope="session")
def recordings() -> list[np.ndarray]:
    audio = whisper.load_audio(str(SAMPLE_LONG))
    return [audio[begin * SAMPLE_RATE : end * SAMPLE_RATE] for begin, end in SECONDS]


@pytest.fixture
def files(recordings: list[np.ndarray], tmp_path: Path) -> list[Path]:
    """The recordings as files, the longest of the first five among them."""
    paths = [tmp_path / f"part{index}.wav" for index in range(5)]
    for path, recording in zip(paths, recordings, strict=False):
        soundfile.write(path, recording, SAMPLE_RATE)
    return paths


@pytest.fixture
def greedy(command: Command) -> Command:
    """Without the temperatures at which nothing can be repeated."""
    return partial(command, "--temperature", "0")


def running() -> list[threading.Thread]:
    """Return the threads of `transcribe_many`."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("transcribe_many")]


def steps() -> int:
    """Return how many steps have run."""
    return whisper_max_plugin.status()["graph_runs"].get("step", 0)
