"""`whisper … --backend max --batch_size N`: the files of one by one, whatever else happens on the way."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import whisper.utils

import whisper_max_plugin
from whisper_max_plugin import choices
from whisper_max_plugin.cli import transcribe

from ..commands.fixtures import Command, command
from ..compare import skip_unless_upstream_knows
from ..data import NANO, SAMPLE
from ..seam.activation_fixtures import switched_off
from ..voice_activity.fixtures import needs_silero
from .many_fixtures import files, greedy, recordings

__all__ = ["command", "files", "greedy", "recordings", "switched_off"]  # fixtures, found by name


@pytest.mark.parametrize("options", [[], ["--word_timestamps", "True", "--language", "en"]], ids=["", "words"])
def test_the_files_are_those_of_one_by_one(greedy: Command, files: list[Path], options: list[str]) -> None:
    expected = greedy(*files, *options)
    assert len(expected) == 5 * len(files)
    assert greedy(*files, *options, "--batch_size", "3") == expected


def test_the_module_that_is_run_as_a_command(greedy: Command, files: list[Path], tmp_path: Path) -> None:
    """There `cli()` is of another module than the `whisper.transcribe` that whisper has imported."""
    expected = greedy(*files[:3])
    folder = tmp_path / "of the module"
    options = ["--model", NANO, "--temperature", "0", "--backend", "max", "--batch_size", "2", "--output_dir", folder]
    command = [sys.executable, "-m", "whisper.transcribe", *files[:3], *options]
    finished = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "3 of 3 files: 100%" in finished.stderr
    assert {path.name: path.read_text(encoding="utf8") for path in folder.iterdir()} == expected


def test_each_text_is_printed_when_its_file_is_done(
    greedy: Command, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    greedy(*files)
    one_by_one = capsys.readouterr().out
    greedy(*files, "--batch_size", "5")
    out, err = capsys.readouterr()
    blocks = {}
    for line in out.splitlines():
        if line.endswith(".wav:"):
            lines = blocks[line[:-1]] = []
        else:
            lines.append(line)
    assert sorted(blocks) == [str(path) for path in files]
    assert [line for path in files for line in blocks[str(path)]] == one_by_one.splitlines()
    assert "5 of 5 files: 100%" in err
    assert "x real time" in err


def test_without_verbose_there_is_the_bar_alone(
    greedy: Command, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    greedy(*files[:2], "--batch_size", "2", "--verbose", "False", "--progress")
    out, err = capsys.readouterr()
    assert out == ""
    assert "2 of 2 files: 100%" in err
    assert "frames/s" not in err  # upstream's bar
    assert "part0.wav" not in err  # and that of --progress, which this one replaces


def test_a_bad_file_is_skipped_as_upstream_does(
    greedy: Command, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = greedy(*files)
    missing, noise = files[0].with_name("missing.wav"), files[0].with_name("noise.wav")
    noise.write_bytes(b"this is no audio")
    assert greedy(missing, files[0], noise, *files[1:], "--batch_size", "2") == expected
    out = capsys.readouterr().out
    assert f"Skipping {missing} due to " in out
    assert f"Skipping {noise} due to " in out


def test_a_name_that_stdout_cannot_write_costs_no_file(
    greedy: Command, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    latin = files[1].rename(files[1].with_name(os.fsdecode(b"caf\xe9.wav")))  # as an older system has named it
    expected = greedy(files[0], latin, files[2])
    assert greedy(files[0], latin, files[2], "--batch_size", "2") == expected
    out = capsys.readouterr().out
    assert f"{latin.with_name('caf?.wav')}:\n" in out
    assert "Skipping" not in out


def test_a_file_that_is_named_twice(greedy: Command, files: list[Path]) -> None:
    assert greedy(files[0], files[1], files[0], "--batch_size", "3") == greedy(files[0], files[1])


def test_of_files_with_one_name_the_last_of_the_list_stays(greedy: Command, files: list[Path], tmp_path: Path) -> None:
    """Whichever is done last: the first and the last are short."""
    parts, by_length = [], sorted(files, key=lambda path: path.stat().st_size)
    for index, path in enumerate([by_length[0], by_length[-1], by_length[1]]):
        folder = tmp_path / f"folder {index}"
        folder.mkdir()
        parts.append(path.rename(folder / "talk.wav"))
    expected = greedy(*parts)
    assert greedy(*parts, "--batch_size", "3") == expected


@needs_silero
def test_with_vad(greedy: Command, files: list[Path]) -> None:
    skip_unless_upstream_knows({"clip_timestamps": "0"})
    assert greedy(*files[:3], "--vad", "--batch_size", "3") == greedy(*files[:3], "--vad")


def test_the_next_command_of_the_process_knows_nothing_of_it(greedy: Command, files: list[Path]) -> None:
    expected = greedy(files[1])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(whisper_max_plugin, "uninstall", lambda: None)  # as in a program that stays
        greedy(files[0], "--batch_size", "2", "--precision", "float32")
    assert choices.command_line.precision == "float32"
    assert greedy(files[1]) == expected
    assert choices.command_line.precision is None


@pytest.mark.usefixtures("greedy")  # restores what a command changes in this process
def test_an_interrupted_command_leaves_stdout_and_no_thread(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_arguments: object, **_named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(whisper.utils.WriteTXT, "write_result", interrupted)
    stdout, n_threads = sys.stdout, threading.active_count()
    with pytest.raises(KeyboardInterrupt) as error:
        transcribe([*map(str, files), "--model", str(NANO), "--batch_size", "2", "--output_dir", str(tmp_path)])
    assert error.traceback  # it holds the frames that the interrupt went through
    assert (sys.stdout, threading.active_count()) == (stdout, n_threads)


@pytest.mark.parametrize(("size", "status"), [("0", 2), ("-3", 2), ("many", 2)])
def test_a_size_that_cannot_be_meant(
    greedy: Command, files: list[Path], size: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        greedy(files[0], "--batch_size", size)
    assert ended.value.code == status
    assert "--batch_size" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
@pytest.mark.parametrize("options", [["--progress"], ["--batch_size", "2"]], ids=lambda options: options[0])
def test_a_daemon_without_stdout_or_stderr_gets_its_files(options: list[str], closed: str, tmp_path: Path) -> None:
    whisper = [sys.executable, "-m", "whisper_max_plugin.cli", "transcribe", str(SAMPLE), "--model", str(NANO)]
    words = shlex.join([*whisper, "--output_dir", str(tmp_path), "--output_format", "txt", *options])
    done = subprocess.run(["bash", "-c", f"{words} {closed}"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0
    assert "Skipping" not in done.stdout + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["sample.txt"]


def test_an_abbreviation_means_what_it_means_to_upstream(
    greedy: Command, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of `--verbose` there is a beginning that `--vad` has as well."""
    plain = greedy(files[0], "--verbose", "False")
    capsys.readouterr()
    assert greedy(files[0], "--v", "False", "--prepend", "x") == plain
    assert "-->" not in capsys.readouterr().out
    assert greedy(files[0], "--prog") == plain  # of ours alone
    assert "100%" in capsys.readouterr().err
