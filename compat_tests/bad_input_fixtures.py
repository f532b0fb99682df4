"""What is good beside bad input, one window and quick options, and the comparison of its outcome with upstream's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import whisper
from torch import Tensor
from whisper.model import Whisper

import whisper_max_plugin
from whisper_max_plugin.audio import load_audio

from .conftest import Pair
from .data import SAMPLE
from .errors import assert_same_error

EOT, SOT = 50257, 50258
QUICK: dict[str, Any] = {"language": "en", "fp16": False, "sample_len": 3}


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    whisper_max_plugin.install()
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def mel() -> Tensor:
    """The first window of the sample recording, shape = (80, 3000)."""
    return whisper.log_mel_spectrogram(whisper.pad_or_trim(load_audio(SAMPLE)))


def assert_same_outcome(nano: Pair, call: Callable[[Whisper], object]) -> None:
    """On both models the call raises the same error."""
    assert_same_error(lambda: call(nano.max), lambda: call(nano.torch))
