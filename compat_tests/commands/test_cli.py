"""What `whisper-max` prints and returns; nothing here compiles a graph."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import types

import pytest
import whisper

import whisper_max_plugin
from whisper_max_plugin import backends, choices, errors, loading, startup
from whisper_max_plugin.cli import main
from whisper_max_plugin.doctor import checks as doctor

from .help_texts import assert_upstreams_with_backend

TINY = whisper.model.ModelDimensions(80, 1500, 384, 6, 4, 51865, 448, 384, 6, 4)


def run(*arguments, code=0):
    """Run `whisper-max` in a process of its own."""
    command = [sys.executable, "-m", "whisper_max_plugin.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    return done


# transcribe


@pytest.fixture
def upstream(monkeypatch):
    """Upstream's command line with a `load_model` that reports the backend and transcribes nothing."""
    calls = []

    def cli_that_records():
        calls.append(types.SimpleNamespace(argv=list(sys.argv), active=whisper_max_plugin.is_active()))

    monkeypatch.setattr(importlib.import_module("whisper.transcribe"), "cli", cli_that_records)
    monkeypatch.setattr(startup, "accept_backend_option", lambda: None)
    yield calls
    whisper_max_plugin.uninstall()


def test_transcribe_passes_every_argument_to_upstream_unchanged(upstream):
    arguments = ["a.wav", "--model", "tiny", "--language=en", "--", "-b.wav", "--help"]
    assert main(["transcribe", *arguments]) == 0
    assert upstream[0].argv[1:] == arguments
    assert upstream[0].active


def test_transcribe_leaves_the_arguments_of_the_process_alone(upstream):
    before = sys.argv
    main(["transcribe", "a.wav"])
    assert sys.argv is before


@pytest.fixture
def recorded_backends(monkeypatch, tmp_path):
    """The names of the backends that upstream's own command line, run to its end, loads a model on."""
    used = []

    def recorder(name):
        def load_model(*_arguments, **_options):
            used.append(name)
            raise errors.CheckpointError("stop here")

        backend = backends.BrokenBackend(name, "")
        monkeypatch.setattr(backend, "can_run", lambda: True)
        monkeypatch.setattr(backend, "load_model", load_model)
        return backend

    recorders = [recorder("max"), recorder("torch")]
    monkeypatch.setattr(backends, "all_backends", lambda: recorders)
    monkeypatch.setattr(choices.command_line, "backend", None)
    monkeypatch.chdir(tmp_path)
    yield used
    whisper_max_plugin.uninstall()


@pytest.mark.parametrize(
    ("arguments", "environment", "backend"),
    [
        ([], None, "max"),
        ([], "torch", "max"),
        (["--backend", "torch"], None, "torch"),
        (["--backend=torch"], "max", "torch"),
        (["--backend", "max"], "torch", "max"),
    ],
)
def test_transcribe_runs_on_max_unless_backend_is_given(
    recorded_backends, monkeypatch, arguments, environment, backend
):
    monkeypatch.delenv("WHISPER_BACKEND", raising=False)
    if environment is not None:
        monkeypatch.setenv("WHISPER_BACKEND", environment)
    main(["transcribe", "a.wav", "--model", "tiny", *arguments])
    assert recorded_backends == [backend]


def test_transcribe_with_an_unknown_backend_is_one_line(recorded_backends, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["transcribe", "a.wav", "--backend", "mux"])
    assert stopped.value.code == 2
    message = capsys.readouterr().err.strip()
    assert "unknown backend 'mux'; known backends: max, torch" in message
    assert "\n" not in message


def test_transcribe_help_is_upstreams_with_the_added_option(recorded_backends, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["whisper", "--help"])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module("whisper.transcribe").cli()
    assert stopped.value.code == 0
    upstreams = capsys.readouterr().out

    with pytest.raises(SystemExit) as stopped:
        main(["transcribe", "--help"])
    assert stopped.value.code == 0
    ours = capsys.readouterr().out
    assert ours.startswith("usage: whisper-max transcribe [-h]")
    assert_upstreams_with_backend(ours, upstreams, "max, torch")


# backends


