"""`python -m whisper_max_plugin SCRIPT [ARGUMENT ...]`: run somebody's program with the plugin active."""

from __future__ import annotations

import io
import os
import runpy
import sys
import types
import zipfile

import whisper_max_plugin
from whisper_max_plugin import startup

USAGE = """\
usage: python -m whisper_max_plugin SCRIPT [ARGUMENT ...]
       python -m whisper_max_plugin -m MODULE [ARGUMENT ...]

Runs a Python script or module with whisper.load_model on the backend "max".
"""


def main() -> None:
    """Run the program that `sys.argv` names; a mistake in the arguments ends with status 2."""
    arguments = sys.argv[1:]
    if arguments[:1] in (["-h"], ["--help"]):
        sys.stdout.write(USAGE)
        return
    is_module = arguments[:1] == ["-m"]
    program = arguments[1:] if is_module else arguments
    if not program:
        sys.stderr.write(USAGE)
        sys.exit(2)
    if not is_module and not os.path.exists(program[0]):
        sys.stderr.write(f"python -m whisper_max_plugin: error: no such script: {program[0]}\n")
        sys.exit(2)

    whisper_max_plugin.install()
    os.environ["WHISPER_BACKEND"] = "max"  # for the processes that it starts
    if startup.is_whisper_command(["-m", *program[1:]] if is_module else program, arguments):
        startup.accept_backend_option()
    sys.argv = program  # run_module replaces the module's name by its path, as python -m does
    if is_module:
        runpy.run_module(program[0], run_name="__main__", alter_sys=True)
        return
    if not (getattr(sys.flags, "safe_path", False) or sys.flags.isolated):  # as python SCRIPT does
        sys.path[0] = os.path.dirname(os.path.realpath(program[0]))
    if os.path.isfile(program[0]) and not program[0].endswith(".pyc") and not zipfile.is_zipfile(program[0]):
        _run_script(program[0])
    else:
        runpy.run_path(os.path.abspath(program[0]), run_name="__main__")


def _run_script(path: str) -> None:
    """Run a file as Python does: `runpy` would put one path, relative or not, both into `sys.argv` and `__file__`."""
    module = types.ModuleType("__main__")
    module.__file__ = os.path.abspath(path)
    sys.modules["__main__"] = module
    with io.open_code(module.__file__) as file:
        code = compile(file.read(), module.__file__, "exec")
    exec(code, vars(module))


if __name__ == "__main__":
    main()
