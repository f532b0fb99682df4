"""Runs the subjects in turns, round by round, each in its own process and with its best number of threads."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from whisper_max_plugin.bench import calibration, stages
from whisper_max_plugin.bench.machine import Limits, measure_limits
from whisper_max_plugin.bench.plan import TRANSCRIBE, Plan, Progress
from whisper_max_plugin.bench.protocol import Decoded, Kind, Loaded
from whisper_max_plugin.bench.worker import Worker, in_child


@dataclass
class Measured:
    """What one process of a subject measured.

    Attributes
    ----------
    kind : Kind
    threads : int | None
    compile_seconds : float | None
        see `Subject.prepare`
    loaded : Loaded
    decoded : list[Decoded]
        of each round; empty if another process of the subject is faster at it, or none can
    stages : dict[str, list[float]]
        seconds of each round, where this process is the subject's fastest
    device_seconds : dict[str, float | None]
        of them, see `Subject.device_seconds`
    peak_bytes : int
        behind ``transcribe()`` or, where there is none, behind the stages
    """

    kind: Kind
    threads: int | None
    compile_seconds: float | None
    loaded: Loaded
    decoded: list[Decoded] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=dict)
    device_seconds: dict[str, float | None] = field(default_factory=dict)
    peak_bytes: int = 0


@dataclass(frozen=True)
class _Running:
    worker: Worker
    work: Sequence[str]
    measured: Measured


def run(plan: Plan, progress: Progress) -> tuple[Limits, list[Measured]]:
    """Measure everything in `plan`.

    The machine's limits are measured before and after, and the better ones taken, as others may be using it too.

    Raises
    ------
    SubjectError
        if a subject fails
    """
    progress.doing("measuring this machine")
    limits: Limits = in_child(measure_limits, plan.setup.device)
    compile_seconds: dict[object, float | None] = {}
    for kind in {kind.prepared: kind for kind in plan.kinds}.values():
        progress.doing(f"preparing {kind.title}")
        with Worker(kind, plan.setup_of(kind, None), plan.environment(kind)) as worker:
            compile_seconds[kind.prepared] = worker.prepare()
    choices = [(kind, calibration.thread_choices(plan, kind, progress)) for kind in plan.kinds]
    with contextlib.ExitStack() as stack:
        running = []
        for kind, choice in choices:
            for threads, work in choice.items():
                progress.doing(f"loading {kind.title}")
                worker = stack.enter_context(Worker(kind, plan.setup_of(kind, threads), plan.environment(kind)))
                measured = Measured(kind, threads, compile_seconds[kind.prepared], worker.load())
                can = [TRANSCRIBE, *worker.stages()]
                running.append(_Running(worker, [one for one in work if one in can], measured))
        progress.begin(plan.rounds * sum(len(process.work) for process in running))
        _transcribe(plan, running, progress)
        _run_stages(plan, running, progress)
    progress.doing("measuring this machine")
    return limits.better_of(in_child(measure_limits, plan.setup.device)), [process.measured for process in running]


def _transcribe(plan: Plan, running: Sequence[_Running], progress: Progress) -> None:
    if plan.transcription is None:
        return
    processes = [process for process in running if TRANSCRIBE in process.work]
    short = replace(plan.transcription, seconds=calibration.SECONDS)
    for process in processes:  # kernels and buffers are warm then
        process.worker.transcribe(short)
    for _ in range(plan.rounds):
        for process in processes:
            progress.turn(f"transcribe(): {process.measured.kind.title}")
            process.measured.decoded.append(process.worker.transcribe(plan.transcription))
    for process in processes:
        process.measured.peak_bytes = process.worker.peak_bytes()


def _run_stages(plan: Plan, running: Sequence[_Running], progress: Progress) -> None:
    for stage in plan.stages:
        processes = [process for process in running if stage in process.work]
        for _ in range(plan.rounds):
            for process in processes:
                progress.turn(f"{stages.TITLES[stage]}: {process.measured.kind.title}")
                seconds = process.measured.stages.setdefault(stage, [])
                seconds.append(process.worker.turn(stage, plan.n_tokens))
        for process in processes:
            process.measured.device_seconds[stage] = process.worker.device_seconds(stage, plan.n_tokens)
    for process in running:
        if not process.measured.decoded:
            process.measured.peak_bytes = process.worker.peak_bytes()
