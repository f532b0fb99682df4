"""What `whisper-max doctor` says about switching the plugin on: the command, the start-up hook, backends."""

from __future__ import annotations

import site
import sys
import sysconfig

import pytest

from whisper_max_plugin import backends
from whisper_max_plugin.doctor import checks as doctor

from .fixtures import commands, is_problem

__all__ = ["commands"]  # fixtures, found by name

UPSTREAM_SCRIPT = """#!{python}
import sys
from whisper.transcribe import cli
if __name__ == '__main__':
    sys.exit(cli())
"""


# The whisper command


def whisper_script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


@pytest.fixture
def scripts(monkeypatch, tmp_path):
    """The folder of console scripts of this interpreter, empty at first."""
    folder = tmp_path / "environment" / "bin"
    folder.mkdir(parents=True)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(folder))
    return folder


def test_the_whisper_command_is_upstreams_and_of_this_environment(commands, scripts):
    commands["whisper"] = whisper_script(scripts / "whisper", UPSTREAM_SCRIPT.format(python="/bin/sh"))
    check = doctor.check_whisper_command()
    assert (check.ok, check.value) == (True, commands["whisper"])


@pytest.mark.parametrize(
    "first_lines",
    ["#!{python}", "#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''"],
    ids=["plain", "long path"],
)
def test_a_whisper_command_elsewhere_that_names_this_python_is_fine(commands, scripts, tmp_path, first_lines):
    script = first_lines.format(python=sys.executable) + "\nfrom whisper.transcribe import cli\n"
    commands["whisper"] = whisper_script(tmp_path / "elsewhere" / "whisper", script)
    assert doctor.check_whisper_command().ok is True


def test_a_whisper_command_of_another_environment_is_a_problem(commands, scripts, tmp_path):
    other = tmp_path / "other" / "bin"
    text = UPSTREAM_SCRIPT.format(python=other / "python")
    commands["whisper"] = whisper_script(other / "whisper", text)
    whisper_script(scripts / "whisper", text)
    check = doctor.check_whisper_command()
    assert is_problem(check)
    assert "another Python environment" in check.value
    assert check.remedy == f'export PATH={scripts}:"$PATH"'


def test_a_whisper_command_that_is_not_upstreams_is_a_problem(commands, scripts):
    commands["whisper"] = whisper_script(scripts / "whisper", f"#!{sys.executable}\nprint('hush')\n")
    check = doctor.check_whisper_command()
    assert is_problem(check)
    assert "not openai-whisper's" in check.value
    assert check.remedy.split()[-1] == "openai-whisper"


def test_an_environment_that_is_not_on_path_is_only_information(commands, scripts):
    whisper_script(scripts / "whisper", UPSTREAM_SCRIPT.format(python=sys.executable))
    check = doctor.check_whisper_command()
    assert check.ok is None
    assert check.remedy == f'export PATH={scripts}:"$PATH"'


def test_a_missing_whisper_command_is_a_problem(commands, scripts):
    check = doctor.check_whisper_command()
    assert is_problem(check)
    assert check.remedy.split()[-1] == "openai-whisper"


# The start-up hook


@pytest.fixture
def site_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(site, "getsitepackages", lambda: [str(tmp_path)])
    monkeypatch.setattr(site, "ENABLE_USER_SITE", False)
    monkeypatch.delenv("WHISPER_MAX_NO_HOOK", raising=False)
    return tmp_path


def test_the_startup_hook_is_active_when_its_file_is_in_a_site_folder(site_folder):
    (site_folder / "whisper_max_plugin.pth").touch()
    check = doctor.check_startup_hook()
    assert check.ok is True
    assert str(site_folder) in check.value


def test_a_missing_startup_hook_is_a_problem(site_folder):
    assert is_problem(doctor.check_startup_hook())


def test_a_startup_hook_that_is_switched_off_is_only_information(site_folder, monkeypatch):
    (site_folder / "whisper_max_plugin.pth").touch()
    monkeypatch.setenv("WHISPER_MAX_NO_HOOK", "1")
    check = doctor.check_startup_hook()
    assert check.ok is None
    assert check.remedy == "unset WHISPER_MAX_NO_HOOK"


# Backends


@pytest.mark.parametrize("value", ["max", "torch", " MAX "])
def test_whisper_backend_names_a_known_backend(monkeypatch, value):
    monkeypatch.setenv("WHISPER_BACKEND", value)
    assert doctor.check_whisper_backend_variable().ok is True


@pytest.mark.parametrize("value", [None, "", " "])
def test_whisper_backend_need_not_be_set(monkeypatch, value):
    if value is None:
        monkeypatch.delenv("WHISPER_BACKEND", raising=False)
    else:
        monkeypatch.setenv("WHISPER_BACKEND", value)
    assert doctor.check_whisper_backend_variable().ok is None


def test_whisper_backend_with_an_unknown_name_is_a_problem_that_lists_the_known_ones(monkeypatch):
    monkeypatch.setenv("WHISPER_BACKEND", "mux")
    check = doctor.check_whisper_backend_variable()
    assert is_problem(check)
    assert "'mux'" in check.value
    assert "max, torch" in check.value


def test_whisper_backend_that_cannot_run_is_a_problem(monkeypatch):
    monkeypatch.setattr(backends, "all_backends", lambda: [backends.BrokenBackend("other", "no such chip")])
    monkeypatch.setenv("WHISPER_BACKEND", "other")
    check = doctor.check_whisper_backend_variable()
    assert is_problem(check)
    assert "no such chip" in check.value


def test_the_built_in_backends_can_run():
    assert {backend.name: doctor.check_backend(backend).ok for backend in backends.all_backends()} == {
        "max": True,
        "torch": True,
    }


def test_a_built_in_backend_that_cannot_run_is_a_problem():
    check = doctor.check_backend(backends.BrokenBackend("max", "MAX is not installed"))
    assert is_problem(check)
    assert check.value == "MAX is not installed"


def test_a_third_partys_backend_that_cannot_run_is_only_information():
    check = doctor.check_backend(backends.BrokenBackend("other", "no such chip"))
    assert (check.ok, check.value) == (None, "no such chip")


def test_a_third_partys_backend_that_fails_when_asked_is_only_information(monkeypatch):
    def can_run():
        raise OSError("no such chip")

    other = backends.BrokenBackend("other", "")
    monkeypatch.setattr(other, "can_run", can_run)
    check = doctor.check_backend(other)
    assert check.ok is None
    assert "OSError: no such chip" in check.value
