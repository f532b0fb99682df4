"""`whisper_max_plugin.audio.load_audio` gives without the ffmpeg command what upstream's gives with it."""

from __future__ import annotations

import functools
import http.server
import logging
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile  # type: ignore[import-untyped]
import whisper.audio

from whisper_max_plugin.audio import load_audio

FFMPEG = shutil.which("ffmpeg")
needs_ffmpeg = pytest.mark.skipif(FFMPEG is None, reason="the ffmpeg command is not on PATH to compare with")

SAMPLE_RECORDING = Path(__file__).parent.parent / "weights" / "sample.flac"

# name: (sample rate in Hz, channels, soundfile's name of the sample format)
SOURCES = {
    "mono16": (16000, 1, "PCM_16"),
    "mono16_float": (16000, 1, "FLOAT"),
    "mono8": (8000, 1, "PCM_16"),
    "mono11_u8": (11025, 1, "PCM_U8"),
    "stereo16": (16000, 2, "PCM_16"),
    "stereo44": (44100, 2, "PCM_16"),
    "stereo44_24": (44100, 2, "PCM_24"),
    "surround48": (48000, 6, "PCM_16"),
    "mono96_double": (96000, 1, "DOUBLE"),
}
VIDEO = ["-f", "lavfi", "-i", "testsrc=duration=3:size=64x48:rate=5", "-map", "0:a", "-map", "1:v"]


