"""What a benchmark found: plain data, from which table, JSON and plot are made."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from whisper_max_plugin.bench.machine import Limits


@dataclass(frozen=True)
class Times:
    """Seconds of all rounds, and what is shown of them."""

    median: float
    min: float
    max: float
    rounds: list[float]

    @classmethod
    def of(cls, rounds: Sequence[float]) -> Times:
        """Sum up `rounds`."""
        return cls(statistics.median(rounds), min(rounds), max(rounds), list(rounds))


@dataclass(frozen=True)
class SubjectResult:
    """One subject: what it is, and what loading took.

    Attributes
    ----------
    version : str | None
    threads : list[int] | None
        the numbers that its best times were measured with; None for its own default
    import_seconds, load_seconds : float
        apart, without compiling
    compile_seconds : float | None
        0.0 when the graphs were cached; None where nothing is ever compiled
    peak_bytes : int
        the most memory that its process held, up to the end of its `transcribe()` or, without one, of its stages
    """

    name: str
    title: str
    version: str | None
    threads: list[int] | None
    import_seconds: float
    load_seconds: float
    compile_seconds: float | None
    peak_bytes: int
    note: str | None


@dataclass(frozen=True)
class StageResult:
    """One stage of one subject.

    Attributes
    ----------
    device_seconds : float | None
        for how long a GPU was at work, by its own clock; None where nothing tells
    ratio : float | None
        how many times faster than upstream; None without it
    n_bytes, flops : float
        what must be moved and computed at least
    limit_part : float
        the time that this machine's limits allow at best, as a part of the median
    """

    stage: str
    title: str
    subject: str
    threads: int | None
    times: Times
    device_seconds: float | None
    ratio: float | None
    n_bytes: float
    flops: float
    limit_part: float


@dataclass(frozen=True)
class TranscriptionResult:
    """The whole ``transcribe()`` of one subject.

    Attributes
    ----------
    ratio : float | None
        how many times faster than upstream; None without it
    speed : float
        seconds of audio per second
    tokens : int
    common_tokens : float | None
        the part of them that is upstream's; 1.0 if they are the same, None without it
    word_error_rate : float | None
        None without a reference
    text : str
    """

    subject: str
    threads: int | None
    times: Times
    ratio: float | None
    speed: float
    tokens: int
    common_tokens: float | None
    word_error_rate: float | None
    text: str


@dataclass(frozen=True)
class Report:
    """Everything; `device` is what torch calls it, and `missing` says who was left out, and why."""

    command: str
    device: str
    machine: dict[str, Any]
    limits: Limits
    model: str
    dims: dict[str, int]
    rounds: int
    n_tokens: int
    audio: str | None
    audio_seconds: float | None
    transcription: dict[str, Any] | None
    subjects: list[SubjectResult]
    transcriptions: list[TranscriptionResult] = field(default_factory=list)
    stages: list[StageResult] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
