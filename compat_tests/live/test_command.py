"""`whisper-max live`, the whole command: on audio that comes as fast as it is spoken, to its end or to Ctrl-C."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import whisper

import whisper_max_plugin
from whisper_max_plugin.cli import main

from ..data import NANO, SAMPLE, reference

LIVE = [sys.executable, "-W", "ignore", "-m", "whisper_max_plugin.cli", "live", str(NANO), "--language", "en"]
SUMMARY = re.compile(r"(\d+) words in ([\d.]+) s of audio; latency: median ([\d.]+) s, longest ([\d.]+) s")
SECONDS = 7.2  # of the sample: three sentences


@pytest.fixture(scope="module")
def pcm() -> bytes:
    return soundfile.read(SAMPLE, dtype="int16", frames=round(SECONDS * 16000))[0].tobytes()


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    return [sentence.text for sentence in reference(SAMPLE) if sentence.end < SECONDS]


def start(*arguments: str) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    process = subprocess.Popen([*LIVE, *arguments], stdin=pipe, stdout=pipe, stderr=pipe)
    line = process.stderr.readline()
    assert line == b"listening; Ctrl-C ends\n", line + process.stderr.read()
    return process


def speak(process: subprocess.Popen[bytes], pcm: bytes) -> None:
    """Write samples as fast as they are spoken."""
    begin = time.monotonic()
    for position in range(0, len(pcm), 3200):
        time.sleep(max(0.0, begin + (position + 3200) / 32000 - time.monotonic()))
        process.stdin.write(pcm[position : position + 3200])
        process.stdin.flush()


def test_text_is_printed_while_it_is_spoken(pcm: bytes, sentences: list[str]) -> None:
    started = time.monotonic()
    process = start("--input", "-")
    speak(process, pcm)
    first = process.stdout.read(len(sentences[0]))  # before the input ends
    assert first.decode() == sentences[0]
    process.stdin.close()
    rest, errors = process.stdout.read(), process.stderr.read()
    assert process.wait(60) == 0
    assert (first + rest).decode().splitlines() == sentences
    words, seconds, median, longest = SUMMARY.fullmatch(errors.decode().strip()).groups()
    assert int(words) == len(" ".join(sentences).split())
    assert float(seconds) == SECONDS
    assert 0 < float(median) <= float(longest) < time.monotonic() - started


def test_interrupted_it_prints_what_was_said_and_ends(pcm: bytes, sentences: list[str]) -> None:
    process = start("--input", "-", "--min_chunk", "5")
    process.stdin.write(pcm[: 4 * 32000])  # less than a pass waits for
    process.stdin.flush()
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    output, errors = process.stdout.read().decode(), process.stderr.read().decode()
    assert process.wait(30) == 0
    process.stdin.close()
    assert output.startswith(sentences[0])
    assert output.endswith("\n")
    assert SUMMARY.fullmatch(errors.strip()).group(2) == "4.0"


def test_a_file_is_followed_while_it_grows(pcm: bytes, sentences: list[str], tmp_path: Path) -> None:
    path = tmp_path / "recording.raw"
    path.write_bytes(pcm[: 3 * 32000])
    process = start("--input", str(path))
    time.sleep(1)
    with path.open("ab") as file:
        file.write(pcm[3 * 32000 :])
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert output.decode().splitlines() == sentences


def test_an_input_without_words(capfd: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run([*LIVE, "--input", "-"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "listening; Ctrl-C ends\n0 words in 0.0 s of audio\n"


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]):
    """Return the line that the command ends with, and status 2."""

    def refused(*arguments: str) -> str:
        assert main(["live", *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        *_, line = captured.err.splitlines()
        assert line.startswith("whisper-max: error: ")
        return line.removeprefix("whisper-max: error: ")

    yield refused
    whisper_max_plugin.uninstall()


def test_what_is_refused_is_one_line(refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    Path("empty.raw").touch()
    nano = str(NANO)
    assert "sounddevice" in refused(nano)
    assert refused(nano, "--input", "nope.wav") == "nope.wav cannot be read: No such file or directory"
    assert refused(nano, "--input", "empty.raw", "--language", "xx").startswith("--language xx: whisper has no such")
    assert refused("nope.pt", "--input", "empty.raw").startswith("no model 'nope.pt': give the path of a checkpoint")
    assert refused(nano, "--input", "empty.raw", "--min_chunk", "9") == (
        "--min_chunk 9: give seconds above 0 and up to 5"
    )
    assert "xpu" in refused(nano, "--input", "empty.raw", "--device", "xpu")
    Path("song.flac").write_bytes(SAMPLE.read_bytes()[:100])
    assert refused(nano, "--input", "song.flac").startswith("song.flac is neither WAV nor raw PCM: ffmpeg -i")


def test_standard_input_that_is_closed() -> None:
    done = subprocess.run(
        ["sh", "-c", '"$@" <&-', "sh", *LIVE, "--input", "-"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "whisper-max: error: standard input cannot be read: Bad file descriptor\n"


def test_what_came_before_an_error_is_printed_in_front_of_it(
    pcm: bytes, sentences: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def blocks(_stop: threading.Event) -> Iterator[np.ndarray]:
        yield np.frombuffer(pcm, np.int16).astype(np.float32) / 32768
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("whisper_max_plugin.live.sources.open_input", lambda _name: blocks)
    assert main(["live", str(NANO), "--language", "en"]) == 2
    captured = capsys.readouterr()
    assert captured.out.splitlines() == sentences
    assert captured.err.splitlines()[-1] == (
        "whisper-max: error: the input cannot be read any more: Input/output error"
    )
    whisper_max_plugin.uninstall()


def test_without_a_stdout_it_goes_on_to_the_end(pcm: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(pcm)
    live = f"{sys.executable} -m whisper_max_plugin.cli live {NANO} --input {tmp_path / 'file'} --language en >&-"
    done = subprocess.run(live, shell=True, stderr=subprocess.PIPE, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "words in" in done.stderr.splitlines()[-1]


def test_languages_are_taken_by_name_too(capsys: pytest.CaptureFixture[str], monkeypatch, tmp_path: Path) -> None:
    given = []
    transcribe = whisper.transcribe

    def transcribe_and_note(*arguments, **options):
        given.append((options["language"], options.get("task")))
        return transcribe(*arguments, **options)

    monkeypatch.setattr(whisper, "transcribe", transcribe_and_note)
    (tmp_path / "noise.raw").write_bytes(bytes(32000))
    monkeypatch.setattr("whisper_max_plugin.live.sources.QUIET", 0.1)
    arguments = ["live", str(NANO), "--input", str(tmp_path / "noise.raw"), "--language", "German"]
    assert main([*arguments, "--task", "translate"]) == 0
    assert given[-1] == ("de", "translate")
    whisper_max_plugin.uninstall()
