"""Finds out where in a recording somebody speaks, so that upstream's `transcribe()` hears that and nothing else."""

from __future__ import annotations

import functools
import numbers
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import whisper
import whisper.audio
from torch import Tensor
from whisper.audio import FRAMES_PER_SECOND, HOP_LENGTH, N_FRAMES, N_SAMPLES, SAMPLE_RATE
from whisper.tokenizer import LANGUAGES

from whisper_max_plugin import silero, upstream
from whisper_max_plugin.errors import PackageError, VoiceActivityError
from whisper_max_plugin.half import takes_half
from whisper_max_plugin.silero import CHUNK
from whisper_max_plugin.spectrogram import log_mel_spectrogram

if TYPE_CHECKING:
    from whisper.model import Whisper

WHOLE_FILE = "0"  # upstream's default of clip_timestamps
NO_SPEECH = (0.0, 0.0)  # an empty clip: without any, upstream transcribes the whole file
HYSTERESIS = 0.15  # speech goes on until its probability is so much below the threshold, as in silero-vad
FIRST_RELEASE = "20240927"  # of openai-whisper in which transcribe() takes clip_timestamps


def speech_clips(
    audio: str | os.PathLike[str] | np.ndarray | Tensor,
    *,
    threshold: float = 0.5,
    min_silence: float = 2.0,
    max_silence: float = 5.0,
    speech_pad: float = 0.4,
) -> list[float]:
    """See `whisper_max_plugin.speech_clips`."""
    if not (isinstance(threshold, numbers.Real) and 0 < threshold < 1):
        raise VoiceActivityError(f"threshold is a probability between 0 and 1, and not {threshold!r}")
    for name, value in {"min_silence": min_silence, "max_silence": max_silence, "speech_pad": speech_pad}.items():
        if not (isinstance(value, numbers.Real) and value >= 0):
            raise VoiceActivityError(f"{name} is a number of seconds, and not {value!r}")
    samples = _samples(audio)
    speech = _speech(silero.speech_probabilities(samples).tolist(), threshold, min_silence)
    clips = _clips(speech, max_silence, speech_pad, samples.shape[0])
    return [frame / FRAMES_PER_SECOND for clip in clips for frame in clip] or list(NO_SPEECH)


