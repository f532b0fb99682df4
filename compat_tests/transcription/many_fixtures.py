"""Recordings of several lengths, cut from the long sample."""

from __future__ import annotations

import numpy as np
import pytest
import whisper
from whisper.audio import SAMPLE_RATE

from ..data import SAMPLE_LONG

SECONDS = [(0, 9), (20, 75), (61, 82), (90, 131), (100, 104), (131, 161), (150, 186)]


@pytest.fixture(scope="session")
def recordings() -> list[np.ndarray]:
    audio = whisper.load_audio(str(SAMPLE_LONG))
    return [audio[begin * SAMPLE_RATE : end * SAMPLE_RATE] for begin, end in SECONDS]
