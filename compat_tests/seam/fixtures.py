"""Windows of the sample recording, encoded and not, and tokens to go with them, for calls below `decode()`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import whisper
from torch import Tensor

import whisper_max_plugin
from whisper_max_plugin.audio import load_audio

from ..conftest import Pair
from ..data import SAMPLE

TOKENS = torch.tensor([[50258, 50259, 50359, 50364, 440, 1331, 587, 1866]])  # <|sot|><|en|><|transcribe|><|0.00|> …
DECODINGS = [{}, {"beam_size": 3, "patience": 2.0}, {"temperature": 0.7, "best_of": 3}, {"task": "lang_id"}]


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def mels() -> Tensor:
    """Three windows of the sample recording, shape = (3, 80, 3000)."""
    mel = whisper.log_mel_spectrogram(load_audio(SAMPLE))
    return torch.stack([whisper.pad_or_trim(mel[:, start:], 3000) for start in (0, 500, 1000)])


@pytest.fixture(scope="module")
def mel(mels: Tensor) -> Tensor:
    """One window, shape = (1, 80, 3000)."""
    return mels[:1]


@pytest.fixture
def features(nano: Pair, mel: Tensor) -> Tensor:
    """The encoded window, shape = (1, 1500, 128)."""
    return nano.torch.encoder(mel)


@pytest.fixture
def features_of_three(nano: Pair, mels: Tensor) -> Tensor:
    """The encoded windows, shape = (3, 1500, 128)."""
    return nano.torch.encoder(mels)


@pytest.fixture
def fallbacks(nano: Pair) -> Callable[[], dict[str, int]]:
    """Return the fallbacks that were counted since the test began."""
    before = whisper_max_plugin.status()["fallbacks"]

    def since() -> dict[str, int]:
        after = whisper_max_plugin.status()["fallbacks"]
        return {reason: n - before.get(reason, 0) for reason, n in after.items() if n > before.get(reason, 0)}

    return since
