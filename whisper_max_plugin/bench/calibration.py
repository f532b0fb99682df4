"""Finds the number of threads at which a subject is the fastest: one, or all."""

from __future__ import annotations

from dataclasses import replace

from whisper_max_plugin.bench.machine import n_processors
from whisper_max_plugin.bench.plan import TRANSCRIBE, Plan, Progress
from whisper_max_plugin.bench.protocol import Kind
from whisper_max_plugin.bench.worker import Worker

SECONDS = 30.0  # of the recording
TOKENS = 10
ROUNDS = 2


def thread_choices(plan: Plan, kind: Kind, progress: Progress) -> dict[int | None, list[str]]:
    """Return numbers of threads, and what each is the best for; None stands for the subject's own default."""
    if plan.threads is not None:
        return {plan.threads: plan.work(kind)}
    if plan.on_gpu or not kind.thread_choice:
        return {None: plan.work(kind)}
    if n_processors() == 1:
        return {1: plan.work(kind)}
    seconds: dict[int, dict[str, float]] = {}
    for threads in (1, n_processors()):
        progress.doing(f"trying {kind.title} with {threads} thread{'s' if threads > 1 else ''}")
        with Worker(kind, plan.setup_of(kind, threads)) as worker:
            worker.load()
            seconds[threads] = _calibrate(plan, kind, worker)
    choices: dict[int | None, list[str]] = {}
    for work in seconds[1]:
        choices.setdefault(min(seconds, key=lambda threads: seconds[threads][work]), []).append(work)
    return choices


def _calibrate(plan: Plan, kind: Kind, worker: Worker) -> dict[str, float]:
    """Time everything shortly."""
    seconds = {}
    if plan.transcription is not None and plan.transcribes(kind):
        short = replace(plan.transcription, seconds=SECONDS)
        seconds[TRANSCRIBE] = min(worker.transcribe(short).seconds for _ in range(ROUNDS))
    for stage in worker.stages():
        if stage in plan.stages:
            seconds[stage] = min(worker.turn(stage, min(plan.n_tokens, TOKENS)) for _ in range(ROUNDS))
    return seconds
