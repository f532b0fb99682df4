"""The spectrogram that a graph makes for `transcribe()` is upstream's, but for what upstream's own is off by."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
import torch.nn.functional as F
import whisper
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from max.graph import Module
from torch import Tensor
from whisper.audio import HOP_LENGTH, N_FFT, N_SAMPLES, mel_filters

from whisper_max_plugin.checkpoints.sizes import OFFICIAL_DIMS
from whisper_max_plugin.execution.devices import HOST
from whisper_max_plugin.execution.engine import Engine
from whisper_max_plugin.execution.session import session
from whisper_max_plugin.execution.watch import WATCH
from whisper_max_plugin.graphs import build_log_mel, kernel_library
from whisper_max_plugin.spectrogram import log_mel_spectrogram

from ..conftest import Pair
from ..parity.grid import recordings

ERROR = 1e-4
upstreams = inspect.unwrap(whisper.audio.log_mel_spectrogram)

LogMel = Callable[[Tensor, int, int], Tensor | None]
"""Makes a spectrogram of samples, for a number of mels and of zeros behind the samples."""


class Spectrograms(Engine):
    """An engine whose only graph is ``log_mel``."""

    def __init__(self, n_mels: int) -> None:
        self.dims = replace(OFFICIAL_DIMS["tiny"], n_mels=n_mels)
        self.device, self._lock = HOST, threading.Lock()
        module, library = Module(), kernel_library()
        build_log_mel(module, self.dims, library)
        with WATCH.over():
            compiled = session().compile(module, custom_extensions=library.library_paths())
            self._log_mel = session().init_all(compiled, weights_registry={})["log_mel"]


@pytest.fixture(scope="module")
def log_mel(nano: Pair) -> LogMel:
    of_128 = cache(Spectrograms)

    def log_mel(samples: Tensor, n_mels: int, padding: int) -> Tensor | None:
        engine = nano.max.decoder.runtime.engine() if n_mels == 80 else of_128(n_mels)
        return engine.log_mel(samples, padding)

    return log_mel


def exact_powers(samples: Tensor, n_mels: int, padding: int) -> Tensor:
    """Return what upstream's formula gives in float64 before the logarithm, (n_mels, n_frames)."""
    padded, window = F.pad(samples.double(), (0, padding)), torch.hann_window(N_FFT).double()
    stft = torch.stft(padded, N_FFT, HOP_LENGTH, window=window, return_complex=True)
    powers: Tensor = mel_filters("cpu", n_mels).double() @ stft[..., :-1].abs() ** 2
    return powers.clamp(min=1e-10)


def exact(samples: Tensor, n_mels: int, padding: int) -> Tensor:
    """Return what upstream's formula gives in float64."""
    logarithms = exact_powers(samples, n_mels, padding).log10()
    return (logarithms.clamp(min=logarithms.max() - 8.0) + 4.0) / 4.0


def rounding(powers: Tensor) -> Tensor:
    """Return by how much a spectrogram of any samples may be off: of noise, some value is next to nothing.

    A frequency is off by a part of the frame's loudest one, which the logarithm magnifies where a filter finds little.
    """
    return ERROR + 1e-6 * (powers.amax(dim=0) / powers).sqrt()


def largest(difference: Tensor) -> float:
    return float(difference.abs().max())


# Its numbers


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("name", recordings())
def test_a_real_recording(log_mel: LogMel, name: str, n_mels: int) -> None:
    samples = torch.from_numpy(whisper.load_audio(str(recordings()[name]())))
    actual, expected = log_mel(samples, n_mels, N_SAMPLES), upstreams(samples, n_mels, N_SAMPLES)
    assert actual is not None
    assert actual.shape == expected.shape
    assert largest(actual - expected) < ERROR
    true = exact(samples, n_mels, N_SAMPLES)
    assert largest(actual - true) < 3 * largest(expected - true)


@settings(max_examples=150, deadline=None)
@given(
    n_samples=st.integers(0, 50_000),
    padding=st.sampled_from([401, 0, 1, 159, 200, 30_000, N_SAMPLES]),
    loudness=st.sampled_from([1.0, 1e-6, 1e4]),
)
@example(n_samples=0, padding=N_SAMPLES, loudness=1.0)
@example(n_samples=1, padding=400, loudness=1.0)
@example(n_samples=201, padding=0, loudness=1.0)
@example(n_samples=320, padding=0, loudness=1.0)
@example(n_samples=401, padding=401, loudness=1.0)
@example(n_samples=HOP_LENGTH * 64, padding=0, loudness=1.0)
@example(n_samples=HOP_LENGTH * 64 - 1, padding=0, loudness=1.0)
@example(n_samples=HOP_LENGTH * 65, padding=401, loudness=1.0)
@example(n_samples=44009, padding=401, loudness=1.0)  # where upstream's own is off by 1e-4
def test_any_length(log_mel: LogMel, n_samples: int, padding: int, loudness: float) -> None:
    assume(n_samples + padding > N_FFT // 2)
    samples = loudness * torch.randn(n_samples, generator=torch.Generator().manual_seed(n_samples))
    actual, expected = log_mel(samples, 80, padding), upstreams(samples, 80, padding)
    assert actual is not None
    assert actual.shape == expected.shape
    assert ((actual - expected).abs() < rounding(exact_powers(samples, 80, padding))).all()


@pytest.mark.parametrize(
    "samples",
    [
        torch.zeros(5000),
        F.pad(torch.ones(1), (2500, 2499)),
        torch.ones(5000),
        torch.ones(5000).index_fill(0, torch.arange(0, 5000, 2), -1.0),
        torch.cat([torch.randn(8000), torch.zeros(8000), 1e-3 * torch.randn(8000)]),
        torch.randn(2, 9000)[1],
        torch.randn(9000, 2)[:, 1],
    ],
    ids=["silence", "a click", "constant", "the highest tone", "pauses", "a view", "strides"],
)
def test_sounds(log_mel: LogMel, samples: Tensor) -> None:
    actual = log_mel(samples, 80, 0)
    assert actual is not None
    torch.testing.assert_close(actual, upstreams(samples), rtol=0, atol=ERROR)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30])
@pytest.mark.parametrize("place", [0, 4321, 9999])
def test_a_sample_that_is_not_finite_is_told(log_mel: LogMel, value: float, place: int) -> None:
    """As one is whose power is not."""
    samples = torch.randn(10_000)
    samples[place] = value
    assert log_mel(samples, 80, 0) is None
    assert log_mel(samples, 80, N_SAMPLES) is None


@pytest.mark.parametrize("n_samples", [0, 1, 200])
def test_too_few_samples_are_upstreams_error(nano: Pair, n_samples: int) -> None:
    runtime = nano.max.decoder.runtime
    errors = []
    for make in (upstreams, partial(log_mel_spectrogram, upstreams, runtime)):
        with pytest.raises(RuntimeError) as error:
            make(torch.zeros(n_samples))
        errors.append(str(error.value))
    assert errors[0] == errors[1]