def speech_like(sample_rate: int, channels: int) -> np.ndarray:
    """3 s of a voice gliding in pitch, a sweep and noise, shape = (n_samples, channels), always the same."""
    # Whole AAC frames, as FFmpeg versions cut the last one differently.
    n_samples = 3 * sample_rate // 1024 * 1024
    t = np.arange(n_samples) / sample_rate
    noise = np.random.default_rng(0).standard_normal((channels, n_samples))
    sweep = np.sin(2 * np.pi * (100 * t + 0.15 * sample_rate / 3 * t**2))
    signal = np.zeros((n_samples, channels))
    for channel in range(channels):
        phase = 2 * np.pi * np.cumsum(120 + 40 * np.sin(2 * np.pi * 0.7 * t + channel)) / sample_rate
        voice = np.sum([np.sin(k * phase) / k for k in range(1, 12)], axis=0)
        loudness = 0.6 + 0.4 * np.sin(2 * np.pi * 3 * t + channel)
        signal[:, channel] = 0.25 * loudness * voice + 0.2 * sweep + 0.05 * noise[channel]
    return np.clip(signal, -1, 1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that writes one of SOURCES as a WAV file, once, and returns its path."""
    folder = tmp_path_factory.mktemp("sources")

    @functools.cache
    def write(name: str) -> Path:
        sample_rate, channels, subtype = SOURCES[name]
        path = folder / f"{name}.wav"
        soundfile.write(path, speech_like(sample_rate, channels), sample_rate, subtype=subtype)
        return path

    return write


@pytest.fixture(scope="module")
def largest_step(source: Callable[[str], Path]) -> int:
    """How far resampled samples may be from the command's, in steps of the 16-bit scale: 1.

    After version 5, ffmpeg resamples 16-bit audio in float: up to 4 steps apart from version 5 and from us.
    """
    command = ["ffmpeg", "-nostdin", "-v", "debug", "-i", str(source("stereo44"))]
    command += ["-ac", "1", "-ar", "16000", "-f", "null", "-"]
    log = subprocess.run(command, capture_output=True, check=True).stderr
    return 5 if b"Using fltp internally" in log else 1


def ffmpeg(*arguments: str | Path) -> None:
    """Run the ffmpeg command; skip the test if this ffmpeg was built without the encoder."""
    command = ["ffmpeg", "-nostdin", "-y", "-v", "error", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if "Unknown encoder" in result.stderr:
        pytest.skip(f"this ffmpeg lacks an encoder the test needs: {result.stderr.splitlines()[0]}")
    assert result.returncode == 0, result.stderr


def int16(waveform: np.ndarray) -> np.ndarray:
    assert waveform.dtype == np.float32
    assert waveform.ndim == 1
    samples = waveform * 32768
    assert np.array_equal(samples, np.round(samples))
    return samples.astype(np.int32)


def assert_same_samples(path: str | Path, largest_step: int, sr: int = 16000) -> None:
    """Upstream's load_audio, with the ffmpeg command, gives as many samples, each at most so far apart."""
    expected = int16(whisper.audio.load_audio(str(path), sr))
    actual = int16(load_audio(str(path), sr))
    assert len(actual) == len(expected) > 0
    assert np.abs(actual - expected).max() <= largest_step


# ---- the same samples as upstream


def test_16_khz_flac_and_wav_come_out_bit_by_bit(tmp_path: Path) -> None:
    samples = np.round(speech_like(16000, 1)[:, 0] * 32767).astype(np.int16)
    for name in ("speech.wav", "speech.flac"):
        soundfile.write(tmp_path / name, samples, 16000)
        assert np.array_equal(int16(load_audio(str(tmp_path / name))), samples)


@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize("name", ["mono16", "stereo16", "mono16_float"])
def test_without_resampling_the_samples_are_identical(
    source: Callable[[str], Path], tmp_path: Path, name: str, suffix: str
) -> None:
    path = tmp_path / f"speech.{suffix}"
    ffmpeg("-i", source(name), *(["-c", "copy"] if suffix == "wav" else []), path)
    assert_same_samples(path, 0)


@needs_ffmpeg
@pytest.mark.parametrize(
    "name", ["mono8", "mono11_u8", "stereo44", "stereo44_24", "surround48", "mono96_double"]
)
def test_wav_of_any_rate_width_and_number_of_channels(
    source: Callable[[str], Path], largest_step: int, name: str
) -> None:
    assert_same_samples(source(name), largest_step)


@needs_ffmpeg
@pytest.mark.parametrize(
    ("name", "file", "options"),
    [
        pytest.param("stereo44", "speech.flac", [], id="flac"),
        pytest.param("stereo44_24", "speech.flac", [], id="flac-24-bit"),
        pytest.param("stereo44", "speech.mp3", [], id="mp3"),
        pytest.param("mono16", "speech.mp3", [], id="mp3-16kHz"),
        pytest.param("mono8", "speech.mp3", [], id="mp3-8kHz"),
        pytest.param("stereo44", "speech.opus", [], id="opus"),
        pytest.param("mono16", "speech.ogg", ["-c:a", "libopus"], id="opus-16kHz"),
        pytest.param("stereo44", "speech.ogg", ["-c:a", "libvorbis"], id="vorbis"),
        pytest.param("stereo44", "speech.m4a", [], id="m4a"),
        pytest.param("surround48", "speech.m4a", [], id="m4a-5.1"),
        pytest.param("mono16", "speech.aac", [], id="aac-16kHz"),
        pytest.param("stereo44", "speech.m4a", ["-c:a", "alac"], id="alac"),
        pytest.param("stereo44", "speech.wma", [], id="wma"),
        pytest.param("mono8", "speech.wav", ["-c:a", "pcm_mulaw"], id="telephone"),
        pytest.param("stereo44", "film.mp4", VIDEO, id="video-mp4"),
        pytest.param("stereo44", "film.mkv", VIDEO, id="video-mkv"),
        pytest.param("stereo44", "film.ts", VIDEO, id="video-ts"),
    ],
)
def test_formats(
    source: Callable[[str], Path], tmp_path: Path, largest_step: int, name: str, file: str, options: list[str]
) -> None:
    ffmpeg("-i", source(name), *options, tmp_path / file)
    assert_same_samples(tmp_path / file, largest_step)


@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["mp3", "m4a", "opus"])
def test_a_cut_within_a_frame(source: Callable[[str], Path], tmp_path: Path, suffix: str) -> None:
    """Encoder delay, edit lists and pre-skip are honoured as the command honours them."""
    path, cut = tmp_path / f"speech.{suffix}", tmp_path / f"cut.{suffix}"
    ffmpeg("-i", source("stereo44"), path)
    ffmpeg("-ss", "1.237", "-i", path, "-c", "copy", cut)
    expected, actual = int16(whisper.audio.load_audio(str(cut))), int16(load_audio(cut))
    # The last frame of an m4a is cut at its edit list from FFmpeg 9 on, and given whole before.
    assert len(actual) == pytest.approx(len(expected), abs=1024 if suffix == "m4a" else 0)
    n_samples = min(len(expected), len(actual)) - 64
    assert np.abs(actual[:n_samples] - expected[:n_samples]).max() <= 1


