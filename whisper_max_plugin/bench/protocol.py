"""What the runner and a subject's process say to each other: plain data, and the interface of a subject.

Subjects run on `Setup.device`, and read the clock only when it has finished: what is timed is how long a caller waits.
What part of it the device itself needs is asked for apart, since asking takes time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from whisper_max_plugin.bench.cost import Storage


@dataclass(frozen=True)
class Setup:
    """What a subject loads, and what it needs to know without reading the checkpoint itself.

    Attributes
    ----------
    checkpoint : str
        as ``whisper.load_model`` takes it: a name, or the path of a ``.pt`` file
    folder : Path
        where the subject keeps the checkpoint in its own format
    samples : Path | None
        the recording to transcribe: a ``.npy`` file, float32, 16 kHz, shape = (n_samples,)
    dims : dict[str, int]
        upstream's `ModelDimensions`
    start : list[int]
        the tokens a text without timestamps starts with
    start_of_previous, end_of_text, first_timestamp : int
        special tokens
    threads : int | None
        None for the subject's own default
    device : str
        as torch names it: "cpu", "cuda:0"
    """

    checkpoint: str
    folder: Path
    samples: Path | None
    dims: dict[str, int]
    start: list[int]
    start_of_previous: int
    end_of_text: int
    first_timestamp: int
    threads: int | None = None
    device: str = "cpu"

    @property
    def suppressed(self) -> list[int]:
        """Tokens that would end a text, or a window, early."""
        return [self.end_of_text, *range(self.first_timestamp, self.dims["n_vocab"])]


@dataclass(frozen=True)
class Loaded:
    """What loading took, in seconds, and how the weights lie in memory then."""

    import_seconds: float
    load_seconds: float
    storage: Storage


@dataclass(frozen=True)
class Transcription:
    """The options of one ``transcribe()``; temperature is 0, so that there is no fallback and the work is the same.

    Attributes
    ----------
    language : str
    beam_size : int | None
        None for greedy
    word_timestamps : bool
    n_tokens : int | None
        decode so many tokens in each window of 30 s, whatever the model says; None for what the model says
    seconds : float | None
        of the recording; None for all of it
    """

    language: str
    beam_size: int | None
    word_timestamps: bool
    n_tokens: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Decoded:
    """What one ``transcribe()`` took and returned."""

    seconds: float
    text: str
    tokens: list[int]


class Subject(Protocol):
    """One implementation, in a process of its own."""

    def prepare(self, setup: Setup) -> float | None:
        """Do what is done once for a model, in a process that is thrown away: download, convert, compile.

        Returns
        -------
        float | None
            seconds of compiling, 0.0 if that was done before; None where nothing is ever compiled
        """

    def load(self, setup: Setup) -> Loaded:
        """Import the libraries and load the model."""

    def stages(self) -> Sequence[str]:
        """Return which of `stages.TITLES` can be told apart."""

    def stage_seconds(self, stage: str, n_tokens: int) -> float:
        """Time one call of `stage`, on input that was not seen before."""

    def device_seconds(self, stage: str, n_tokens: int) -> float | None:
        """Return for how long a GPU is at work in another such call, by its own clock; None where nothing tells."""

    def transcribe(self, transcription: Transcription) -> Decoded:
        """Time one ``transcribe()`` of `Setup.samples`."""


@dataclass(frozen=True)
class Kind:
    """A subject as the command line knows it.

    Attributes
    ----------
    name, title : str
        on the command line, and in tables
    module, cls : str
        where its class is
    module_needed, requirement : str
        what has to be importable, and what ``pip install`` makes so
    thread_choice : bool
        whether the best number of threads is looked for; else the subject's own default is taken
    fixed_length, word_timestamps : bool
        whether ``transcribe()`` can be kept from ending a text, and can align words
    version_of : str | None
        the distribution whose version is shown; by default `requirement`
    options : dict[str, str]
        for the class
    note : str | None
        how its figures differ from the others'
    """

    name: str
    title: str
    module: str
    cls: str
    module_needed: str
    requirement: str
    thread_choice: bool = True
    fixed_length: bool = True
    word_timestamps: bool = True
    version_of: str | None = None
    options: dict[str, str] = field(default_factory=dict)
    note: str | None = None

    @property
    def prepared(self) -> tuple[str, str | None]:
        """What `Subject.prepare` is done for: kinds that share it read the same files."""
        return self.requirement, self.options.get("precision")

    def can(self, transcription: Transcription) -> bool:
        """Tell whether its ``transcribe()`` has these options."""
        fixed = transcription.n_tokens is not None
        return (self.fixed_length or not fixed) and (self.word_timestamps or not transcription.word_timestamps)
