"""``whisper-max bench``: its arguments, what it refuses, and what it prints."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whisper_max_plugin.bench import stages, subjects
from whisper_max_plugin.bench.errors import BenchError
from whisper_max_plugin.precision import DEFAULT, PRECISIONS, checked

if TYPE_CHECKING:
    from tqdm import tqdm

    from whisper_max_plugin.bench.protocol import Setup, Transcription
    from whisper_max_plugin.bench.results import Report

ROUNDS = 5
TOKENS = 50
MOST_TOKENS = 200  # upstream stops at half of its 448 positions


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    command = commands.add_parser(
        "bench",
        help="time upstream, this plugin and its peers side by side",
        description="Time upstream, this plugin and those of its peers that are installed, side by side: the same "
        "weights, the same options, in turns. Without --audio only stages of the model are timed.",
    )
    peers, names = ",".join(kind.name for kind in subjects.PEERS), ",".join(stages.TITLES)
    add = command.add_argument
    add("model", nargs="?", metavar="MODEL", help="a name, downloaded if it is not there yet, or a .pt file")
    add("--random", metavar="SIZE", help="random weights of a size (tiny, base, small, turbo, ...), without a download")
    add("--audio", metavar="FILE", help="a recording to transcribe")
    add("--reference", metavar="FILE", help="the text that is said in it, for word error rates")
    add("--language", help="of the recording; by default en, and no language is detected", default="en")
    add("--beam_size", type=_positive, metavar="N", help="for transcribe(); greedy by default")
    add("--word_timestamps", action="store_true", help="for transcribe()")
    tokens = f"steps per measurement and, with --random, tokens per window ({TOKENS})"
    add("--tokens", type=_positive, metavar="N", default=TOKENS, help=tokens)
    add("--rounds", type=_positive, metavar="N", default=ROUNDS, help=f"of which medians are taken ({ROUNDS})")
    add("--device", metavar="DEVICE", help="cpu, by default, or cuda or cuda:1", default="cpu")
    add("--threads", type=_positive, metavar="N", help="for all; by default each one's best of one and all")
    add("--peers", metavar="A,B", help=f"of {peers}, or none; by default all that are installed")
    precisions = f"of this plugin, some of {','.join(PRECISIONS)}; by default {DEFAULT}, on a GPU float16 too"
    add("--precision", metavar="A,B", help=precisions)
    add("--stages", metavar="A,B", help=f"of {names}, or none; by default all")
    add("--cold", action="store_true", help="compile the graphs into an empty cache, to time it")
    add("--json", metavar="FILE", help="also write everything that was measured")
    add("--plot", metavar="FILE", help="also draw it, as .png, .svg or .pdf; needs matplotlib")
    command.set_defaults(run=run)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 on")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Measure, print the table, and write what is asked for.

    Parameters
    ----------
    options : argparse.Namespace
        what `add_parser`'s parser made of `options.arguments`, which are those behind ``whisper-max``

    Raises
    ------
    WhisperMaxError
        if something cannot be measured or written
    """
    command = shlex.join(["whisper-max", *options.arguments])
    peers = _chosen(options.peers, [kind.name for kind in subjects.PEERS], "peer")
    chosen_stages = _chosen(options.stages, list(stages.TITLES), "stage")
    precisions = None if options.precision is None else [checked(name) for name in options.precision.split(",")]
    _check(options, chosen_stages)
    from whisper_max_plugin.execution import devices  # behind the check that there is MAX

    device = devices.find(options.device).name
    if device != "cpu" and "int8" in (precisions or ()):
        raise BenchError("--precision int8 is for the CPU: leave it out, or --device")
    with tempfile.TemporaryDirectory(prefix="whisper-max-bench-") as folder:
        report = _report(options, command, device, peers, precisions, chosen_stages, Path(folder))
    from whisper_max_plugin.bench.table import lines

    print("\n".join(lines(report)), flush=True)
    if options.json is not None:
        _write(Path(options.json), json.dumps(dataclasses.asdict(report), indent=1) + "\n")
    if options.plot is not None:
        from whisper_max_plugin.bench.plot import draw

        draw(report, Path(options.plot))
    return 0


