"""The wheel: what it holds, and that pip and uv install and remove it with its start-up hook.

Each environment is a bare virtual environment that sees the torch, openai-whisper and hatchling of this one
through a path file, with upstream's `whisper` command as pip writes it; nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
import os
import pkgutil
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest

from ..commands.help_texts import assert_upstreams_with_backend

PROJECT = Path(__file__).parents[2]
HOOK_FILES = {"whisper_max_plugin.pth", "whisper_max_plugin.start"}
UPSTREAM_COMMAND = """\
#!{python}
# -*- coding: utf-8 -*-
import re
import sys
from whisper.transcribe import cli
if __name__ == '__main__':
    sys.argv[0] = re.sub(r'(-script\\.pyw|\\.exe)?$', '', sys.argv[0])
    sys.exit(cli())
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command without this environment's settings and without the network."""
    ours = ("PYTHON", "PIP_", "UV_", "VIRTUAL_ENV", "WHISPER_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    offline = {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "UV_OFFLINE": "1"}
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**kept, **offline, "UV_CACHE_DIR": str(cwd / "uv-cache"), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def succeed(*command: str | Path, cwd: Path) -> str:
    result = run(*command, cwd=cwd)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@dataclass(frozen=True)
class Environment:
    """A virtual environment with upstream's whisper in it."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def whisper(self) -> Path:
        return self.folder / "bin" / "whisper"

    @property
    def site_packages(self) -> Path:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        return self.folder / "lib" / version / "site-packages"

    def recorded_files(self) -> set[str] | None:
        """Return what RECORD lists for the plugin; None when it is not installed."""
        for distribution in metadata.distributions(path=[str(self.site_packages)]):
            if distribution.metadata["Name"] == "whisper-max-plugin":
                return {str(path) for path in distribution.files or ()}
        return None


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    environment = Environment(tmp_path / "environment")
    venv.create(environment.folder, symlinks=True)
    distributions = ("openai-whisper", "torch", "pluggy", "hatchling")
    folders = {str(metadata.distribution(name).locate_file("")) for name in distributions}
    (environment.site_packages / "_test_environment.pth").write_text("\n".join(sorted(folders)) + "\n")
    environment.whisper.write_text(UPSTREAM_COMMAND.format(python=environment.python))
    environment.whisper.chmod(0o755)
    return environment


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> Path:
    """The folder of the source distribution and of the wheel, built once."""
    folder = tmp_path_factory.mktemp("dist")
    targets = ["--target", "sdist", "--target", "wheel"]
    succeed(sys.executable, "-m", "hatchling", "build", *targets, "--directory", folder, cwd=PROJECT)
    return folder


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    (wheel,) = distributions.glob("*.whl")
    return wheel


class Pip:
    def __init__(self, environment: Environment, cwd: Path) -> None:
        if importlib.util.find_spec("pip") is None:
            pytest.skip("pip is not installed in this environment")
        self.command = [sys.executable, "-m", "pip", "--python", environment.python]
        self.cwd = cwd

    def install(self, what: Path, editable: bool) -> None:
        # --ignore-installed: pip sees the plugin of the environment that runs the tests, too.
        options = ["--no-build-isolation", "--editable"] if editable else ["--ignore-installed"]
        succeed(*self.command, "install", "--no-deps", *options, what, cwd=self.cwd)

    def uninstall(self) -> None:
        succeed(*self.command, "uninstall", "--yes", "whisper-max-plugin", cwd=self.cwd)


class Uv:
    def __init__(self, environment: Environment, cwd: Path) -> None:
        beside_python = Path(sys.executable).with_name("uv")
        uv = str(beside_python) if beside_python.is_file() else shutil.which("uv")
        if uv is None:
            pytest.skip("uv is not installed")
        self.uv = uv
        self.python = ["--python", environment.python]
        self.cwd = cwd

    def install(self, what: Path, editable: bool) -> None:
        options = ["--no-build-isolation", "--editable"] if editable else []
        succeed(self.uv, "pip", "install", *self.python, "--no-deps", *options, what, cwd=self.cwd)

    def uninstall(self) -> None:
        succeed(self.uv, "pip", "uninstall", *self.python, "whisper-max-plugin", cwd=self.cwd)


# What is in it


def test_the_wheel_holds_the_package_and_the_hook_and_nothing_else(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    roots = {name.split("/")[0] for name in names}
    assert roots == {"whisper_max_plugin", *HOOK_FILES, f"{wheel.name.rpartition('-py3')[0]}.dist-info"}
    assert not [name for name in names if "__pycache__" in name]
    assert "whisper_max_plugin/py.typed" in names


def test_the_wheel_has_no_command_named_whisper(wheel: Path):
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    assert archive.read(name).decode() == "[console_scripts]\nwhisper-max = whisper_max_plugin.cli:main\n"


def test_the_source_distribution_holds_the_hook(distributions: Path):
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {Path(name).name for name in archive.getnames()}
    assert names >= HOOK_FILES


def test_both_hook_files_call_the_same_function(wheel: Path):
    archive = zipfile.ZipFile(wheel)
    (import_line,) = archive.read("whisper_max_plugin.pth").decode().splitlines()
    (entry_point,) = archive.read("whisper_max_plugin.start").decode().splitlines()
    assert import_line.startswith("import ")
    assert callable(pkgutil.resolve_name(entry_point))
    module, function = entry_point.split(":")
    assert import_line.endswith(f'__import__("{module}").{module.partition(".")[2]}.{function}()')


# Installing, using and removing it


@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
@pytest.mark.parametrize("installer", [Pip, Uv], ids=["pip", "uv"])
def test_an_install_adds_the_option_and_an_uninstall_leaves_upstreams_command(
    environment: Environment, wheel: Path, tmp_path: Path, installer: type[Pip | Uv], editable: bool
):
    tool = installer(environment, tmp_path)
    upstreams_command = environment.whisper.read_bytes()

    tool.install(PROJECT if editable else wheel, editable)

    recorded = environment.recorded_files()
    assert recorded is not None
    assert recorded >= HOOK_FILES
    assert not [path for path in recorded if Path(path).name == "whisper"]
    assert environment.whisper.read_bytes() == upstreams_command
    help_texts = [
        succeed(environment.whisper, "--help", cwd=tmp_path),
        succeed(environment.python, "-I", "-m", "whisper", "--help", cwd=tmp_path),
    ]

    tool.uninstall()

    assert environment.recorded_files() is None
    assert not HOOK_FILES & {path.name for path in environment.site_packages.iterdir()}
    assert environment.whisper.read_bytes() == upstreams_command
    upstreams_help = succeed(environment.whisper, "--help", cwd=tmp_path)
    assert "--model" in upstreams_help
    for help_text in help_texts:
        assert_upstreams_with_backend(help_text, upstreams_help, "max, torch")


@pytest.mark.parametrize("options", [[], ["-I"], ["-S"], ["-E"], ["-OO"], ["-W", "error"]])
@pytest.mark.parametrize("backend", ["", "max", "nonesuch"])
def test_python_starts_silently(environment: Environment, wheel: Path, tmp_path: Path, options, backend):
    zipfile.ZipFile(wheel).extractall(environment.site_packages)
    result = run(environment.python, *options, "-c", "'whisper'", cwd=tmp_path, WHISPER_BACKEND=backend)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.skipif(sys.version_info >= (3, 15), reason="Python 3.15 does not read import lines beside .start")
def test_python_starts_silently_when_the_package_is_gone(environment: Environment, tmp_path: Path):
    shutil.copy(PROJECT / "site-packages" / "whisper_max_plugin.pth", environment.site_packages)
    result = run(environment.python, "-c", "'whisper'", cwd=tmp_path, WHISPER_BACKEND="max")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
