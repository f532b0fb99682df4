"""The start-up hook behind `whisper … --backend NAME`.

Python's `site` module runs `activate` through the installed `whisper_max_plugin.pth`; from Python 3.15 on
through `whisper_max_plugin.start`, and then at every start, so this module imports next to nothing. It does
something only when this process is the whisper command, or when WHISPER_BACKEND is set; WHISPER_MAX_NO_HOOK
switches it off.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # as in typing, which is slow to import
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from types import ModuleType, TracebackType
    from typing import Any

WHISPER_COMMANDS = ("whisper", "whisper.exe")
WHISPER_MODULES = ("whisper", "whisper.transcribe")


def activate() -> None:
    """Switch the plugin on in this process if its command line or environment asks for it; idempotent."""
    if os.environ.get("WHISPER_MAX_NO_HOOK"):
        return
    argv = getattr(sys, "argv", [])  # a program that embeds Python may set none
    whisper_command = is_whisper_command(argv, sys.orig_argv)
    asked_for = os.environ.get("WHISPER_BACKEND", "").strip() or (whisper_command and _mentions_backend(argv))
    if not asked_for:
        return
    from whisper_max_plugin import import_hook, upstream

    upstream.activate()
    if whisper_command:
        import_hook.when_imported("whisper", accept_backend_option)


def is_whisper_command(argv: Sequence[str], orig_argv: Sequence[str]) -> bool:
    """Return whether a process with these arguments runs upstream's command line.

    Parameters
    ----------
    argv : Sequence[str]
        `sys.argv`; with `python -m` its first element is "-m" while `site` runs
    orig_argv : Sequence[str]
        `sys.orig_argv`, which still has the module's name
    """
    if not argv or len(argv) > len(orig_argv):
        return False
    if argv[0] != "-m":
        return os.path.basename(argv[0]).lower() in WHISPER_COMMANDS
    # Both lists end alike, so what stands before their common tail is the module: "whisper" or "-mwhisper".
    module = orig_argv[-len(argv)]
    return (module.partition("m")[2] if module.startswith("-") else module) in WHISPER_MODULES


def _mentions_backend(argv: Sequence[str]) -> bool:
    # --help, too: upstream's list of options then has this one.
    return any(word in ("--backend", "--help", "-h") or word.startswith("--backend=") for word in argv[1:])


def accept_backend_option(_whisper: ModuleType | None = None) -> None:
    """Let the next parser that reads `sys.argv` take `--backend NAME`: upstream's, once whisper is imported.

    The option, and those of `whisper_command.py`, are added to the parser that upstream's `cli()` builds and taken
    out of its result again, so that upstream never sees them. A backend that is unknown or cannot run, or that they
    are not for, ends the program with one line and status 2.
    """
    import argparse
    import functools

    parse_args = argparse.ArgumentParser.parse_args
    if hasattr(parse_args, "_whisper_max_plugin"):
        return

    @functools.wraps(parse_args)
    def parse_args_with_backend(
        parser: argparse.ArgumentParser, args: Sequence[str] | None = None, namespace: object = None
    ) -> object:
        if args is not None:  # not the program's own command line
            return parse_args(parser, args, namespace)
        argparse.ArgumentParser.parse_args = parse_args  # type: ignore[method-assign]
        return _parse_backend(parser, namespace)

    parse_args_with_backend._whisper_max_plugin = True  # type: ignore[attr-defined]
    argparse.ArgumentParser.parse_args = parse_args_with_backend  # type: ignore[assignment, method-assign]


def _parse_backend(parser: argparse.ArgumentParser, namespace: Any) -> argparse.Namespace:
    import argparse

    from whisper_max_plugin import backends, choices, upstream, whisper_command
    from whisper_max_plugin.errors import WhisperMaxError

    known = ", ".join(backend.name for backend in backends.all_backends())
    parser.add_argument(
        "--backend",
        metavar="NAME",
        default=argparse.SUPPRESS,
        help=f"what the model runs on: {known} (default: WHISPER_BACKEND, else {backends.DEFAULT})",
    )
    whisper_command.add_options(parser)
    flags = {"--backend", *(option.flag for option in whisper_command.OPTIONS)}
    whisper_command.prefer_upstreams_abbreviations(parser, flags)
    if namespace is None and any(action.dest == "device" for action in parser._actions):
        # upstream's default is what torch sees; None is what `load_model` takes for the backend's own choice
        namespace = argparse.Namespace(device=None)
    arguments = parser.parse_args(None, namespace)
    choices.command_line.backend, choices.command_line.precision = vars(arguments).pop("backend", None), None
    options = whisper_command.take_options(arguments)
    try:
        backend = backends.get_usable(upstream.current_backend())
        whisper_command.apply_options(options, backend.name, arguments)
    except WhisperMaxError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    _print_own_errors_without_traceback(parser.prog)
    return arguments


def _print_own_errors_without_traceback(program: str) -> None:
    """Let the command end with one line where loading the model raises one of this package's errors."""
    from whisper_max_plugin.errors import WhisperMaxError

    previous = sys.excepthook

    def excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if isinstance(error, WhisperMaxError):
            sys.stderr.write(f"{program}: error: {error}\n")
        else:
            previous(kind, error, traceback)

    sys.excepthook = excepthook
