"""What `whisper-max live` listens to: PCM and WAV, pipes and files that grow, a microphone; and what it refuses."""

from __future__ import annotations

import builtins
import io
import os
import sys
import threading
import time
import types
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from whisper_max_plugin.errors import LiveInputError
from whisper_max_plugin.live import sources
from whisper_max_plugin.live.sources import Recorder, open_input

from ..data import NANO, SAMPLE

PCM = (np.random.default_rng(0).normal(0, 0.2, 5000) * 32768).clip(-32768, 32767).astype("<i2")
SAMPLES = PCM.astype(np.float32) / 32768


def wav(rate: int = 16000, channels: int = 1, width: int = 2, data: bytes = PCM.tobytes()) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((channels, width, rate, 0, "NONE", ""))
        writer.writeframes(data)
    return file.getvalue()


def with_a_chunk_behind(file: bytes) -> bytes:
    """As recorders and editors write it: what the file is about, behind the samples."""
    chunk = b"iXML" + (4000).to_bytes(4, "little") + b"<BWF>" * 800
    return file[:4] + (len(file) + len(chunk) - 8).to_bytes(4, "little") + file[8:] + chunk


def encoded(codec: str, container: str, rate: int, **options: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=options) as writer:
        stream = writer.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(PCM[None, : len(PCM) // 1024 * 1024], format="s16", layout="mono")
        frame.sample_rate = rate
        resampler = av.AudioResampler(stream.format, "mono", rate, frame_size=stream.frame_size)
        for each in [*resampler.resample(frame), *resampler.resample(None), None]:
            writer.mux(stream.encode(each))
    return file.getvalue()


NO_TAGS = {"write_id3v2": "0", "id3v2_version": "0", "write_xing": "0"}


def with_another_chunk(file: bytes) -> bytes:
    """As ffmpeg writes it: a chunk of odd size between the format and the samples."""
    return file[:36] + b"LIST" + (5).to_bytes(4, "little") + b"INFO!\0" + file[36:]


@pytest.fixture(autouse=True)
def files_are_soon_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "QUIET", 0.3)


def read(name: str) -> np.ndarray:
    blocks = list(open_input(name)(threading.Event()))
    assert all(block.dtype == np.float32 for block in blocks)
    return np.concatenate([np.zeros(0, np.float32), *blocks])


@pytest.mark.parametrize(
    "content",
    [
        PCM.tobytes(),
        PCM.tobytes() + b"\1",
        wav(),
        with_another_chunk(wav()),
        with_a_chunk_behind(wav()),
        wav()[:4] + b"\xff" * 4 + wav()[8:],
        wav(data=PCM[:2000].tobytes()) + PCM[2000:].tobytes(),
    ],
    ids=[
        *("raw", "raw with half a sample", "WAV", "WAV with another chunk", "WAV with a chunk behind"),
        *("WAV that is being written", "WAV that has grown"),
    ],
)
@pytest.mark.parametrize("block", [1, 7, 3200])
def test_the_samples_of_pcm_and_wav(
    tmp_path: Path, content: bytes, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "BLOCK", block)
    (tmp_path / "file").write_bytes(content)
    assert np.array_equal(read(str(tmp_path / "file")), SAMPLES)


@pytest.mark.parametrize("content", [b"", b"\1", wav(data=b"")])
def test_an_input_without_samples_is_silent(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    assert read(str(tmp_path / "file")).size == 0


def test_a_file_is_read_while_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    got: list[np.ndarray] = []
    reader = threading.Thread(target=lambda: got.extend(open_input(str(path))(threading.Event())))
    reader.start()
    with path.open("ab") as file:
        for begin in range(0, len(PCM), 1000):
            time.sleep(0.1)
            file.write(PCM[begin : begin + 1000].tobytes())
            file.flush()
    reader.join(10)
    assert len(got) >= 5
    assert np.array_equal(np.concatenate(got), SAMPLES)


def test_a_named_pipe_ends_with_its_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "QUIET", 1000)
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(PCM.tobytes(),))
    writer.start()
    assert np.array_equal(read(str(tmp_path / "pipe")), SAMPLES)
    writer.join(10)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"fLaC" + bytes(100), "is neither WAV nor raw PCM: ffmpeg -i"),
        (b"OggS" + bytes(100), "is neither WAV nor raw PCM: ffmpeg -i"),
        (bytes(4) + b"ftypM4A " + bytes(100), "is neither WAV nor raw PCM: ffmpeg -i"),
        (b"RIFF" + bytes(4) + b"AVI " + bytes(100), "is neither WAV nor raw PCM: ffmpeg -i"),
        (NANO.read_bytes()[:1000], "is neither WAV nor raw PCM: ffmpeg -i"),
        *((encoded("mp3", "mp3", rate, **NO_TAGS), "is neither WAV") for rate in (8000, 16000, 24000, 32000, 44100)),
        (encoded("aac", "adts", 16000), "is neither WAV nor raw PCM: ffmpeg -i"),
        (wav(rate=44100), "16 bits, 44100 Hz and 1 channels, not of 16-bit PCM, 16000 Hz and 1: ffmpeg -i"),
        (wav(channels=2), "16 bits, 16000 Hz and 2 channels"),
        (wav(width=1), "8 bits, 16000 Hz and 1 channels"),
        (wav()[:30], "ends within the header of a WAV file"),
    ],
)
def test_what_cannot_be_read_as_it_is_says_how_it_can(tmp_path: Path, content: bytes, error: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(LiveInputError, match="file .*" + error):
        read(str(tmp_path / "file"))


@pytest.mark.parametrize("second", [b"\xff\xff", b"\x10\x00", b"\x48\xc4"])
@pytest.mark.parametrize("first", [b"\xff\xff", b"\xff\xfb", b"\xff\xf3", b"\xff\xf1"])
def test_samples_that_look_like_the_header_of_a_frame_are_samples(tmp_path: Path, first: bytes, second: bytes) -> None:
    content = first + second + PCM[2:].tobytes()
    (tmp_path / "file").write_bytes(content)
    assert len(read(str(tmp_path / "file"))) == len(PCM)


@pytest.mark.parametrize("content", [SAMPLE.read_bytes()[:100], wav(rate=44100)], ids=["FLAC", "44.1 kHz"])
def test_a_file_of_another_format_is_refused_before_it_is_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(LiveInputError, match=r"file .*: ffmpeg -i"):
        open_input(str(tmp_path / "file"))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(LiveInputError, match=r"nope\.wav cannot be read: No such file or directory"):
        open_input(str(tmp_path / "nope.wav"))


# The microphone


class FakeError(Exception):
    pass


def fake_sounddevice(constructor_error: Exception | None = None, start_error: Exception | None = None) -> Any:
    class InputStream:
        def __init__(self, *, samplerate: int, channels: int, dtype: str, callback: Any) -> None:
            assert (samplerate, channels, dtype) == (16000, 1, "float32")
            if constructor_error is not None:
                raise constructor_error
            self.callback = callback
            self.closed = False
            module.streams.append(self)

        def start(self) -> None:
            if start_error is not None:
                raise start_error
            for begin in range(0, len(SAMPLES), 1000):
                block = SAMPLES[begin : begin + 1000, None].copy()
                self.callback(block, len(block), None, None)
                block[:] = 0  # PortAudio uses the memory again

        def __enter__(self) -> None:
            pass

        def __exit__(self, *_error: object) -> None:
            self.closed = True

    module = types.SimpleNamespace(InputStream=InputStream, PortAudioError=FakeError, streams=[])
    return module


def test_the_microphone_is_read_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake_sounddevice()
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    recorder = Recorder(open_input(None))
    got: list[np.ndarray] = []
    for samples in recorder:
        got.append(samples)
        if sum(block.size for block in got) == SAMPLES.size:
            recorder.end()
    recorder.close()
    assert np.array_equal(np.concatenate(got), SAMPLES)
    assert module.streams[0].closed


@pytest.mark.parametrize(
    "module",
    [
        fake_sounddevice(constructor_error=FakeError("Error querying device -1\nmore")),
        fake_sounddevice(start_error=FakeError("Error querying device -1")),
    ],
)
def test_without_a_microphone_there_is_one_sentence(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    with pytest.raises(LiveInputError) as error:
        list(Recorder(open_input(None)))
    assert str(error.value) == (
        "the microphone cannot be opened (Error querying device -1): `python -m sounddevice` lists devices, "
        "or give --input"
    )


def test_without_portaudio_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    import_module = builtins.__import__

    def without_portaudio(name: str, *arguments: Any) -> Any:
        if name == "sounddevice":
            raise OSError("PortAudio library not found")
        return import_module(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_portaudio)
    with pytest.raises(LiveInputError, match=r"^PortAudio library not found: install it \(Debian: apt install"):
        open_input(None)


def test_without_sounddevice_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(LiveInputError, match=r"pip install 'whisper-max-plugin\[live\]', or give --input"):
        open_input(None)


# The recorder


def test_what_comes_while_nobody_reads_comes_at_once_and_keeps_its_time() -> None:
    more = threading.Event()

    def blocks(_stop: threading.Event) -> Iterator[np.ndarray]:
        yield SAMPLES[:1600]
        yield SAMPLES[1600:3200]
        more.wait(10)
        yield SAMPLES[3200:]

    recorder = Recorder(blocks)
    got = []
    for samples in recorder:
        got.append(samples)
        if sum(map(len, got)) == 3200:
            time.sleep(0.2)
            more.set()
    recorder.close()
    assert np.array_equal(np.concatenate(got), SAMPLES)
    assert recorder.came(0.05) <= recorder.came(0.1) <= recorder.came(0.15) <= recorder.came(0.2)
    assert recorder.came(0.25) - recorder.came(0.2) >= 0.15
    assert recorder.came(0.25) == recorder.came(100.0)  # a word may end a little behind the audio


def test_an_input_that_fails_is_one_sentence() -> None:
    def blocks(_stop: threading.Event) -> Iterator[np.ndarray]:
        yield SAMPLES
        raise OSError(5, "Input/output error")

    with pytest.raises(LiveInputError, match="the input cannot be read any more: Input/output error"):
        list(Recorder(blocks))


def test_what_came_together_with_an_error_comes_before_it() -> None:
    more = threading.Event()

    def blocks(_stop: threading.Event) -> Iterator[np.ndarray]:
        yield SAMPLES[:1600]
        more.wait(10)
        yield SAMPLES[1600:]
        raise OSError(5, "Input/output error")

    recorder, got = Recorder(blocks), []

    def hear() -> None:
        for samples in recorder:
            got.append(samples)
            more.set()
            recorder.close()  # waits for the thread that reads

    with pytest.raises(LiveInputError):
        hear()
    assert np.array_equal(np.concatenate(got), SAMPLES)
