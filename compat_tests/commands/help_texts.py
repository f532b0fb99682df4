"""What `--help` has to say: everything that upstream's says, then `--backend` and the options that go with it."""

from __future__ import annotations

USAGE_OF_OPTIONS = "[--precision NAME] [--vad] [--progress] [--batch_size N]"
HELP_OF_OPTIONS = (
    "--precision NAME what weights are rounded to: float32, float16, bfloat16, int8 "
    "(default: WHISPER_MAX_PRECISION, else float32, which rounds nothing) (with --backend max) "
    "--vad transcribe only where somebody speaks (with --backend max) "
    "--progress show how far each file is, how fast that goes and how long it will take (with --backend max) "
    "--batch_size N transcribe up to N files at a time, whose windows are decoded together, with one bar for all "
    "(with --backend max)"
)


def assert_upstreams_with_backend(ours: str, upstreams: str, backends: str) -> None:
    """Two help texts have the same words, but for ours, of which `--backend` names `backends`."""
    usage, options = _words(upstreams)
    first_positional = usage.index("audio")
    assert len(options) > len(usage) > 2
    assert _words(ours) == (
        [*usage[:first_positional], "[--backend", "NAME]", *USAGE_OF_OPTIONS.split(), *usage[first_positional:]],
        [
            *options,
            *f"--backend NAME what the model runs on: {backends} (default: WHISPER_BACKEND, else torch)".split(),
            *HELP_OF_OPTIONS.split(),
        ],
    )


def _words(help_text: str) -> tuple[list[str], list[str]]:
    """Return the words of the usage, without the program's name, and those of what is below it."""
    usage, _, options = help_text.partition("\n\n")
    words = usage.split()
    return words[words.index("[-h]") :], options.split()