def _chosen(text: str | None, known: Sequence[str], what: str) -> list[str]:
    if text is None:
        return list(known)
    names = [] if text.strip() == "none" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise BenchError(f"no {what} {name!r}: give some of {','.join(known)}, or none")
    return [name for name in known if name in names]


def _check(options: argparse.Namespace, chosen_stages: Sequence[str]) -> None:
    """Refuse what cannot be measured before anything takes time."""
    from whisper.tokenizer import LANGUAGES

    from whisper_max_plugin.backends import get_usable

    if (options.model is None) == (options.random is None):
        raise BenchError("name a model or a .pt file, or take random weights by --random tiny (one of the two)")
    if options.audio is None and not chosen_stages:
        raise BenchError("nothing to measure: give a recording by --audio, or some --stages")
    if options.audio is None:
        for name in ("reference", "beam_size", "word_timestamps"):
            if getattr(options, name):
                raise BenchError(f"--{name} is about transcribe(): add a recording by --audio")
    if options.tokens > MOST_TOKENS:
        raise BenchError(f"--tokens {options.tokens} is more than the {MOST_TOKENS} that a window has room for")
    if options.reference is not None and options.random is not None:
        raise BenchError("--reference is of no use with --random: random weights say nothing")
    if options.language not in LANGUAGES:
        raise BenchError(f"no language {options.language!r}: give a code such as en or de")
    for name in ("json", "plot"):
        path = getattr(options, name)
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise BenchError(f"--{name} {path}: there is no folder {Path(path).parent}")
    if options.plot is not None:
        from whisper_max_plugin.bench.plot import check

        check(Path(options.plot))
    get_usable("max")


def _report(
    options: argparse.Namespace,
    command: str,
    device: str,
    peers: Sequence[str],
    precisions: Sequence[str] | None,
    chosen_stages: Sequence[str],
    folder: Path,
) -> Report:
    from whisper_max_plugin.bench import machine, runner, summary
    from whisper_max_plugin.bench.plan import Plan
    from whisper_max_plugin.bench.results import Report
    from whisper_max_plugin.bench.worker import in_child

    kinds, missing = subjects.choose(peers, device, precisions)
    gpu = {} if device == "cpu" else in_child(machine.gpu_facts, device)
    checkpoint, dims = _model(options, folder)
    samples, audio_seconds = _recording(options.audio, folder)
    plan = Plan(
        kinds=kinds,
        setup=_setup(checkpoint, dims, samples, folder, device),
        folder=folder,
        stages=chosen_stages,
        transcription=None if samples is None else _transcription(options),
        audio_seconds=audio_seconds,
        reference=None if options.reference is None else _reference(options.reference, options.language),
        n_tokens=options.tokens,
        rounds=options.rounds,
        threads=options.threads,
        cold=options.cold,
    )
    with _Bar() as progress:
        limits, measured = runner.run(plan, progress)
    return Report(
        command=command,
        device=device,
        machine={**machine.facts(), **gpu},
        limits=limits,
        model=options.model or f"random weights of {options.random}",
        dims=dims,
        rounds=options.rounds,
        n_tokens=options.tokens,
        audio=options.audio,
        audio_seconds=audio_seconds or None,
        transcription=None if plan.transcription is None else dataclasses.asdict(plan.transcription),
        subjects=summary.subject_results(measured),
        transcriptions=summary.transcription_results(plan, measured),
        stages=summary.stage_results(plan, limits, measured),
        missing=missing,
    )


