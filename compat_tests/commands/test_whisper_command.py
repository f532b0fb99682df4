"""`whisper … --backend NAME`: upstream's own command with a few options more, and no other program with them."""

from __future__ import annotations

import pytest

from whisper_max_plugin import startup

from ..stand_in import CONSOLE_SCRIPT, MODULE, STARTS, folder, printed, python
from .help_texts import assert_upstreams_with_backend

__all__ = ["folder", "python"]  # fixtures, found by name


@STARTS
@pytest.mark.parametrize("option", [["--backend", "echo"], ["--backend=Echo"]])
def test_the_whisper_command_takes_backend(python, start, option):
    model, options = printed(python(*start, "a.wav", *option, "--model", "tiny"))
    assert model == ["echo", "tiny"]
    assert options == {"audio": ["a.wav"]}  # upstream passes what is left on to transcribe()


@STARTS
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_its_help_is_upstreams_with_our_options_behind_it(python, start, option):
    ours, upstreams = python(*start, option), python(*start, option, WHISPER_MAX_NO_HOOK="1")
    assert (ours.returncode, ours.stderr) == (0, "")
    assert_upstreams_with_backend(ours.stdout, upstreams.stdout, "echo, max, tired, torch")
    program = upstreams.stdout.partition("[-h]")[0]
    assert ours.stdout.startswith(f"{program}[-h]")


@STARTS
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--backend", "foo"], "unknown backend 'foo'; known backends: echo, max, tired, torch"),
        (["--backend", ""], "unknown backend ''; known backends: echo, max, tired, torch"),
        (["--backend", "tired"], "no more strength: take a rest"),
    ],
)
def test_a_backend_that_cannot_be_used_is_one_line_and_status_2(python, start, arguments, error):
    result = python(*start, "a.wav", *arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.endswith(f": error: {error}")


def test_backend_without_a_name_is_argparses_own_error(python):
    result = python(*CONSOLE_SCRIPT, "a.wav", "--backend")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == "whisper: error: argument --backend: expected one argument"


@STARTS
def test_options_of_max_are_refused_with_another_backend(python, start):
    for backend, arguments in (("echo", ["--backend", "echo"]), ("torch", ["--backend=torch"])):
        result = python(*start, "a.wav", "--progress", *arguments)
        assert (result.returncode, result.stdout) == (2, "")
        (line,) = result.stderr.splitlines()
        assert line.endswith(f": error: --progress: only with --backend max, and this runs on {backend}")


@STARTS
def test_the_whisper_command_reads_the_environment(python, start):
    assert printed(python(*start, "a.wav", WHISPER_BACKEND="echo"))[0] == ["echo", "turbo"]
    both = python(*start, "a.wav", "--backend", "torch", WHISPER_BACKEND="echo")
    assert printed(both)[0] == ["upstream", "turbo"]
    result = python(*start, "a.wav", WHISPER_BACKEND="foo")
    assert result.returncode == 2
    assert "unknown backend 'foo'" in result.stderr


@STARTS
def test_without_backend_the_whisper_command_is_upstreams(python, start):
    assert printed(python(*start, "a.wav"))[0] == ["upstream", "turbo"]


@STARTS
def test_no_hook_switches_everything_off(python, start):
    result = python(*start, "a.wav", "--backend", "echo", WHISPER_MAX_NO_HOOK="1")
    assert result.returncode == 2
    assert "unrecognized arguments: --backend echo" in result.stderr
    result = python(*start, "a.wav", WHISPER_MAX_NO_HOOK="1", WHISPER_BACKEND="echo")
    assert printed(result)[0] == ["upstream", "turbo"]


def test_another_program_with_the_option_backend_is_left_alone(python, folder):
    (folder / "other.py").write_text(
        "import argparse, json, sys, whisper\n"
        "parser = argparse.ArgumentParser()\n"
        "parser.add_argument('--backend')\n"
        "print(json.dumps([parser.parse_args().backend, 'whisper_max_plugin' in sys.modules]))\n"
    )
    assert printed(python("other.py", "--backend", "echo")) == ["echo", False]


def test_the_option_goes_to_no_other_parser_than_upstreams(python, folder):
    path = folder / "whisper/transcribe.py"
    other = "argparse.ArgumentParser(prog='other').parse_args([])\n    parser = "
    path.write_text(path.read_text().replace("parser = ", other, 1))
    assert printed(python(*MODULE, "a.wav", "--backend", "echo"))[0] == ["echo", "turbo"]


# Which processes are the whisper command


@pytest.mark.parametrize(
    ("argv", "orig_argv", "expected"),
    [
        (["/venv/bin/whisper", "a.wav"], ["python", "/venv/bin/whisper", "a.wav"], True),
        (["whisper.exe"], ["python.exe", "whisper.exe"], True),
        (["-m", "a.wav"], ["python", "-m", "whisper", "a.wav"], True),
        (["-m"], ["python", "-X", "dev", "-m", "whisper.transcribe"], True),
        (["-m", "a"], ["python", "-Imwhisper", "a"], True),
        (["-m", "whisper"], ["python", "-m", "whisperx", "whisper"], False),
        (["-m", "-m", "whisper"], ["python", "-m", "pdb", "-m", "whisper"], False),
        (["/venv/bin/whisper-max", "a.wav"], ["python", "/venv/bin/whisper-max", "a.wav"], False),
        (["script.py", "whisper"], ["python", "script.py", "whisper"], False),
        (["-c", "whisper"], ["python", "-c", "pass", "whisper"], False),
        ([""], ["python"], False),
        (["-m"], [], False),
        ([], [], False),
    ],
)
def test_is_whisper_command(argv, orig_argv, expected):
    assert startup.is_whisper_command(argv, orig_argv) is expected