@needs_ffmpeg
def test_the_sample_rate_can_be_chosen(source: Callable[[str], Path], largest_step: int) -> None:
    assert_same_samples(source("stereo44"), largest_step, sr=22050)
    assert_same_samples(source("mono8"), 0, sr=8000)


@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["flac", "mp3", "opus"])
def test_the_sample_recording(tmp_path: Path, largest_step: int, suffix: str) -> None:
    if not SAMPLE_RECORDING.exists():
        pytest.skip("weights/sample.flac, the repository's sample recording, is not here")
    path = tmp_path / f"sample.{suffix}"
    ffmpeg("-i", SAMPLE_RECORDING, *(["-c", "copy"] if suffix == "flac" else []), path)
    assert_same_samples(path, largest_step)


@needs_ffmpeg
@pytest.mark.parametrize(
    ("dispositions", "channels"),
    [
        pytest.param(("default", "0"), 2, id="the-default-stream"),
        pytest.param(("0", "default"), 6, id="the-second-stream-is-the-default"),
        pytest.param(("0", "0"), 6, id="no-default-most-channels"),
    ],
)
def test_of_several_audio_streams_the_command_s_choice_is_read(
    source: Callable[[str], Path],
    tmp_path: Path,
    largest_step: int,
    dispositions: tuple[str, str],
    channels: int,
) -> None:
    path = tmp_path / "two.mkv"
    options = ["-map", "0", "-map", "1", "-c", "flac"]
    options += ["-disposition:a:0", dispositions[0], "-disposition:a:1", dispositions[1]]
    ffmpeg("-i", source("stereo44"), "-i", source("surround48"), *options, path)
    assert_same_samples(path, largest_step)
    picked = load_audio(str(source("stereo44" if channels == 2 else "surround48")))
    assert np.array_equal(load_audio(str(path)), picked)


@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["mp3", "aac"])
def test_rate_and_channels_may_change_within_the_stream(
    source: Callable[[str], Path], tmp_path: Path, largest_step: int, suffix: str
) -> None:
    parts = [tmp_path / f"{name}.{suffix}" for name in ("stereo44", "mono16")]
    for part in parts:
        ffmpeg("-i", source(part.stem), part)
    path = tmp_path / f"both.{suffix}"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert_same_samples(path, largest_step)
    assert len(load_audio(str(path))) > 5.9 * 16000


def test_what_is_returned_is_float32_and_writable(source: Callable[[str], Path]) -> None:
    waveform = load_audio(str(source("stereo44")))
    assert waveform.dtype == np.float32
    assert waveform.ndim == 1
    assert waveform.flags.writeable
    assert 0.1 < np.abs(waveform).max() <= 1


# ---- where audio may come from


def test_a_path_object_works(source: Callable[[str], Path]) -> None:
    assert np.array_equal(load_audio(source("mono16")), load_audio(str(source("mono16"))))


