"""`python -m whisper_max_plugin` runs somebody's script, module or whisper command with the plugin active."""

from __future__ import annotations

import os

import pytest

from ..stand_in import CONSOLE_SCRIPT, MODULE, folder, printed, python

__all__ = ["folder", "python"]  # fixtures, found by name


def test_a_script_runs_with_the_plugin_and_with_its_own_argv_and_path(python, folder):
    (folder / "scripts").mkdir()
    (folder / "scripts" / "helper.py").write_text("value = 7\n")
    (folder / "scripts" / "script.py").write_text(
        "import helper, json, sys, whisper_max_plugin as p\n"
        "print(json.dumps([__name__, sys.argv, sys.path[0], p.status()['backend']]))\n"
    )
    script = os.path.join("scripts", "script.py")
    name, argv, path, backend = printed(python("-m", "whisper_max_plugin", script, "a", "--backend", "b"))
    assert (name, argv, backend) == ("__main__", [script, "a", "--backend", "b"], "max")
    assert os.path.samefile(path, folder / "scripts")


def test_a_module_runs_with_the_plugin_and_with_its_own_argv(python, folder):
    (folder / "module.py").write_text("import json, sys; print(json.dumps([__name__, sys.argv, sys.path[0]]))\n")
    name, argv, path = printed(python("-m", "whisper_max_plugin", "-m", "module", "-x", "1"))
    assert (name, argv[1:]) == ("__main__", ["-x", "1"])
    assert os.path.samefile(argv[0], folder / "module.py")
    assert os.path.samefile(path, folder)


@pytest.mark.parametrize("start", [CONSOLE_SCRIPT, MODULE])
def test_upstreams_command_run_that_way_takes_backend_too(python, start):
    result = python("-m", "whisper_max_plugin", *start, "a.wav", "--backend", "echo", WHISPER_MAX_NO_HOOK="1")
    assert printed(result) == [["echo", "turbo"], {"audio": ["a.wav"]}]


@pytest.mark.parametrize("arguments", [[], ["-m"]])
def test_without_a_program_it_prints_its_usage_and_ends_with_status_2(python, arguments):
    result = python("-m", "whisper_max_plugin", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("usage: python -m whisper_max_plugin SCRIPT [ARGUMENT ...]\n")


def test_its_help_is_its_usage(python):
    assert python("-m", "whisper_max_plugin", "--help").stdout.startswith("usage: python -m whisper_max_plugin")


def test_a_missing_script_is_one_line_and_status_2(python):
    result = python("-m", "whisper_max_plugin", "nonesuch.py")
    assert result.returncode == 2
    assert result.stderr == "python -m whisper_max_plugin: error: no such script: nonesuch.py\n"


def test_the_exit_status_is_the_scripts(python, folder):
    (folder / "script.py").write_text("raise SystemExit(5)\n")
    assert python("-m", "whisper_max_plugin", "script.py").returncode == 5


@pytest.mark.parametrize("program", ["script.py", "program"])
def test_a_program_and_its_path_are_absolute_as_python_has_them(python, folder, program):
    (folder / "program").mkdir()
    for name in ("script.py", "program/__main__.py"):
        (folder / name).write_text("import json, sys; print(json.dumps([__file__, sys.argv, sys.path[0]]))\n")
    file, argv, path = printed(python("-m", "whisper_max_plugin", program, "a"))
    expected_file, expected_argv, expected_path = printed(python(program, "a"))
    assert os.path.isabs(file)
    assert os.path.samefile(file, expected_file)
    assert argv[1:] == expected_argv[1:]
    assert os.path.samefile(folder / argv[0], folder / expected_argv[0])
    assert os.path.isabs(path)
    assert os.path.samefile(path, expected_path)


def test_the_processes_that_a_script_starts_have_the_plugin_too(python, folder):
    (folder / "script.py").write_text(
        "import json, multiprocessing, whisper_max_plugin\n"
        "def backend(): return whisper_max_plugin.status()['backend']\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(json.dumps([backend(), pool.apply(backend)]))\n"
    )
    assert printed(python("-m", "whisper_max_plugin", "script.py")) == ["max", "max"]