def test_backends_are_listed_as_an_aligned_table(capsys):
    assert main(["backends"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "VERSION", "DEVICES", "USABLE"]
    assert [line.split()[0] for line in lines[1:]] == ["max", "torch"]
    column = lines[0].index("VERSION")
    assert all(line[column - 1] == " " and line[column] != " " for line in lines)


def test_backends_say_why_they_cannot_run(capsys, monkeypatch):
    monkeypatch.setattr(backends, "all_backends", lambda: [backends.BrokenBackend("other", "no such chip")])
    main(["backends"])
    assert capsys.readouterr().out.splitlines()[1].split(maxsplit=3) == [
        "other",
        "-",
        "-",
        "no: no such chip",
    ]
    main(["backends", "--json"])
    assert json.loads(capsys.readouterr().out) == [
        {"name": "other", "version": None, "devices": [], "usable": False, "reason": "no such chip"}
    ]


@pytest.mark.parametrize("asked", ["version", "devices", "can_run"])
def test_a_backend_that_fails_when_asked_is_listed_with_the_others(capsys, monkeypatch, asked):
    def fail():
        raise OSError("no such chip")

    other = backends.BrokenBackend("other", "")
    monkeypatch.setattr(other, asked, fail)
    registered = [other, *backends.all_backends()]
    monkeypatch.setattr(backends, "all_backends", lambda: registered)
    assert main(["backends"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["other", "max", "torch"]
    reason = "no: it failed when asked whether it can run (OSError: no such chip): update or uninstall it"
    assert lines[1].split(maxsplit=3)[3] == reason


def test_backends_as_json(capsys):
    assert main(["backends", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [backend["name"] for backend in listed] == ["max", "torch"]
    for backend in listed:
        assert backend["version"]
        assert "cpu" in backend["devices"]
        assert backend["usable"] is True
        assert backend["reason"] is None


# warmup


@pytest.fixture
def warmups(monkeypatch):
    """The calls of `loading.warmup`, which compiles nothing and returns tiny."""
    calls = []

    def warmup(name, device=None, precision="float32"):
        calls.append((name, device))
        if name == "base":
            raise errors.CheckpointError("base has no encoder: download it again")
        if name == "tinny":
            raise errors.UnknownModelError("no model 'tinny': give the path of a checkpoint, or one of tiny")
        return loading.WarmupResult(name, TINY, seconds=75.25, cached=False)

    monkeypatch.setattr(loading, "warmup", warmup)
    return calls


def test_warmup_prints_how_long_it_took_and_the_dims(warmups, capsys):
    assert main(["warmup", "tiny"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "tiny: compiled in 75.2 s (80 mels, encoder 4 x 384, decoder 4 x 384, 51865 tokens)",
    ]
    assert warmups == [("tiny", None)]


def test_warmup_takes_names_and_paths_and_a_device(warmups, tmp_path):
    checkpoint = tmp_path / "mine.pt"
    checkpoint.touch()
    assert main(["warmup", "tiny", str(checkpoint), "--device", "cpu"]) == 0
    assert warmups == [("tiny", "cpu"), (str(checkpoint), "cpu")]


def test_warmup_reports_an_unknown_model_and_warms_the_others(warmups, capsys):
    assert main(["warmup", "tinny", "tiny"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("whisper-max: error: no model 'tinny'")
    assert len(captured.err.splitlines()) == 1
    assert captured.out.startswith("tiny: ")
    assert warmups == [("tinny", None), ("tiny", None)]


def test_warmup_reports_a_bad_checkpoint_and_warms_the_others(warmups, capsys):
    assert main(["warmup", "base", "tiny"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "whisper-max: error: base has no encoder: download it again\n"
    assert captured.out.startswith("tiny: ")


def test_warmup_without_max_says_how_to_install_it(warmups, capsys, monkeypatch):
    broken = backends.BrokenBackend("max", "MAX is not installed: pip install max")
    monkeypatch.setattr(backends, "all_backends", lambda: [broken])
    assert main(["warmup", "tiny"]) == 2
    assert capsys.readouterr().err == "whisper-max: error: MAX is not installed: pip install max\n"
    assert warmups == []


# The command as a whole


@pytest.mark.parametrize(
    "error",
    [
        errors.UnknownBackendError("say max"),
        errors.BackendUnavailableError("say max"),
        errors.CheckpointError("say max"),
    ],
)
def test_known_errors_are_one_sentence_without_a_traceback(monkeypatch, capsys, error):
    def fail():
        raise error

    monkeypatch.setattr(doctor, "run_checks", fail)
    assert main(["doctor"]) == 2
    assert capsys.readouterr() == ("", "whisper-max: error: say max\n")


def test_errors_of_others_keep_their_traceback(monkeypatch):
    def fail():
        raise RuntimeError("a bug")

    monkeypatch.setattr(doctor, "run_checks", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["doctor"])


def test_ctrl_c_ends_quietly(monkeypatch, capsys):
    def interrupt():
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(doctor, "run_checks", interrupt)
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs in the background ignores it
    try:
        assert main(["doctor"]) == 130
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_went_away_ends_it_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "whisper_max_plugin.cli", "backends"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is full")
def test_a_full_disk_is_one_sentence():
    command = [sys.executable, "-m", "whisper_max_plugin.cli", "backends"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("whisper-max: error: No space left on device: make room")
    assert done.returncode == 2


def test_without_arguments_it_shows_the_usage():
    assert run(code=2).stderr.startswith("usage: whisper-max ")


def test_it_is_quick_where_no_library_is_needed():
    program = (
        "import sys; from whisper_max_plugin import cli; print(sorted({'torch', 'max', 'whisper'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]"


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"whisper-max {whisper_max_plugin.__version__}\n"
