"""What tox does here beyond its own: skip what would download gigabytes, and leave a record of each environment.

With `--discard`, or TOX_DISCARD=1, an environment is removed when it has run: the matrix then takes the disk of one.

An environment is skipped, before anything large is installed, if its Python has no wheel of what `needs_wheels`
names, or none of torch but the one that brings CUDA. Missing interpreters are skipped by tox itself.
The record, `.tox/results/<environment>.json`, lies beside the results of its tests; compat_tests/matrix.py reads both.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tox.plugin import impl
from tox.tox_env.errors import Skip

if TYPE_CHECKING:
    from tox.config.cli.parser import ToxParser
    from tox.config.sets import EnvConfigSet
    from tox.execute.api import Outcome
    from tox.session.state import State
    from tox.tox_env.api import ToxEnv
    from tox.tox_env.installer import InstallArguments

CPU_WHEELS = "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu"

_exit_codes: dict[str, int] = {}
_skipped: dict[str, str] = {}  # and why
_answers: dict[tuple[str, str], str | None] = {}  # for a Python and a requirement: why it cannot be had


@impl
def tox_add_option(parser: ToxParser) -> None:
    """Add the option `--discard`."""
    parser.add_argument("--discard", action="store_true", help="remove each environment when it has run")


@impl
def tox_add_env_config(env_conf: EnvConfigSet, state: State) -> None:
    """Add the setting `needs_wheels`."""
    env_conf.add_config("needs_wheels", of_type=list[str], default=[], desc="skip where these have no (CPU) wheel")


@impl
def tox_on_install(tox_env: ToxEnv, arguments: InstallArguments, section: str, of_type: str) -> None:
    """Skip an environment whose large packages cannot be had, before it installs its first."""
    if of_type != "deps":
        return
    version = "Python " + ".".join(map(str, tox_env.base_python.version_info[:2]))  # type: ignore[attr-defined]
    for requirement in tox_env.conf["needs_wheels"]:
        if (version, requirement) not in _answers:
            python = Path(tox_env.conf["env_python"])
            _answers[version, requirement] = reason_to_skip(python, version, requirement, tox_env.environment_variables)
        if reason := _answers[version, requirement]:
            _skipped[tox_env.conf.name] = reason
            raise Skip(reason)


def reason_to_skip(python: Path, version: str, requirement: str, environment: dict[str, str]) -> str | None:
    """Return why the pip of `python` cannot have the wheel of `requirement`; None if it can. Nothing is installed."""
    options = ["--quiet", "--dry-run", "--no-deps", "--ignore-installed", "--only-binary", ":all:", "--report", "-"]
    try:
        pip = subprocess.run(
            [str(python), "-m", "pip", "install", *options, requirement],
            env={**environment, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
    except subprocess.TimeoutExpired:
        return f"pip did not say within 5 minutes whether {requirement} has a wheel for {version}"
    if pip.returncode != 0:
        return f"{requirement} has no wheel for {version} here: {pip.stderr.strip().splitlines()[-1]}"
    for wheel in (package["metadata"] for package in json.loads(pip.stdout)["install"]):
        # a label, such as +cpu, tells that somebody chose the index; PyPI's own build has none and brings CUDA
        if wheel["name"] == "torch" and sys.platform == "linux" and "+" not in wheel["version"]:
            torch = f"torch {wheel['version']}"
            return f"{torch} has no CPU wheel for {version} here, only one with CUDA; others: {CPU_WHEELS}"
    return None


@impl
def tox_before_run_commands(tox_env: ToxEnv) -> None:
    """Forget the results of an earlier run."""
    for suffix in (".xml", ".running"):
        _results(tox_env, suffix).unlink(missing_ok=True)


@impl
def tox_after_run_commands(tox_env: ToxEnv, exit_code: int, outcomes: list[Outcome]) -> None:
    """Note how an environment ended."""
    _exit_codes[tox_env.conf.name] = int(exit_code)


@impl
def tox_env_teardown(tox_env: ToxEnv) -> None:
    """Write the record: the exit status of the tests, null if they could not start, and why if they were skipped."""
    name = tox_env.conf.name
    if name.startswith("."):
        return  # builds the package
    try:
        tox_env.base_python  # type: ignore[attr-defined]  # noqa: B018 - raises when the interpreter is missing
    except Skip as missing:
        _skipped[name] = str(missing)
    if name not in _exit_codes:
        _results(tox_env, ".xml").unlink(missing_ok=True)
    record = {"exit_code": _exit_codes.get(name), "skipped": _skipped.get(name)}
    _results(tox_env, ".json").write_text(json.dumps(record) + os.linesep)
    if tox_env.options.discard:
        shutil.rmtree(tox_env.env_dir, ignore_errors=True)


def _results(tox_env: ToxEnv, suffix: str) -> Path:
    folder = Path(tox_env.core["work_dir"]) / "results"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{tox_env.conf.name}{suffix}"