def _model(options: argparse.Namespace, folder: Path) -> tuple[str, dict[str, int]]:
    """Return the checkpoint as ``whisper.load_model`` takes it, and its dimensions."""
    from whisper_max_plugin import checkpoints
    from whisper_max_plugin.checkpoints.sizes import OFFICIAL_DIMS
    from whisper_max_plugin.errors import UnknownModelError

    name = options.random or options.model
    if options.random is not None:
        from whisper_max_plugin.bench.weights import random_checkpoint
        from whisper_max_plugin.bench.worker import in_child

        if name not in OFFICIAL_DIMS:
            raise BenchError(f"no size {name!r}: give one of {', '.join(OFFICIAL_DIMS)}")
        # elsewhere, for it takes three times the model's memory
        path = in_child(random_checkpoint, folder / f"random-{name}.pt", OFFICIAL_DIMS[name])
        return str(path), vars(OFFICIAL_DIMS[name])
    if name in OFFICIAL_DIMS:
        return name, vars(OFFICIAL_DIMS[name])
    if Path(name).is_dir():
        raise BenchError(f"{name} is a folder: give a .pt file, as `whisper-max convert {name} MODEL.pt` writes it")
    if not Path(name).is_file():
        raise UnknownModelError.of(name, OFFICIAL_DIMS)
    return str(Path(name).absolute()), vars(checkpoints.read(name).dims)


def _recording(audio: str | None, folder: Path) -> tuple[Path | None, float]:
    """Decode the recording once for all subjects; return the file of its samples, and its seconds."""
    if audio is None:
        return None, 0.0
    import numpy as np

    from whisper_max_plugin.audio import SAMPLE_RATE, load_audio

    try:
        samples = load_audio(audio)
    except (OSError, RuntimeError) as error:
        raise BenchError(f"--audio {audio} cannot be read: {error}") from error
    if len(samples) == 0:
        raise BenchError(f"--audio {audio} holds no sound")
    path = folder / "samples.npy"
    np.save(path, samples)
    return path, len(samples) / SAMPLE_RATE


def _setup(checkpoint: str, dims: dict[str, int], samples: Path | None, folder: Path, device: str = "cpu") -> Setup:
    from whisper_max_plugin.bench.protocol import Setup
    from whisper_max_plugin.bench.subjects.vocabulary import tokenizer_of

    tokenizer = tokenizer_of(dims)
    return Setup(
        checkpoint=checkpoint,
        folder=folder,
        samples=samples,
        dims=dims,
        start=list(tokenizer.sot_sequence_including_notimestamps),
        start_of_previous=tokenizer.sot_prev,
        end_of_text=tokenizer.eot,
        first_timestamp=tokenizer.timestamp_begin,
        device=device,
    )


def _transcription(options: argparse.Namespace) -> Transcription:
    from whisper_max_plugin.bench.protocol import Transcription

    n_tokens = None if options.random is None else options.tokens
    return Transcription(options.language, options.beam_size, options.word_timestamps, n_tokens)


def _reference(file: str, language: str) -> str:
    from whisper_max_plugin.bench.accuracy import normalized_words

    try:
        text = Path(file).read_text(encoding="utf8")
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"--reference {file} cannot be read: {error}") from error
    if not normalized_words(text, language):
        raise BenchError(f"--reference {file} holds no words: it should hold the text of the recording")
    return text


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf8")
    except OSError as error:
        raise BenchError(f"{path} cannot be written: {error.strerror or error}") from error


class _Bar:
    """Progress on stderr, where that is a terminal; see `plan.Progress`."""

    def __enter__(self) -> _Bar:
        from tqdm import tqdm

        self._bar: tqdm[Any] = tqdm(bar_format="{desc} {elapsed}", disable=not sys.stderr.isatty(), leave=False)
        return self

    def __exit__(self, *_exception: object) -> None:
        self._bar.close()

    def doing(self, what: str) -> None:
        self._bar.set_description_str(what)

    def begin(self, n_turns: int) -> None:
        self._bar.bar_format = "{desc} |{bar:20}| {n_fmt}/{total_fmt} {elapsed}"
        self._bar.reset(n_turns)

    def turn(self, what: str) -> None:
        self._bar.set_description_str(what, refresh=False)
        self._bar.update()
        self._bar.refresh()
