"""How a precision is asked for: which way wins, which backends take it, and what is said of others."""

from __future__ import annotations

import pytest

import whisper_max_plugin
from whisper_max_plugin import backends, choices, cli, loading
from whisper_max_plugin.bench import subjects
from whisper_max_plugin.doctor import checks as doctor
from whisper_max_plugin.errors import PrecisionError
from whisper_max_plugin.hookspecs import hookimpl

from ..seam.activation_fixtures import echo, switched_off, whisper
from ..seam.echo_backend import EchoBackend
from ..stand_in import CONSOLE_SCRIPT, folder, python

__all__ = ["echo", "folder", "python", "switched_off", "whisper"]  # fixtures, found by name


class ExactBackend(EchoBackend):
    """Answers with the precision it got."""

    precisions = ("float32", "float16", "bfloat16", "int8")

    def load_model(self, name, device, download_root, in_memory, *, upstream_load_model, precision="none"):
        return precision


class ExactPlugin:
    @hookimpl
    def whisper_backends(self):
        return [ExactBackend("exact")]


@pytest.fixture(autouse=True)
def exact():
    backends.plugin_manager().register(ExactPlugin(), name="exact")
    yield
    backends.plugin_manager().unregister(name="exact")


def test_without_a_word_about_it_a_backend_takes_its_own_default(whisper):
    whisper_max_plugin.install("exact")
    assert whisper.load_model("tiny") == "none"


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        (["keyword", "command_line", "installed", "environment"], "float16"),
        (["command_line", "installed", "environment"], "bfloat16"),
        (["installed", "environment"], "float32"),
        (["environment"], "int8"),
    ],
)
def test_each_way_wins_over_the_ways_below_it(whisper, monkeypatch, given, chosen):
    whisper_max_plugin.install("exact", precision="float32" if "installed" in given else None)
    if "command_line" in given:
        monkeypatch.setattr(choices.command_line, "precision", "bfloat16")
    if "environment" in given:
        monkeypatch.setenv("WHISPER_MAX_PRECISION", " INT8 ")
    keyword = {"precision": "float16"} if "keyword" in given else {}
    assert whisper.load_model("tiny", **keyword) == chosen


def test_installing_again_forgets_the_precision_and_uninstalling_too(whisper):
    whisper_max_plugin.install("exact", precision="int8")
    assert whisper.load_model("tiny") == "int8"
    whisper_max_plugin.install("exact")
    assert whisper.load_model("tiny") == "none"


def test_an_unknown_one_lists_the_known_ones(whisper, monkeypatch):
    message = "unknown precision 'int4': give one of float32, float16, bfloat16, int8"
    with pytest.raises(PrecisionError, match=message):
        whisper_max_plugin.install("max", precision="int4")
    whisper_max_plugin.install("exact")
    with pytest.raises(PrecisionError, match=message):
        whisper.load_model("tiny", precision="int4")
    monkeypatch.setenv("WHISPER_MAX_PRECISION", "int4")
    with pytest.raises(PrecisionError, match=message):
        whisper.load_model("tiny")


@pytest.mark.parametrize("backend", ["torch", "echo"])
def test_a_backend_without_precisions_is_not_asked_for_one(whisper, echo, monkeypatch, backend):
    message = f"precision='int8' is for the backend max and this is {backend}: leave it out, or take backend=\"max\""
    with pytest.raises(PrecisionError, match=message):
        whisper_max_plugin.install(backend, precision="int8")
    whisper_max_plugin.install("exact", precision="int8")
    with pytest.raises(PrecisionError, match=message):
        whisper.load_model("tiny", backend=backend, precision="int8")
    monkeypatch.setenv("WHISPER_MAX_PRECISION", "int8")  # what is said for MAX at large does not concern others
    if backend == "echo":
        assert whisper.load_model("tiny", backend=backend)[0] == "echo"


def test_the_command_refuses_it_in_one_line(python):
    for arguments, error in (
        (["--backend", "torch", "--precision", "int8"], "--precision: only with --backend max, and this runs on torch"),
        (["--backend", "max", "--precision", "int4"], "unknown precision 'int4': give one of float32, float16, "),
    ):
        result = python(*CONSOLE_SCRIPT, "a.wav", *arguments)
        assert (result.returncode, result.stdout) == (2, "")
        (line,) = result.stderr.splitlines()
        assert error in line


def test_warmup_takes_the_option_and_the_environment(monkeypatch, capsys):
    precisions = []

    def warmup(name, device=None, precision="float32"):
        precisions.append(precision)
        raise PrecisionError("enough")

    monkeypatch.setattr(loading, "warmup", warmup)
    monkeypatch.delenv("WHISPER_MAX_PRECISION", raising=False)
    cli.main(["warmup", "tiny"])
    cli.main(["warmup", "tiny", "--precision", "int8"])
    monkeypatch.setenv("WHISPER_MAX_PRECISION", "float16")
    cli.main(["warmup", "tiny"])
    assert precisions == [None, "int8", "float16"]
    capsys.readouterr()
    assert cli.main(["warmup", "tiny", "--precision", "int4"]) == 2
    assert capsys.readouterr().err.startswith("whisper-max: error: unknown precision 'int4'")


def test_doctor_tells_what_the_environment_says(monkeypatch):
    for value, ok in (("", None), ("float32", True), ("int8", None), ("int4", False)):
        monkeypatch.setenv("WHISPER_MAX_PRECISION", value)
        assert doctor.check_precision_variable().ok is ok
    monkeypatch.setenv("WHISPER_MAX_PRECISION", "INT8")
    assert doctor.check_precision_variable().value == "int8 rounds weights, and --parity compares float32"


def test_bench_refuses_what_it_cannot_measure(capsys):
    assert cli.main(["bench", "--random", "tiny", "--precision", "int8,int4"]) == 2
    assert "unknown precision 'int4'" in capsys.readouterr().err


def test_bench_measures_each_precision_as_a_subject_of_its_own():
    kinds, _ = subjects.choose([], "cpu", ["float32", "int8"])
    assert [(kind.name, kind.title) for kind in kinds] == [
        ("upstream", "upstream (torch)"),
        ("max", "whisper-max"),
        ("max-int8", "whisper-max int8"),
    ]
    assert len({kind.prepared for kind in kinds}) == 3, "each compiles graphs of its own"