def only_speech(transcribe: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Return `transcribe`, upstream's or a wrapper of it, so that it hears nothing but speech.

    What is returned takes the same arguments but `clip_timestamps`. A language that is not given is detected in the
    first window of speech; upstream listens to the first 30 s of the file, whatever they hold.

    Raises
    ------
    PackageError
        if silero-vad is not installed, or openai-whisper is a release without `clip_timestamps`
    VoiceActivityError
        by what is returned, when it is given `clip_timestamps`
    """
    if whisper.__version__ < FIRST_RELEASE:
        raise PackageError(
            f"openai-whisper {whisper.__version__} cannot transcribe clips of a file: "
            f"pip install 'openai-whisper>={FIRST_RELEASE}'"
        )
    silero.load()

    @functools.wraps(transcribe)
    def of_speech(
        model: Whisper, audio: str | np.ndarray | Tensor, *, clip_timestamps: Any = WHOLE_FILE, **options: Any
    ) -> dict[str, Any]:
        check_clip_timestamps(clip_timestamps)
        samples = _samples(audio)  # once, for all who need them
        clips = speech_clips(samples)
        if options.get("language") is None and model.is_multilingual and tuple(clips) != NO_SPEECH:
            options["language"] = _language(model, samples, clips, half=options.get("fp16", True))
            if options.get("verbose") is not None:  # when upstream prints what it detected
                print(f"Detected language: {LANGUAGES[options['language']].title()}")  # noqa: T201
        return transcribe(model, samples, clip_timestamps=clips, **options)

    return of_speech


def check_clip_timestamps(given: Any) -> None:
    """Raise a VoiceActivityError unless `given` is upstream's default, which says nothing."""
    if given != WHOLE_FILE:
        raise VoiceActivityError("voice activity and clip_timestamps both say what to transcribe: give one of them")


def _samples(audio: str | os.PathLike[str] | np.ndarray | Tensor) -> Tensor:
    """Return the waveform as silero-vad and upstream take it."""
    waveform = whisper.audio.load_audio(os.fspath(audio)) if isinstance(audio, (str, os.PathLike)) else audio
    tensor = torch.from_numpy(waveform) if isinstance(waveform, np.ndarray) else waveform
    if not isinstance(tensor, Tensor):
        raise VoiceActivityError(
            f"audio is a path or float32 samples of one channel at 16 kHz, and not {type(audio).__name__}"
        )
    if tensor.ndim != 1 or not tensor.is_floating_point():
        raise VoiceActivityError(
            f"audio is float32 samples of one channel at 16 kHz, as whisper.load_audio(path) gives them, and not "
            f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        )
    samples = tensor.detach().to("cpu", torch.float32)
    if not bool(samples.isfinite().all()):
        raise VoiceActivityError("the audio has samples that are no finite numbers: check where they come from")
    return samples


def _speech(probabilities: list[float], threshold: float, min_silence: float) -> Iterator[tuple[int, int]]:
    """Yield where speech begins and ends, in samples: it ends when its probability stays low for `min_silence` seconds.

    This is `get_speech_timestamps` of silero-vad, without a smallest and a largest duration.
    """
    low = max(threshold - HYSTERESIS, 0.01)
    begin: int | None = None
    silence: int | None = None
    for position, probability in zip(range(0, len(probabilities) * CHUNK, CHUNK), probabilities, strict=True):
        if probability >= threshold:
            begin = position if begin is None else begin
            silence = None
        elif probability < low and begin is not None:
            silence = position if silence is None else silence
            if position - silence >= min_silence * SAMPLE_RATE:
                yield begin, silence
                begin = silence = None
    if begin is not None:
        yield begin, len(probabilities) * CHUNK


def _clips(
    speech: Iterable[tuple[int, int]], max_silence: float, speech_pad: float, n_samples: int
) -> list[tuple[int, int]]:
    """Return `speech` as clips for upstream, padded, in frames of 10 ms.

    Upstream makes windows of each clip, and a window costs the same, however little it holds. So what begins in a
    clip's last window belongs to the clip, unless the silence between is too long.
    """
    pad = int(min(speech_pad * SAMPLE_RATE, n_samples))
    clips: list[tuple[int, int]] = []
    silence = 0  # where the silence before the stretch began, in samples
    for first, last in speech:
        begin = max(first - pad, 0) // HOP_LENGTH
        end = min(-(-(last + pad) // HOP_LENGTH), n_samples // HOP_LENGTH)  # behind its last frame, upstream never ends
        if clips:
            clip_begin, clip_end = clips[-1]
            n_windows = -(-(clip_end - clip_begin) // N_FRAMES)
            is_near = first - silence <= max_silence * SAMPLE_RATE or begin <= clip_end
            if is_near and begin < clip_begin + n_windows * N_FRAMES:
                begin = clips.pop()[0]
        if begin < end:
            clips.append((begin, end))
        silence = last
    return clips


def _language(model: Whisper, samples: Tensor, clips: list[float], *, half: bool) -> str:
    """Return the language of the first window that upstream makes of `clips`.

    It is the same window, of the spectrogram of the whole recording, so that its features are computed only once.
    """
    begin, end = (round(seconds * FRAMES_PER_SECOND) for seconds in clips[:2])
    runtime = upstream.spectrogram_runtime(model)
    mel = log_mel_spectrogram(whisper.log_mel_spectrogram, runtime, samples, model.dims.n_mels, padding=N_SAMPLES)
    window = whisper.pad_or_trim(mel[:, begin : min(end, begin + N_FRAMES)], N_FRAMES).to(model.device)
    if half and takes_half(model):
        window = window.half()
    _, probabilities = model.detect_language(window)
    return max(probabilities, key=probabilities.get)
