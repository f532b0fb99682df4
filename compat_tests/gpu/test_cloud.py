"""The Dockerfile and docs/cloud.md: what they install and call is what there is. No image is built here."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

import pytest

from whisper_max_plugin import cli, targets
from whisper_max_plugin.checkpoints.sizes import OFFICIAL_DIMS

from ..data import ROOT

LINES = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
INSTRUCTIONS = [line.split(None, 1) for line in LINES if line.strip() and not line.lstrip().startswith("#")]
PAGE = (ROOT / "docs" / "cloud.md").read_text()


def arguments_of(keyword: str) -> list[str]:
    return [rest for word, rest in INSTRUCTIONS if word == keyword]


def commands() -> list[list[str]]:
    """The words of each call of whisper-max, with the build's defaults in place of its arguments."""
    defaults = dict(argument.split("=", 1) for argument in arguments_of("ARG"))
    called = re.findall(r"whisper-max [^&;\n`]+", "\n".join(arguments_of("RUN")))
    called += re.findall(r"^whisper-max .+", PAGE, re.MULTILINE)
    return [shlex.split(re.sub(r"\$(\w+)", lambda name: defaults[name[1]].strip('"'), line)) for line in called]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_the_calls_of_this_packages_command_are_understood(words: Sequence[str]) -> None:
    options = cli._parser().parse_args(words[1:])
    assert options.run in (cli.doctor_command.run, cli.warmup)
    if options.run is cli.warmup:
        assert set(options.model) <= OFFICIAL_DIMS.keys()


def test_graphs_are_compiled_while_the_image_is_built() -> None:
    half, full = [words for words in commands() if "--target" in words]
    assert half == ["whisper-max", "warmup", "turbo", "--target", "sm_90a"]
    assert full == [*half, "--precision", "float32"]


def test_every_target_of_the_table_is_one_that_is_tested() -> None:
    from .test_compile import CI_COMPILES, OTHERS

    table = re.findall(r"^\| `(sm_\w+)` \|", PAGE, re.MULTILINE)
    assert sorted(table) == sorted({architecture for architecture, _precision in (CI_COMPILES, *OTHERS)})
    assert set(table) <= targets.ARCHITECTURES.keys()


def test_versions_are_those_of_the_constraints() -> None:
    (torch,) = re.findall(r"^torch==(\S+)", (ROOT / "constraints-common.txt").read_text(), re.MULTILINE)
    for text in ("\n".join(LINES), PAGE):
        assert set(re.findall(r"torch==(\S+)", text.replace("`", " "))) == {f"{torch}+cpu"}
    assert any("PIP_CONSTRAINT=/src/constraints.txt" in line for line in arguments_of("ENV"))


def test_what_is_copied_is_there() -> None:
    copied = [words[:-1] for words in map(shlex.split, arguments_of("COPY")) if not words[0].startswith("--from")]
    assert len(copied) >= 4
    assert all((ROOT / source).exists() for sources in copied for source in sources)


def test_the_image_is_of_a_supported_python_and_runs_as_an_ordinary_user() -> None:
    bases = {base.split()[0] for base in arguments_of("FROM")}
    assert bases == {"python:3.11-slim-bookworm"}
    assert arguments_of("USER") == ["whisper"]
    order = [word for word, _ in INSTRUCTIONS]
    assert order.index("USER") < order.index("ARG")  # so that the compiled graphs are the user's


def test_the_container_is_upstreams_command_on_this_backend() -> None:
    assert arguments_of("ENTRYPOINT") == ['["whisper"]']
    assert any("WHISPER_BACKEND=max" in line for line in arguments_of("ENV"))
