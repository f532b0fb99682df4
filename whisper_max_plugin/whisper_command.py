"""The options of `whisper … --backend max` that upstream's command lacks: they change how a file is transcribed.

Each option is one `Option` below. Upstream's `cli()` never sees it, and calls for each file what the given options
make of `transcribe`, one after the other in the order of the list.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whisper_max_plugin import choices, precision, upstream
from whisper_max_plugin.errors import CommandLineError

if TYPE_CHECKING:
    from whisper_max_plugin.together import Transcribe

BACKEND = "max"  # what the options go with


@dataclass(frozen=True)
class Option:
    """An option of the command, and what it changes."""

    name: str  # its destination: "progress" is `--progress`
    settings: dict[str, Any]  # further arguments of `ArgumentParser.add_argument`
    apply: Callable[[Transcribe, Any, argparse.Namespace], Transcribe]
    """Called once, before upstream's `cli()` loads the model, with what is called for a file so far, the option's
    value, and the command's other arguments, which are to be read now, as `cli()` takes them apart. Returns what is to
    be called for a file: a wrapper, or the same. A WhisperMaxError ends the command with one line and status 2."""
    instead_of: tuple[str, ...] = ()  # options whose part this one takes over

    @property
    def flag(self) -> str:
        return f"--{self.name}"


def _hear_speech_only(transcribe: Transcribe, _given: bool, arguments: argparse.Namespace) -> Transcribe:
    from whisper_max_plugin import vad

    vad.check_clip_timestamps(vars(arguments).get("clip_timestamps", vad.WHOLE_FILE))
    return vad.only_speech(transcribe)


def _show_progress(transcribe: Transcribe, _given: bool, _arguments: argparse.Namespace) -> Transcribe:
    from whisper_max_plugin import progress

    return progress.with_bar(transcribe)


def _load_with_precision(transcribe: Transcribe, name: str, _arguments: argparse.Namespace) -> Transcribe:
    choices.command_line.precision = precision.checked(name)
    return transcribe  # files are transcribed as ever, by another model


def _together(transcribe: Transcribe, batch_size: int, arguments: argparse.Namespace) -> Transcribe:
    from whisper_max_plugin.together import Together

    arguments.audio = together = Together(transcribe, arguments.audio, batch_size)
    return together


OPTIONS = (
    Option(
        "precision",
        {
            "metavar": "NAME",
            "help": f"what weights are rounded to: {', '.join(precision.PRECISIONS)} "
            f"(default: {precision.VARIABLE}, else {precision.DEFAULT}, which rounds nothing)",
        },
        _load_with_precision,
    ),
    Option(
        "vad",
        {"action": "store_true", "help": "transcribe only where somebody speaks"},
        _hear_speech_only,
    ),
    Option(
        "progress",
        {"action": "store_true", "help": "show how far each file is, how fast that goes and how long it will take"},
        _show_progress,
    ),
    Option(
        "batch_size",
        {
            "type": int,
            "metavar": "N",
            "help": "transcribe up to N files at a time, whose windows are decoded together, with one bar for all",
        },
        _together,
        instead_of=("progress",),
    ),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to upstream's parser; the arguments then have those that were given, and no others."""
    for option in OPTIONS:
        settings = {**option.settings, "help": f"{option.settings['help']} (with --backend {BACKEND})"}
        parser.add_argument(option.flag, default=argparse.SUPPRESS, **settings)


def prefer_upstreams_abbreviations(parser: argparse.ArgumentParser, flags: Collection[str]) -> None:
    """Let an abbreviation mean what it means to upstream's command, as if it had none of the options `flags`.

    argparse would call ``--v`` ambiguous between ``--verbose`` and ``--vad``.
    """
    find = parser._get_option_tuples

    def find_upstreams(text: str) -> Any:
        found = find(text)
        return [each for each in found if each[1] not in flags] or found

    vars(parser)["_get_option_tuples"] = find_upstreams


def take_options(arguments: argparse.Namespace) -> list[tuple[Option, Any]]:
    """Take the given options out of the parsed `arguments`; return them with their values."""
    given = vars(arguments)
    return [(option, given.pop(option.name)) for option in OPTIONS if option.name in given]


def apply_options(given: Sequence[tuple[Option, Any]], backend: str, arguments: argparse.Namespace) -> None:
    """Let upstream's `cli()` transcribe each file as the `given` options say.

    Parameters
    ----------
    given : Sequence[tuple[Option, Any]]
        what `take_options` returned
    backend : str
        the name of the backend that the command runs on
    arguments : argparse.Namespace
        upstream's arguments

    Raises
    ------
    CommandLineError
        when the options are not for this backend
    """
    upstream.restore_transcribe_of_the_command()  # an earlier command of this process may have had options
    if not given:
        return
    if backend != BACKEND:
        flags = ", ".join(option.flag for option, _ in given)
        raise CommandLineError(f"{flags}: only with --backend {BACKEND}, and this runs on {backend}")

    def wrap(transcribe: Transcribe) -> Transcribe:
        taken_over = {name for option, _ in given for name in option.instead_of}
        for option, value in given:
            if option.name in taken_over:
                continue
            transcribe = option.apply(transcribe, value, arguments)
        return transcribe

    upstream.replace_transcribe_of_the_command(wrap)
