"""Where no graph makes it, the spectrogram of long audio is upstream's, bit by bit, in less memory."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile  # type: ignore[import-untyped]
import torch
import whisper
from hypothesis import example, given, settings
from hypothesis import strategies as st
from whisper.audio import HOP_LENGTH

import whisper_max_plugin
from whisper_max_plugin import spectrogram
from whisper_max_plugin.spectrogram import CHUNK, LONG, log_mel_spectrogram

from ..data import SAMPLE_LONG

upstreams = inspect.unwrap(whisper.audio.log_mel_spectrogram)


def refuse(*_: object) -> torch.Tensor:
    pytest.fail("upstream's function was called")


@settings(max_examples=60, deadline=None)
@given(
    n_samples=st.integers(401, 1_100_000),
    padding=st.sampled_from([0, 1, 159, 200, 480_000]),
    n_mels=st.sampled_from([80, 128]),
)
@example(n_samples=HOP_LENGTH * CHUNK, padding=0, n_mels=80)
@example(n_samples=HOP_LENGTH * (CHUNK + 1), padding=0, n_mels=80)  # a frame by itself
@example(n_samples=HOP_LENGTH * (CHUNK + 1) - 1, padding=0, n_mels=128)
@example(n_samples=HOP_LENGTH * (CHUNK + 2), padding=1, n_mels=80)
@example(n_samples=HOP_LENGTH * CHUNK, padding=HOP_LENGTH * CHUNK, n_mels=80)  # a chunk of nothing but zeros
def test_any_length(n_samples: int, padding: int, n_mels: int) -> None:
    audio = torch.randn(n_samples, generator=torch.Generator().manual_seed(n_samples))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spectrogram, "LONG", 0)
        actual = log_mel_spectrogram(refuse, None, audio, n_mels, padding)
    assert torch.equal(actual, upstreams(audio, n_mels, padding))


@pytest.mark.parametrize("of", [np.asarray, torch.from_numpy, None], ids=["samples", "a tensor", "a file"])
def test_a_recording(of: Callable[[np.ndarray], object] | None, tmp_path: Path) -> None:
    audio = np.tile(whisper.load_audio(str(SAMPLE_LONG)), 2)
    assert len(audio) > LONG
    path = tmp_path / "long.wav"
    soundfile.write(path, audio, whisper.audio.SAMPLE_RATE)
    given = str(path) if of is None else of(audio)
    actual = log_mel_spectrogram(refuse, None, given, padding=480_000)  # type: ignore[arg-type]
    assert torch.equal(actual, upstreams(given, padding=480_000))


@pytest.mark.parametrize(
    ("audio", "options"),
    [
        (torch.randn(LONG), {}),
        (torch.randn(2, LONG + 1), {}),
        (torch.randn(LONG + 1, dtype=torch.float64), {}),
        (torch.randn(LONG + 1), {"device": "cpu"}),
        ([0.0] * (LONG + 1), {}),
    ],
    ids=["five minutes", "a batch", "of another type", "with a device", "a list"],
)
def test_everything_else_is_left_to_upstream(audio: object, options: dict[str, str]) -> None:
    calls = []
    log_mel_spectrogram(lambda *arguments: calls.append(arguments), None, audio, 80, 7, **options)  # type: ignore[arg-type, return-value]
    assert calls == [(audio, 80, 7, options.get("device"))]


def test_upstreams_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    whisper_max_plugin.install()
    audio = torch.zeros(LONG + 1)
    with pytest.raises(AssertionError, match="Unsupported n_mels: 81"):
        whisper.log_mel_spectrogram(audio, 81)


MEASURE = """
import json, re, sys
import torch
import whisper
if sys.argv[1] == "ours":
    import whisper_max_plugin.auto
audio = torch.randn(16000 * 3600).numpy()
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
whisper.log_mel_spectrogram(audio, 80, padding=480000)
print(json.dumps(peak() - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_hour_takes_a_quarter_of_the_memory() -> None:
    added = {}
    for whose in ("upstreams", "ours"):
        command = [sys.executable, "-c", MEASURE, whose]
        added[whose] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert added["ours"] < added["upstreams"] / 4, added
