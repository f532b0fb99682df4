"""``whisper-max ray``: its arguments, which files it finds, and what it prints."""

from __future__ import annotations

import argparse
import glob
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whisper_max_plugin.errors import CommandLineError

if TYPE_CHECKING:
    from whisper_max_plugin.ray import Summary

MODEL = "turbo"  # upstream's default
N_LISTED = 20  # failures that are printed; the file has all
# In a folder, which may hold other things beside; a file that is named may end in anything.
ENDINGS = {
    *(".3gp", ".aac", ".ac3", ".aif", ".aiff", ".amr", ".avi", ".caf", ".flac", ".m4a", ".m4b", ".mka", ".mkv", ".mov"),
    *(".mp2", ".mp3", ".mp4", ".mpeg", ".mpg", ".oga", ".ogg", ".ogv", ".opus", ".ts", ".wav", ".webm", ".wma", ".wmv"),
}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    command = commands.add_parser(
        "ray",
        help="transcribe many recordings on all machines of a Ray cluster",
        description="Transcribe recordings on all machines of a Ray cluster, or on this one if there is none. The same "
        "command continues a run that was interrupted, and tries again what failed.",
    )
    add = command.add_argument
    add(
        "recordings",
        nargs="+",
        metavar="RECORDING",
        help="a file, a folder of recordings, with those below it, or a quoted pattern as in '**/*.mp3'",
    )
    add(
        "--output",
        required=True,
        metavar="PATH",
        help="a file of JSON lines, if it ends in .jsonl, or else a folder of Parquet files",
    )
    add("--model", default=MODEL, help=f"as `whisper --model` takes it; by default {MODEL}")
    add("--device", choices=["cpu", "cuda"], help="cuda gives each model a GPU; by default cpu")
    add("--language", help="spoken language; by default detected for each recording")
    add("--options", type=_options, metavar="JSON", default={}, help="""others of transcribe(): '{"beam_size": 5}'""")
    add("--batch_size", type=int, metavar="N", default=8, help="recordings that a model works on at a time (8)")
    add(
        "--concurrency",
        type=int,
        metavar="N",
        help="how many models there are; by default one on each GPU, or else on each machine but small ones",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Transcribe; print on stderr how far it is, and on stdout what became of the recordings.

    Returns
    -------
    int
        1 if recordings failed, else 0

    Raises
    ------
    WhisperMaxError
        when nothing can be transcribed, for a reason that is no recording's
    """
    from tqdm import tqdm

    from whisper_max_plugin.ray import check_arguments, transcribe_dataset
    from whisper_max_plugin.ray.output import failures_of

    check_arguments(options.device, options.batch_size, options.concurrency)
    paths = list(dict.fromkeys(path for named in options.recordings for path in _find(named)))
    _connect()
    begin = time.monotonic()
    with tqdm(total=len(paths), unit=" recordings", smoothing=0) as bar:

        def show(summary: Summary) -> None:
            bar.initial = summary.skipped  # which say nothing about the speed
            bar.update(summary.skipped + summary.done + len(summary.failed) - bar.n)

        summary = transcribe_dataset(
            paths,
            options.output,
            model=options.model,
            device=options.device,
            batch_size=options.batch_size,
            concurrency=options.concurrency,
            on_progress=show,
            **{**options.options, **({} if options.language is None else {"language": options.language})},
        )
        show(summary)
    _print(summary, options.output, failures_of(options.output), time.monotonic() - begin)
    return 1 if summary.failed else 0


def _options(text: str) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"this is no JSON ({error})") from error
    if not isinstance(options, dict):
        raise argparse.ArgumentTypeError('this is no JSON of names and values, as in {"beam_size": 5}')
    return options


def _find(named: str) -> Iterator[str]:
    """Yield the recordings that an argument means."""
    if os.path.isdir(named):
        found = [str(path) for path in sorted(Path(named).rglob("*")) if path.suffix.lower() in ENDINGS]
    elif os.path.exists(named) or "://" in named:
        found = [named]
    else:
        found = [path for path in sorted(glob.glob(named, recursive=True)) if os.path.isfile(path)]
    if not found:
        raise CommandLineError(f"{named}: there is no such recording, nor a folder of recordings")
    yield from found


def _connect() -> None:
    """Join the cluster that there is, or start one of this machine, without what Ray has to tell about it."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    from whisper_max_plugin.ray import load_ray

    ray = load_ray()
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    logging.getLogger("whisper_max_plugin.ray").setLevel(logging.ERROR)  # failures are printed at the end
    ray.data.DataContext.get_current().enable_progress_bars = False
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.ERROR)


def _print(summary: Summary, output: str, failures: Path, seconds: float) -> None:
    before = f", {summary.skipped} were there before" if summary.skipped else ""
    rate = f"{summary.seconds:.0f} s of audio in {seconds:.0f} s"
    print(f"{output}: {summary.done} recordings transcribed ({rate}){before}, {len(summary.failed)} failed")
    _print_failures([f"{failure.path}: {failure.error}" for failure in summary.failed], failures)


def _print_failures(lines: Sequence[str], failures: Path) -> None:
    for line in lines[:N_LISTED]:
        print(line)
    if len(lines) > N_LISTED:
        print(f"and {len(lines) - N_LISTED} others")
    if lines:
        print(f"{failures} lists them; the same command tries them again")
