"""The ``whisper-max`` command: argument parsing and everything it prints; the work is done elsewhere."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import whisper_max_plugin
from whisper_max_plugin.errors import WhisperMaxError

if TYPE_CHECKING:
    from whisper_max_plugin.doctor import Check
    from whisper_max_plugin.model import WarmupResult

EXIT_OK = 0
EXIT_PROBLEM = 1
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, what a shell expects
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE


def main(argv: list[str] | None = None) -> int:
    """Run ``whisper-max`` with the arguments `argv`, by default those of this process.

    Returns
    -------
    int
        the exit code: 0 when all went well, 1 when ``doctor`` found a problem, 2 after a printed error

    Raises
    ------
    SystemExit
        by argparse, for ``--help`` and for arguments that it does not understand
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        code = _run(arguments)
        print(end="", flush=True)  # a reader that went away shows now, not at exit
        return code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (`head`, say) has gone; without this the interpreter complains when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except WhisperMaxError as error:
        _print_error(error)
        return EXIT_ERROR


def _run(arguments: list[str]) -> int:
    parser = _parser()
    if arguments[:1] == ["transcribe"]:
        return transcribe(arguments[1:])  # before argparse, which would take upstream's --help for its own
    options = parser.parse_args(arguments)
    if options.command == "backends":
        return backends(as_json=options.json)
    if options.command == "doctor":
        return doctor(as_json=options.json)
    return warmup(options.model, device=options.device)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="whisper-max",
        description="Run openai-whisper on compiled MAX graphs.",
        epilog="`whisper audio.wav --backend max` is `whisper-max transcribe audio.wav`.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {whisper_max_plugin.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    commands.add_parser("transcribe", help="upstream's whisper command, on MAX", add_help=False)

    command = commands.add_parser("backends", help="list the backends and whether they can run here")
    command.add_argument("--json", action="store_true", help="print JSON")

    command = commands.add_parser("doctor", help="check this environment; names the command that mends a problem")
    command.add_argument("--json", action="store_true", help="print JSON")

    command = commands.add_parser("warmup", help="compile the graphs of models ahead of time")
    command.add_argument("model", nargs="+", metavar="MODEL", help="a name (its weights are not needed), or a .pt file")
    command.add_argument("--device", help="device to compile for; by default the one load_model chooses")
    return parser


def transcribe(arguments: Sequence[str]) -> int:
    """Run upstream's own command line, on MAX unless its added option ``--backend`` says otherwise."""
    from whisper_max_plugin import startup

    whisper_max_plugin.install(backend="max")
    # By its name, since the attribute `whisper.transcribe` is the function.
    upstream_cli = importlib.import_module("whisper.transcribe").cli
    startup.accept_backend_option()
    saved_argv = sys.argv
    sys.argv = ["whisper-max transcribe", *arguments]
    try:
        upstream_cli()
    finally:
        sys.argv = saved_argv
    return EXIT_OK


def backends(*, as_json: bool) -> int:
    """Print every registered backend: name, version, devices, and the reason when it cannot run."""
    from whisper_max_plugin.backends import all_backends

    rows: list[dict[str, Any]] = []
    for backend in all_backends():
        reason = backend.can_run()
        rows.append(
            {
                "name": backend.name,
                "version": backend.version(),
                "devices": backend.devices(),
                "usable": reason is True,
                "reason": None if reason is True else reason,
            }
        )
    if as_json:
        print(json.dumps(rows, indent=2))
        return EXIT_OK
    table = [["NAME", "VERSION", "DEVICES", "USABLE"]]
    for row in rows:
        usable = "yes" if row["usable"] else f"no: {row['reason']}"
        table.append([row["name"], row["version"] or "-", ", ".join(row["devices"]) or "-", usable])
    print("\n".join(_aligned(table)))
    return EXIT_OK


def doctor(*, as_json: bool) -> int:
    """Print what `whisper_max_plugin.doctor` found; 1 when something needs mending."""
    from whisper_max_plugin.doctor import run_checks

    checks = run_checks()
    problems = sum(check.ok is False for check in checks)
    if as_json:
        report = {"ok": problems == 0, "checks": [dataclasses.asdict(check) for check in checks]}
        print(json.dumps(report, indent=2))
    else:
        _print_checks(checks)
        print()
        print({0: "Everything is in order.", 1: "1 problem."}.get(problems, f"{problems} problems."))
    return EXIT_PROBLEM if problems else EXIT_OK


def _print_checks(checks: Sequence[Check]) -> None:
    marks = {True: "ok", None: "--", False: "!!"}
    lines = _aligned([[marks[check.ok], check.name, check.value] for check in checks])
    for check, line in zip(checks, lines, strict=True):
        print(line)
        if check.remedy is not None:
            print(f"      {'mend' if check.ok is False else 'to change'}: {check.remedy}")


def warmup(names: Sequence[str], *, device: str | None) -> int:
    """Compile the graphs of each model, or find them in the cache; one bad name does not stop the others."""
    from whisper_max_plugin.backends import get_usable

    get_usable("max")  # before the model's modules are imported, since these need what it looks for
    from whisper_max_plugin import model

    code = EXIT_OK
    for name in names:
        try:
            result = model.warmup(name, device=device)
        except WhisperMaxError as error:
            _print_error(error)
            code = EXIT_ERROR
            continue
        _print_warmup(result)
    return code


def _print_warmup(result: WarmupResult) -> None:
    dims = result.dims
    encoder = f"encoder {dims.n_audio_layer} x {dims.n_audio_state}"
    decoder = f"decoder {dims.n_text_layer} x {dims.n_text_state}"
    done = "found in the cache" if result.cached else "compiled"
    print(
        f"{result.name}: {done} in {result.seconds:.1f} s "
        f"({dims.n_mels} mels, {encoder}, {decoder}, {dims.n_vocab} tokens)",
        flush=True,  # now, since the next model may take minutes
    )


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with equal column widths."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return ["  ".join(row).rstrip() for row in padded]


def _print_error(message: object) -> None:
    print(f"whisper-max: error: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
