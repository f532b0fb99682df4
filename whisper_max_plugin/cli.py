"""The ``whisper-max`` command: which subcommand runs, and how errors end it; the small ones are here, too.

``doctor``, ``live``, ``ray`` and ``bench`` have a `command.py` each, with their arguments and what they print. A parser
of a subcommand has `run`, which takes the parsed arguments and returns the exit code.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import whisper_max_plugin
from whisper_max_plugin import precision as precisions
from whisper_max_plugin.bench import command as bench_command
from whisper_max_plugin.console import aligned, size_of_model
from whisper_max_plugin.doctor import command as doctor_command
from whisper_max_plugin.errors import CommandLineError, WhisperMaxError
from whisper_max_plugin.live import command as live_command
from whisper_max_plugin.ray import command as ray_command

if TYPE_CHECKING:
    from whisper_max_plugin.loading import WarmupResult

EXIT_OK = 0
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, what a shell expects
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE


def main(argv: list[str] | None = None) -> int:
    """Run ``whisper-max`` with the arguments `argv`, by default those of this process.

    Returns
    -------
    int
        the exit code: 0 when all went well, 1 when ``doctor`` found a problem or a recording of ``ray`` failed, 2
        after a printed error

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
        _forget_stdout()  # whose reader, `head` say, has gone
        return EXIT_BROKEN_PIPE
    except WhisperMaxError as error:
        _print_error(error)
        return EXIT_ERROR
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _print_error(f"{error.strerror}: make room for {error.filename or 'stdout, or other files that are written'}")
        try:
            print(end="", flush=True)
        except OSError:
            _forget_stdout()
        return EXIT_ERROR


def _forget_stdout() -> None:
    """Keep the interpreter from complaining about stdout when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["transcribe"]:
        return transcribe(arguments[1:])  # before argparse, which would take upstream's --help for its own
    options = _parser().parse_args(arguments, argparse.Namespace(arguments=arguments))
    code: int = options.run(options)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="whisper-max",
        description="Run openai-whisper on compiled MAX graphs.",
        epilog="`whisper audio.wav --backend max` is `whisper-max transcribe audio.wav`.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {whisper_max_plugin.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    commands.add_parser("transcribe", help="upstream's whisper command, on MAX", add_help=False)

    command = commands.add_parser("backends", help="list the backends and whether they can run here")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=backends)

    doctor_command.add_parser(commands)

    command = commands.add_parser("warmup", help="compile the graphs of models ahead of time")
    warmup_help = "a name (its weights are not needed), a .pt file or a folder of Hugging Face"
    command.add_argument("model", nargs="+", metavar="MODEL", help=warmup_help)
    command.add_argument("--device", help="device to compile for; by default the one load_model chooses")
    target = "compile for a GPU of another machine instead, by its architecture: sm_90a is an H100 or H200"
    command.add_argument("--target", metavar="SM", help=target)
    names = ", ".join(precisions.PRECISIONS)
    precision_help = (
        f"{names}; by default {precisions.VARIABLE}, else {precisions.DEFAULT} on the CPU and float16 on a GPU"
    )
    command.add_argument("--precision", metavar="NAME", help=precision_help)
    command.set_defaults(run=warmup)

    command = commands.add_parser(
        "convert", help="write a checkpoint of Hugging Face as the .pt file that whisper loads"
    )
    command.add_argument("folder", metavar="SRC", help="the folder of config.json and the weights in safetensors")
    command.add_argument("path", metavar="DST.pt", help="the file to write, which must not be there yet")
    command.set_defaults(run=convert)

    live_command.add_parser(commands)
    ray_command.add_parser(commands)
    bench_command.add_parser(commands)
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


def backends(options: argparse.Namespace) -> int:
    """Print every registered backend: name, version, devices, and the reason when it cannot run."""
    from whisper_max_plugin.backends import all_backends, state

    rows: list[dict[str, Any]] = []
    for backend in all_backends():
        found = state(backend)
        rows.append(
            {
                "name": backend.name,
                "version": found.version,
                "devices": found.devices,
                "usable": found.reason is None,
                "reason": found.reason,
            }
        )
    if options.json:
        print(json.dumps(rows, indent=2))
        return EXIT_OK
    table = [["NAME", "VERSION", "DEVICES", "USABLE"]]
    for row in rows:
        usable = "yes" if row["usable"] else f"no: {row['reason']}"
        table.append([row["name"], row["version"] or "-", ", ".join(row["devices"]) or "-", usable])
    print("\n".join(aligned(table)))
    return EXIT_OK


def warmup(options: argparse.Namespace) -> int:
    """Compile the graphs of each model, or find them in the cache; one bad name does not stop the others."""
    from whisper_max_plugin.backends import get_usable

    if options.device is not None and options.target is not None:
        raise CommandLineError("--target names a GPU of another machine: leave out --device")
    get_usable("max")  # before the model's modules are imported, since these need what it looks for
    from whisper_max_plugin import loading, targets

    chosen = precisions.of_command(options.precision)
    code = EXIT_OK
    for name in options.model:
        try:
            if options.target is None:
                result = loading.warmup(name, device=options.device, precision=chosen)
            else:
                result = targets.warmup(name, options.target, chosen)
        except WhisperMaxError as error:
            _print_error(error)
            code = EXIT_ERROR
            continue
        _print_warmup(result)
    return code


def convert(options: argparse.Namespace) -> int:
    """Write a checkpoint of Hugging Face as a file for upstream, and print what was written."""
    from whisper_max_plugin.checkpoints.convert import convert as write_converted

    path: str = options.path
    checkpoint = write_converted(options.folder, path)
    types = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in checkpoint.state.values()})
    print(
        f"{path}: {size_of_model(vars(checkpoint.dims))}, {' and '.join(types)}, {os.path.getsize(path) / 1e6:.1f} MB"
    )
    if checkpoint.alignment_heads is not None:
        print(
            "The alignment heads of word timestamps are in it; the backend max applies them, and for torch there is\n"
            f'model.set_alignment_heads(torch.load({path!r})["alignment_heads"])'
        )
    return EXIT_OK


def _print_warmup(result: WarmupResult) -> None:
    done = "found in the cache" if result.cached else "compiled"
    print(
        f"{result.name}: {done} in {result.seconds:.1f} s ({size_of_model(vars(result.dims))})",
        flush=True,  # now, since the next model may take minutes
    )


def _print_error(message: object) -> None:
    print(f"whisper-max: error: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
