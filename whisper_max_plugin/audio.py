"""``whisper.audio.load_audio`` without the ``ffmpeg`` command: PyAV gives the samples that command gives."""

from __future__ import annotations

import io
import logging
import os

import av
import numpy as np
from av.audio.codeccontext import AudioCodecContext
from av.audio.format import AudioFormat
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.filter import Graph
from av.stream import Discard, Disposition

SAMPLE_RATE = 16000  # Hz, upstream's whisper.audio.SAMPLE_RATE

# The ffmpeg command's default -max_error_rate: it fails when a larger share of what it decoded was broken.
MAX_ERROR_RATE = 2 / 3

logger = logging.getLogger(__name__)


def load_audio(file: str | os.PathLike[str], sr: int = SAMPLE_RATE) -> np.ndarray:
    """
    Open an audio file and read as mono waveform, resampling as necessary

    Upstream's function runs ``ffmpeg -i file -f s16le -ac 1 -acodec pcm_s16le -ar sr -``; this one does that
    with the same libraries inside this process. What the command rescues is rescued here too: broken packets
    are skipped and a truncated file gives what could be read of it, with a logged warning.

    Parameters
    ----------
    file: str or os.PathLike
        The audio or video file to open, or a URL that the FFmpeg libraries of PyAV can read

    sr: int
        The sample rate to resample the audio if necessary

    Returns
    -------
    A NumPy array containing the audio waveform, in float32 dtype, shape = (n_samples,), between -1 and 1.

    Raises
    ------
    RuntimeError
        If the file cannot be opened or read, has no audio stream, or if hardly anything of it can be decoded.
    """
    path = os.fsdecode(file)
    return _waveform("pipe:" if path == "-" else path, path, sr)


def load_audio_bytes(data: bytes, name: str) -> np.ndarray:
    """Do what `load_audio` does with the bytes of an audio file, which errors call `name`."""
    return _waveform(io.BytesIO(data), name, SAMPLE_RATE)


def _waveform(source: str | io.BytesIO, path: str, sr: int) -> np.ndarray:
    try:
        pcm = _decode(source, path, sr)
    except FFmpegError as error:
        raise _failure(path, _reason(source, error)) from error
    waveform = np.frombuffer(pcm, np.int16).astype(np.float32)
    waveform /= 32768.0
    return waveform


class _MonoPcm:
    """The command's audio filter graph: decoded frames in, mono 16-bit samples at one rate out."""

    def __init__(self, sr: int) -> None:
        self.samples = bytearray()
        self._sr = sr
        self._graph: Graph | None = None
        self._parameters: tuple[int, str, str] | None = None

    def add(self, frame: AudioFrame) -> None:
        """Convert one frame and append its samples."""
        parameters = (frame.sample_rate, frame.format.name, frame.layout.name)
        if self._graph is None or parameters != self._parameters:
            # On a change within the stream the command too drops what its resampler still holds (under 2 ms).
            self._graph = self._build(*parameters)
            self._parameters = parameters
        self._graph.push(frame)
        self._collect(self._graph)

    def finish(self) -> None:
        """Append what the resampler still holds."""
        if self._graph is not None:
            self._graph.push(None)
            self._collect(self._graph)

    def _build(self, sample_rate: int, sample_format: str, layout: str) -> Graph:
        graph = Graph()
        filters = [
            graph.add(
                "abuffer",
                time_base=f"1/{sample_rate}",
                sample_rate=str(sample_rate),
                sample_fmt=sample_format,
                channel_layout=layout,
            )
        ]
        if AudioFormat(sample_format).bytes <= 2:
            # ffmpeg 5 resamples and mixes such audio in 16 bits, later versions (and the libraries by
            # themselves) in float: up to 4 steps of the 16-bit scale apart.
            filters.append(graph.add("aresample", internal_sample_fmt="s16p"))
        target = {"sample_fmts": "s16", "sample_rates": str(self._sr), "channel_layouts": "mono"}
        filters += [graph.add("aformat", **target), graph.add("abuffersink")]
        graph.link_nodes(*filters).configure()
        return graph

    def _collect(self, graph: Graph) -> None:
        while True:
            try:
                frame = graph.pull()
            except (av.BlockingIOError, av.EOFError):  # the graph wants more input, or is flushed
                return
            self.samples += frame.to_ndarray().tobytes()


