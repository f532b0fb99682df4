"""``whisper-max live``: its arguments, and what it prints while somebody speaks."""

from __future__ import annotations

import argparse
import importlib
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import whisper_max_plugin
from whisper_max_plugin.errors import CommandLineError, LiveInputError
from whisper_max_plugin.live import MIN_CHUNK

if TYPE_CHECKING:
    from whisper.model import Whisper

    from whisper_max_plugin.live.local_agreement import Word
    from whisper_max_plugin.live.sources import Recorder

MODEL = "base"  # upstream's default, turbo, is slower than speech on most CPUs
SENTENCE_ENDS = (".", "?", "!", "\u3002", "\uff1f", "\uff01")  # the last ones of Chinese and Japanese


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    command = commands.add_parser(
        "live",
        help="transcribe while somebody speaks",
        description="Transcribe while somebody speaks: text is printed as soon as two passes in a row agree on it, and "
        "does not change any more. Ctrl-C, or the end of the input, ends it.",
    )
    add = command.add_argument
    add("model", nargs="?", metavar="MODEL", default=MODEL, help=f"as `whisper --model` takes it; by default {MODEL}")
    add(
        "--input",
        metavar="FILE",
        help="a WAV file or raw PCM (16 bits, little-endian, mono, 16 kHz) that may still be growing, or - for "
        "standard input; by default the microphone",
    )
    add("--language", help="spoken language; by default detected, until the first words are confirmed")
    add("--task", choices=["transcribe", "translate"], default="transcribe", help="translate is into English")
    add("--device", help="what the model runs on; by default the one load_model chooses")
    add("--min_chunk", type=float, metavar="SECONDS", default=MIN_CHUNK, help=f"of new audio per pass ({MIN_CHUNK:g})")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print confirmed words on stdout as they are confirmed; at the end, on stderr, how late they were.

    Raises
    ------
    WhisperMaxError
        when the input, the model, the device or an option cannot be used
    """
    from whisper_max_plugin.backends import get_usable

    get_usable("max")  # before upstream's modules are imported, since these take seconds
    from whisper_max_plugin.live.sources import Recorder, open_input
    from whisper_max_plugin.live.transcription import MAX_CHUNK, LiveTranscription

    language = _language(options.language)
    if not 0 < options.min_chunk <= MAX_CHUNK:
        raise CommandLineError(f"--min_chunk {options.min_chunk:g}: give seconds above 0 and up to {MAX_CHUNK:g}")
    recorder = Recorder(open_input(options.input))
    model = _load(options.model, options.device)
    live = LiveTranscription(model, language=language, task=options.task, min_chunk=options.min_chunk)
    latencies: list[float] = []
    text = _Text()

    def show(words: Sequence[Word]) -> None:
        now = time.monotonic()
        latencies.extend(now - recorder.came(word.end) for word in words)
        text.write(words)

    with _ended_by_interrupt(recorder):
        print("listening; Ctrl-C ends", file=sys.stderr, flush=True)
        failure = None
        try:
            for samples in recorder:
                show(live.feed(samples))
        except LiveInputError as error:
            failure = error  # told behind the words that came before it
        show(live.finish())
    text.end()
    if failure is not None:
        raise failure
    spoken = f"{len(latencies)} words in {live.seconds:.1f} s of audio"
    if latencies:
        spoken += f"; latency: median {statistics.median(latencies):.1f} s, longest {max(latencies):.1f} s"
    print(spoken, file=sys.stderr)
    return 0


def _language(name: str | None) -> str | None:
    """Return the code of a language that is given by its code or its name."""
    from whisper.tokenizer import LANGUAGES, TO_LANGUAGE_CODE

    if name is None:
        return None
    code = TO_LANGUAGE_CODE.get(name.lower(), name.lower())
    if code not in LANGUAGES:
        raise CommandLineError(f"--language {name}: whisper has no such language, `whisper --help` lists them")
    return code


def _load(name: str, device: str | None) -> Whisper:
    """Load the model and let it run once, since the first pass takes longer than others."""
    import numpy as np
    from whisper.audio import SAMPLE_RATE

    from whisper_max_plugin.checkpoints.names import check_name
    from whisper_max_plugin.half import takes_half

    whisper: Any = importlib.import_module("whisper")
    check_name(name)
    whisper_max_plugin.install()
    model: Whisper = whisper.load_model(name, device=device, backend="max")
    noise = np.random.default_rng(0).normal(0, 0.1, SAMPLE_RATE).astype(np.float32)
    options = {"language": "en", "temperature": 0.0, "no_speech_threshold": None, "fp16": takes_half(model)}
    whisper.transcribe(model, noise, word_timestamps=True, **options)
    return model


@contextmanager
def _ended_by_interrupt(recorder: Recorder) -> Iterator[None]:
    """Let the first Ctrl-C end the recording, and the second one the program."""

    def end(_signal: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        recorder.end()

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        recorder.close()


class _Text:
    """Prints words as they are confirmed, a sentence on a line."""

    def __init__(self) -> None:
        self._in_line = False

    def write(self, words: Sequence[Word]) -> None:
        for word in words:
            text = word.text if self._in_line else word.text.lstrip()
            self._in_line = not text.endswith(SENTENCE_ENDS)
            print(text, end="" if self._in_line else "\n", flush=True)

    def end(self) -> None:
        if self._in_line:
            print(flush=True)
