"""The public API: switch the plugin on and off, ask what it did, and transcribe with results as they come.

Importing this package changes nothing and imports neither torch nor MAX nor whisper.
"""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = [
    *("__version__", "install", "is_active", "status", "uninstall"),
    *("speech_clips", "transcribe_many", "transcribe_stream"),
]

# No import up here, typing's neither: the start-up hook imports this package in front of the user's program.
TYPE_CHECKING = False  # to type checkers it is true
if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator

    import numpy as np
    import torch
    from whisper.model import Whisper

    from whisper_max_plugin.many import Transcription
    from whisper_max_plugin.stream import TranscriptionStream


def install(backend: str = "max", precision: str | None = None) -> None:
    """Make `whisper.load_model` load models for `backend`, now or as soon as whisper is imported.

    Calling it again is harmless; other arguments replace the first ones.

    Parameters
    ----------
    backend : str
        "max", "torch" or the name of any registered backend
    precision : str | None
        what this backend rounds weights to, "int8" for one; see `load_model` after this

    Raises
    ------
    UnknownBackendError, PrecisionError
        ValueErrors that list the known names
    UnsupportedWhisperError
        when the imported whisper is not an openai-whisper that this plugin can patch

    Warns
    -----
    RuntimeWarning
        when a module did `from whisper import load_model` before: that name stays upstream's
    """
    from whisper_max_plugin import backends, upstream

    chosen = backends.get(backend)
    if precision is not None:
        precision = backends.checked_precision(chosen, precision)
    stale = upstream.activate(chosen.name, precision)
    if stale:
        import warnings

        warnings.warn(
            f"{', '.join(stale)} imported load_model from whisper before whisper_max_plugin.install() "
            "and keeps upstream's: install first, or call whisper.load_model(...) there",
            RuntimeWarning,
            stacklevel=2,
        )


def uninstall() -> None:
    """Give whisper its own functions back; models that are loaded already stay as they are."""
    from whisper_max_plugin import upstream

    upstream.deactivate()


def is_active() -> bool:
    """Return whether `whisper.load_model` is the plugin's, or will be once whisper is imported."""
    from whisper_max_plugin import upstream

    return upstream.is_active()


def status() -> dict[str, object]:
    """Return what the plugin is set to and what it did so far in this process; it can be written as JSON.

    Returns
    -------
    dict[str, object]
        `active`, `backend` (what the next `load_model` gets) and `version` (of this plugin), then the
        counters of `whisper_max_plugin.report`: graph runs by kind, steps that a GPU repeated from a recording, encoder
        runs saved, fallbacks by reason, compile seconds, device and precision
    """
    from whisper_max_plugin import upstream
    from whisper_max_plugin.report import REPORT

    settings = {"active": upstream.is_active(), "backend": upstream.current_backend(), "version": __version__}
    return {**settings, **REPORT.snapshot()}


def transcribe_many(
    model: Whisper,
    audios: Iterable[str | os.PathLike[str] | np.ndarray | torch.Tensor],
    *,
    batch_size: int = 8,
    **options: object,
) -> Iterator[Transcription]:
    """Transcribe recordings, up to `batch_size` of them at a time, whose windows are decoded together.

    Each recording keeps its own windows, prompt, language and temperatures: its result is that of
    `whisper.transcribe(model, audio, **options)`. One that is finished makes room for the next.

    Parameters
    ----------
    model : whisper.model.Whisper
        an accelerated one
    audios : Iterable[str | os.PathLike[str] | np.ndarray | torch.Tensor]
        paths, or samples: float32, 16 kHz, each of shape (n_samples,); asked for when there is room for them
    batch_size : int
        how many recordings are worked on at a time: each takes memory for its samples and one window
    options
        upstream's, of `transcribe()` and of `DecodingOptions`, for all recordings

    Yields
    ------
    Transcription
        as recordings are finished, with `index`, `audio`, and `result`, or `error` where a recording cannot be
        transcribed, which does not stop the others

    Raises
    ------
    OptionError
        a ValueError, if the model is not accelerated, or there is no such option or batch
    ForkedProcessError
        in a process that was forked from one in which MAX had started

    Notes
    -----
    Temperatures above zero sample by torch's generator, which the recordings share: there, seeds do not make results
    repeatable. Leaving the loop early ends the work at the next step.
    """
    from whisper_max_plugin import many

    return many.transcribe_many(model, audios, batch_size, options)


def transcribe_stream(
    model: Whisper, audio: str | os.PathLike[str] | np.ndarray | torch.Tensor, **options: object
) -> TranscriptionStream:
    """Transcribe as `whisper.transcribe(model, audio, **options)` does, and hand out segments as they come.

    Upstream's own function runs on a thread; the segments are those of its result, in order, each available
    when the window of up to 30 s is done that it lies in. Closing the stream, as `with` does, or forgetting it
    ends the work after the current window.

    Parameters
    ----------
    model : whisper.model.Whisper
        accelerated or upstream's own
    audio : str | os.PathLike[str] | np.ndarray | torch.Tensor
        a path, or samples: float32, 16 kHz, of shape (n_samples,)
    options
        upstream's, of `transcribe()` and of `DecodingOptions`

    Returns
    -------
    TranscriptionStream
        an iterator of segments as upstream makes them, with the attributes `language`, `seconds`, `duration` and,
        behind the last segment, `result`; what `transcribe()` raises is raised where a segment is asked for

    Raises
    ------
    UnsupportedWhisperError
        where a segment is asked for, when this whisper's loop is not one that can be watched
    """
    from whisper_max_plugin import stream

    return stream.transcribe_stream(model, audio, **options)


def speech_clips(
    audio: str | os.PathLike[str] | np.ndarray | torch.Tensor,
    *,
    threshold: float = 0.5,
    min_silence: float = 2.0,
    max_silence: float = 5.0,
    speech_pad: float = 0.4,
) -> list[float]:
    """Find speech with silero-vad, for `clip_timestamps` of upstream's `transcribe()`; no backend is needed.

    Upstream makes windows of 30 s of each clip, and a window costs the same, however little it holds. So speech that
    begins where a clip's last window has room belongs to that clip, unless the silence before it is too long.

    Parameters
    ----------
    audio : str | os.PathLike[str] | np.ndarray | torch.Tensor
        a file, or a waveform at 16 kHz, dtype = float32, shape = (n_samples,)
    threshold : float
        what is speech with this probability or a higher one is taken for speech
    min_silence : float
        seconds without speech after which a stretch of speech has ended
    max_silence : float
        seconds without speech that may lie between stretches of one clip; with 0, each stretch is a clip
    speech_pad : float
        seconds that are kept before and behind each stretch

    Returns
    -------
    list[float]
        start, end, start, end, ... in seconds, ascending, each a multiple of upstream's frame of 0.01 s;
        [0.0, 0.0] if nobody speaks, of which upstream makes no segments ([] is to upstream the whole file)

    Raises
    ------
    PackageError
        an ImportError: silero-vad is not installed, the extra `vad`
    VoiceActivityError
        a ValueError: an option or the waveform is not as described above
    RuntimeError
        upstream's, if the file cannot be read
    """
    from whisper_max_plugin import vad

    return vad.speech_clips(
        audio, threshold=threshold, min_silence=min_silence, max_silence=max_silence, speech_pad=speech_pad
    )