def _decode(source: str | io.BytesIO, path: str, sr: int) -> bytearray:
    """Mono int16 samples of the best audio stream, as the command writes them to its standard output."""
    with av.open(
        source,
        mode="r",
        container_options={"scan_all_pmts": "1"},  # as the command sets it
        metadata_errors="replace",  # tags in some old encoding must not fail the file
    ) as container:
        stream = _best_audio_stream(container)
        if stream is None:
            empty = bool(container.streams.audio)
            raise _failure(path, "its audio stream is empty" if empty else "it has no audio stream")
        if stream.codec_context is None:
            raise _failure(path, "PyAV has no decoder for its audio")
        for other in container.streams:
            if other.index != stream.index:
                other.discard = Discard.all
        _assume_usual_layout(stream.codec_context)
        stream.codec_context.open(strict=False)
        return _decode_stream(path, container, stream, sr)


def _decode_stream(path: str, container: InputContainer, stream: AudioStream, sr: int) -> bytearray:
    pcm = _MonoPcm(sr)
    n_decoded = n_broken = 0
    problem: FFmpegError | None = None
    packets = container.demux(stream)
    at_end = False
    while not at_end:
        try:
            packet = next(packets, None)
        except FFmpegError as error:
            problem, packet = error, None
        if packet is not None and packet.size == 0:
            continue  # the decoder would take an empty packet for the end
        at_end = packet is None
        try:
            frames = stream.codec_context.decode(packet)
        except FFmpegError as error:
            problem = error
            n_broken += 1
            continue
        n_decoded += len(frames)
        for frame in frames:
            try:
                pcm.add(frame)
            except FFmpegError as error:
                audio = f"its audio ({frame.layout.name}, {frame.sample_rate} Hz)"
                raise _failure(path, f"{audio} cannot be converted to mono at {sr} Hz") from error
    pcm.finish()

    if problem is not None:
        n_packets = n_broken + n_decoded
        reason = f"{n_broken} of {n_packets} packets are broken" if n_broken else "reading it broke off"
        reason = f"{reason} ({problem.strerror})"
        if n_decoded == 0 or n_broken > MAX_ERROR_RATE * n_packets:
            raise _failure(path, reason) from problem
        logger.warning("%s: %s; what could be decoded is used.", path, reason)
    return pcm.samples


def _best_audio_stream(container: InputContainer) -> AudioStream | None:
    """The stream the command picks: one that has data, then the default one, the most channels, the first."""

    def score(stream: AudioStream) -> tuple[bool, bool, int]:
        context = stream.codec_context
        default = bool(stream.disposition & Disposition.default)
        if context is None:  # no decoder: what it holds is unknown, so it comes after all others
            return (False, default, 1)
        return (context.sample_rate > 0, default, context.layout.nb_channels)

    return max((stream for stream in container.streams.audio if any(score(stream))), key=score, default=None)


def _assume_usual_layout(codec_context: AudioCodecContext) -> None:
    """Give a stream of which only the number of channels is known (plain WAV) the usual layout of so many."""
    if codec_context.layout.name.endswith(" channels"):
        try:
            codec_context.layout = f"{codec_context.layout.nb_channels}c"
        except ValueError:
            return  # no layout is usual for so many: mixing them down fails later, as in the command


def _failure(path: str, reason: str) -> RuntimeError:
    return RuntimeError(f"Failed to load audio: {path}: {reason}")


def _reason(source: str | io.BytesIO, error: FFmpegError) -> str:
    if isinstance(error, (av.InvalidDataError, av.EOFError)):
        if _is_empty(source):
            return "the file is empty"
        return f"it is not an audio file that can be decoded ({error.strerror})"
    return error.strerror or str(error)


def _is_empty(source: str | io.BytesIO) -> bool:
    if isinstance(source, io.BytesIO):
        return not source.getbuffer()
    return os.path.isfile(source) and os.path.getsize(source) == 0
