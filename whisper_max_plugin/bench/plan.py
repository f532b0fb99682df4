"""What a run of ``whisper-max bench`` measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from whisper_max_plugin.bench.protocol import Kind, Setup, Transcription

TRANSCRIBE = "transcribe"  # stands beside the stages where work is named


@dataclass(frozen=True)
class Plan:
    """What is to be measured.

    Attributes
    ----------
    kinds : Sequence[Kind]
        the subjects, upstream first
    setup : Setup
        without threads
    folder : Path
        a temporary one, in which each package that reads a format of its own gets one
    stages : Sequence[str]
    transcription : Transcription | None
        None without a recording
    audio_seconds : float
    reference : str | None
        what is said in the recording
    n_tokens, rounds : int
    threads : int | None
        for all subjects; None for the best of one and all of each
    cold : bool
        compile into an empty cache
    """

    kinds: Sequence[Kind]
    setup: Setup
    folder: Path
    stages: Sequence[str]
    transcription: Transcription | None
    audio_seconds: float
    reference: str | None
    n_tokens: int
    rounds: int
    threads: int | None
    cold: bool

    def transcribes(self, kind: Kind) -> bool:
        """Tell whether `kind` is to transcribe, and can."""
        return self.transcription is not None and kind.can(self.transcription)

    def work(self, kind: Kind) -> list[str]:
        """Return what `kind` is measured by, if it can tell all stages apart."""
        return [*([TRANSCRIBE] if self.transcribes(kind) else []), *self.stages]

    @property
    def on_gpu(self) -> bool:
        """Whether models run on a GPU."""
        return self.setup.device != "cpu"

    def setup_of(self, kind: Kind, threads: int | None) -> Setup:
        """Return what a process of `kind` is told."""
        folder = self.folder / kind.requirement
        folder.mkdir(exist_ok=True)
        return replace(self.setup, folder=folder, threads=threads)

    def environment(self, kind: Kind) -> Mapping[str, str]:
        """Return variables that move all of MAX's caches into an empty folder, for a cold start."""
        if not self.cold or kind.requirement != "max":
            return {}
        folder = str(self.folder / "cold")
        return {"MODULAR_CACHE_DIR": folder, "MODULAR_MAX_CACHE_DIR": folder}


class Progress(Protocol):
    """Is told what is going on."""

    def doing(self, what: str) -> None:
        """Something else is done than before."""

    def begin(self, n_turns: int) -> None:
        """So many turns are to come."""

    def turn(self, what: str) -> None:
        """One of them begins."""
