"""``whisper.audio.log_mel_spectrogram`` by a graph for models that run on graphs, and of long audio in less memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
import whisper.audio
from torch import Tensor
from whisper.audio import HOP_LENGTH, N_FFT, SAMPLE_RATE, mel_filters

from whisper_max_plugin.report import REPORT

if TYPE_CHECKING:
    from whisper_max_plugin.inference.runtime import Runtime

LONG = 300 * SAMPLE_RATE  # samples; below, upstream's own function needs little
CHUNK = 3000  # frames at most: 30 s
NO_RECORDING = "the spectrogram of anything but one recording of float32 numbers in the host's memory"


def log_mel_spectrogram(
    original: Callable[..., Tensor],
    runtime: Runtime | None,
    audio: str | npt.NDArray[np.float32] | Tensor,
    n_mels: int = 80,
    padding: int = 0,
    device: str | torch.device | None = None,
) -> Tensor:
    """Return upstream's log-mel spectrogram (n_mels, n_frames), float32.

    For a model that runs on graphs a graph makes it. It is off by as much as upstream's is from exact arithmetic, some
    1e-5 at most.

    Otherwise it is upstream's, bit by bit, and `original` makes it of all but long audio. Upstream transforms all
    frames at once and holds several arrays of that size, for an hour of audio 1.6 GB beside the audio. A frame depends
    on its own samples alone, so one chunk of frames after the other gives the same numbers; only the largest value,
    below which everything is clamped, is of all frames.

    Parameters
    ----------
    original : Callable
        upstream's ``whisper.audio.log_mel_spectrogram``
    runtime : Runtime | None
        of the model that `transcribe()` asks for, if it runs on graphs
    audio, n_mels, padding, device
        upstream's own
    """
    loaded = whisper.audio.load_audio(audio) if isinstance(audio, str) else audio
    samples = torch.from_numpy(loaded) if isinstance(loaded, np.ndarray) else loaded
    if not isinstance(samples, Tensor) or samples.dtype != torch.float32:
        return original(loaded, n_mels, padding, device)  # its error
    if torch.get_default_dtype() != torch.float32:  # of which upstream's window is
        if runtime is not None:
            REPORT.fallback(f"the spectrogram, where torch's default type is {torch.get_default_dtype()}")
        return original(loaded, n_mels, padding, device)
    is_recording = device is None and _is_recording(samples)
    if runtime is not None and (reason := runtime.why_unbound()) is not None:
        REPORT.fallback(f"the spectrogram, for a model with {reason}")
        runtime = None
    if runtime is not None and is_recording and n_mels == runtime.dims.n_mels:
        if samples.shape[0] + padding > N_FFT // 2 and (mel := runtime.engine().log_mel(samples, padding)) is not None:
            return mel
        return original(loaded, n_mels, padding, device)  # its error, or NaN, of which the encoder tells
    if runtime is not None:
        REPORT.fallback(NO_RECORDING)
    if is_recording and samples.shape[0] > LONG:
        return _of_long_audio(samples, n_mels, padding)
    return original(loaded, n_mels, padding, device)


def _is_recording(samples: Tensor) -> bool:
    return samples.ndim == 1 and samples.device.type == "cpu" and not samples.requires_grad


def _of_long_audio(samples: Tensor, n_mels: int, padding: int) -> Tensor:
    window = torch.hann_window(N_FFT)
    filters = mel_filters(samples.device, n_mels)
    n_frames = (samples.shape[0] + padding) // HOP_LENGTH
    mel = torch.empty(n_mels, n_frames)
    n_chunks = -(-n_frames // CHUNK)
    # evenly, since products of few frames are summed up in another order
    bounds = [n_frames * index // n_chunks for index in range(n_chunks + 1)]
    for begin, end in itertools.pairwise(bounds):
        chunk = _samples_of(samples, padding, begin, end)
        stft = torch.stft(chunk, N_FFT, HOP_LENGTH, window=window, center=False, return_complex=True)
        mel[:, begin:end] = filters @ stft.abs() ** 2
    mel.clamp_(min=1e-10).log10_()
    torch.maximum(mel, mel.max() - 8.0, out=mel)
    return mel.add_(4.0).div_(4.0)


def _samples_of(samples: Tensor, padding: int, begin: int, end: int) -> Tensor:
    """Return the samples of some frames, which are centred; beyond both ends they are mirrored."""
    n_samples = samples.shape[0] + padding
    first, last = begin * HOP_LENGTH - N_FFT // 2, (end - 1) * HOP_LENGTH + N_FFT // 2
    there = samples[max(first, 0) : min(last, samples.shape[0])]
    n_zeros = min(last, n_samples) - max(first, 0) - there.shape[0]
    mirrored = max(-first, 0), max(last - n_samples, 0)
    return F.pad(F.pad(there, (0, n_zeros))[None], mirrored, mode="reflect")[0]