def test_a_file_name_of_any_characters_works(source: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "größe %03d 'x' [1] ü😀.wav"
    shutil.copy(source("mono16"), path)
    assert np.array_equal(load_audio(path), load_audio(source("mono16")))


def test_tags_in_an_old_encoding_do_not_matter(source: Callable[[str], Path], tmp_path: Path) -> None:
    title = "Größe\0".encode("latin-1") + b"\0"
    tag = b"INFOINAM" + len(title).to_bytes(4, "little") + title
    path = tmp_path / "tagged.wav"
    path.write_bytes(source("mono16").read_bytes() + b"LIST" + len(tag).to_bytes(4, "little") + tag)
    with pytest.raises(UnicodeDecodeError), av.open(str(path)):
        pytest.fail("the file has no such tag")
    assert np.array_equal(load_audio(path), load_audio(source("mono16")))


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing on stderr."""


@pytest.fixture
def web_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder and the address at which it is served."""
    monkeypatch.delenv("http_proxy", raising=False)  # the FFmpeg libraries would obey it
    handler = functools.partial(_QuietHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield tmp_path, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_url_works(source: Callable[[str], Path], web_folder: tuple[Path, str]) -> None:
    folder, address = web_folder
    shutil.copy(source("mono16"), folder / "speech.wav")
    assert np.array_equal(load_audio(f"{address}/speech.wav"), load_audio(source("mono16")))
    with pytest.raises(RuntimeError, match=f"^Failed to load audio: {address}/missing.wav: .*404"):
        load_audio(f"{address}/missing.wav")


def test_a_dash_is_standard_input(source: Callable[[str], Path]) -> None:
    program = "from whisper_max_plugin.audio import load_audio; print(len(load_audio('-')))"
    with source("mono16").open("rb") as file:
        output = subprocess.check_output([sys.executable, "-c", program], stdin=file)
    assert int(output) == len(load_audio(source("mono16")))


# ---- damaged audio: what the command rescues is rescued


def corrupted(path: Path, n_spots: int) -> Path:
    """A copy with noise of 8 bytes at spots spread over it; its first 4 kB are left alone."""
    rng = np.random.default_rng(1)
    content = bytearray(path.read_bytes())
    for spot in rng.integers(4096, len(content) - 8, n_spots):
        content[spot : spot + 8] = rng.bytes(8)
    copy = path.with_name(f"corrupted{path.suffix}")
    copy.write_bytes(content)
    return copy


@needs_ffmpeg
def test_corrupt_packets_are_skipped_with_a_warning(
    source: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ffmpeg("-i", source("stereo44"), tmp_path / "speech.mp3")
    path = corrupted(tmp_path / "speech.mp3", 40)
    with caplog.at_level(logging.WARNING, "whisper_max_plugin.audio"):
        assert_same_samples(path, 1)
    [record] = caplog.records
    assert re.search(f"{re.escape(str(path))}: [0-9]+ of [0-9]+ packets are broken", record.getMessage())


@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "opus"])
def test_a_truncated_file_gives_the_rest(source: Callable[[str], Path], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"speech.{suffix}"
    ffmpeg("-i", source("mono16"), path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10 + 1])
    assert_same_samples(path, 1)
    assert 0.9 * 16000 < len(load_audio(path)) < 2 * 16000


def test_a_truncated_flac_warns(
    source: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "truncated.flac"
    soundfile.write(path, *soundfile.read(source("mono16"), dtype="int16"))
    path.write_bytes(path.read_bytes()[:-1000])
    with caplog.at_level(logging.WARNING, "whisper_max_plugin.audio"):
        samples = int16(load_audio(path))
    assert 0 < len(samples) < len(load_audio(source("mono16")))
    assert np.array_equal(samples, int16(load_audio(source("mono16")))[: len(samples)])
    assert re.search(r"1 of [0-9]+ packets are broken .*; what could be decoded is used", caplog.text)


def test_a_file_without_samples_is_an_empty_waveform(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "zero.wav", np.zeros(0), 16000)
    assert load_audio(tmp_path / "zero.wav").shape == (0,)
    if FFMPEG is not None:
        assert whisper.audio.load_audio(str(tmp_path / "zero.wav")).shape == (0,)


@needs_ffmpeg
def test_samples_that_are_not_numbers_become_what_the_command_makes_of_them(tmp_path: Path) -> None:
    signal = speech_like(16000, 1)[:, 0]
    signal[100:110], signal[200], signal[300], signal[400] = np.nan, np.inf, -np.inf, 3
    soundfile.write(tmp_path / "nan.wav", signal, 16000, subtype="FLOAT")
    assert_same_samples(tmp_path / "nan.wav", 0)


# ---- what cannot be loaded: an error like upstream's that names the file and says what is wrong


def write_film_without_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for packet in [*stream.encode(av.VideoFrame(64, 64, "yuv420p")), *stream.encode(None)]:
            container.mux(packet)


def write_flac_of_a_few_bytes(path: Path, n_bytes: int) -> None:
    soundfile.write(path, speech_like(16000, 1), 16000)
    path.write_bytes(path.read_bytes()[:n_bytes])


UNREADABLE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": ("missing.wav", lambda path: None, "No such file or directory"),
    "directory": ("folder", lambda path: path.mkdir(), "Is a directory"),
    "empty": ("empty.wav", lambda path: path.touch(), "the file is empty"),
    "text": (
        "text.wav",
        lambda path: path.write_text("This is no audio at all.\n" * 100),
        r"it is not an audio file that can be decoded \(Invalid data found when processing input\)",
    ),
    "random": (
        "random.mp3",
        lambda path: path.write_bytes(bytes(range(1, 200)) * 50),
        r"it is not an audio file that can be decoded \(.*\)",
    ),
    "film-without-sound": ("film.mp4", write_film_without_sound, "it has no audio stream"),
    "flac-header": (
        "header.flac",
        lambda path: write_flac_of_a_few_bytes(path, 60),
        r"it is not an audio file that can be decoded \(.*\)",
    ),
    "flac-of-half-a-frame": (
        "half.flac",
        lambda path: write_flac_of_a_few_bytes(path, 5000),
        r"1 of 1 packets are broken \(Invalid data found when processing input\)",
    ),
    "flac-without-samples": (
        "zero.flac",
        lambda path: soundfile.write(path, np.zeros(0), 16000),
        "its audio stream is empty",
    ),
    "nine-channels": (
        "nine.wav",
        lambda path: soundfile.write(path, np.zeros((4096, 9)), 16000),
        r"its audio \(9 channels, 16000 Hz\) cannot be converted to mono at 16000 Hz",
    ),
    "unknown-protocol": ("nosuch:speech.wav", lambda path: None, "Protocol not found"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_an_unreadable_file_is_named_with_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    name, write, reason = UNREADABLE[case]
    monkeypatch.chdir(tmp_path)
    write(Path(name))
    with pytest.raises(RuntimeError, match=f"^Failed to load audio: {name}: {reason}$"):
        load_audio(name)
    if FFMPEG is not None:
        with pytest.raises(RuntimeError, match=r"^Failed to load audio: "):
            whisper.audio.load_audio(name)


@needs_ffmpeg
def test_a_file_of_which_most_is_broken_is_refused(source: Callable[[str], Path], tmp_path: Path) -> None:
    ffmpeg("-i", source("stereo44"), tmp_path / "speech.mp4")
    content = bytearray((tmp_path / "speech.mp4").read_bytes())
    start, end = content.index(b"mdat") + 4, content.index(b"moov")
    content[start:end] = b"\xff" * (end - start)
    path = tmp_path / "broken.mp4"
    path.write_bytes(content)
    message = f"^Failed to load audio: {re.escape(str(path))}: [0-9]+ of [0-9]+ packets are broken"
    with pytest.raises(RuntimeError, match=message):
        load_audio(path)
    with pytest.raises(RuntimeError, match=r"^Failed to load audio: "):
        whisper.audio.load_audio(str(path))
