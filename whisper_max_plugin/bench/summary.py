"""Makes results of what the processes measured: medians, ratios, and parts of the machine's limits."""

from __future__ import annotations

from collections.abc import Sequence

from whisper.model import ModelDimensions

from whisper_max_plugin import environment
from whisper_max_plugin.bench import accuracy, stages
from whisper_max_plugin.bench.machine import Limits
from whisper_max_plugin.bench.plan import Plan
from whisper_max_plugin.bench.results import StageResult, SubjectResult, Times, TranscriptionResult
from whisper_max_plugin.bench.runner import Measured
from whisper_max_plugin.bench.subjects import UPSTREAM


def subject_results(measured: Sequence[Measured]) -> list[SubjectResult]:
    """Return one result for each subject; of its processes, the one that transcribes tells of start and memory."""
    results = []
    for kind in {process.kind.name: process.kind for process in measured}.values():
        processes = [process for process in measured if process.kind.name == kind.name]
        first = max(processes, key=lambda process: (len(process.decoded), len(process.stages)))
        threads = sorted({process.threads for process in processes if process.threads is not None})
        result = SubjectResult(
            name=kind.name,
            title=kind.title,
            version=environment.version(kind.version_of or kind.requirement),
            threads=threads or None,
            import_seconds=first.loaded.import_seconds,
            load_seconds=first.loaded.load_seconds,
            compile_seconds=first.compile_seconds,
            peak_bytes=first.peak_bytes,
            note=kind.note,
        )
        results.append(result)
    return results


def transcription_results(plan: Plan, measured: Sequence[Measured]) -> list[TranscriptionResult]:
    """Return one result for each subject that transcribed, upstream's first."""
    transcribed = [process for process in measured if process.decoded]
    upstream = next((process for process in transcribed if process.kind.name == UPSTREAM.name), None)
    results = []
    for process in transcribed:
        mine = process.decoded
        times = Times.of([decoded.seconds for decoded in mine])
        ratio = common_tokens = None
        if upstream is not None:
            ratio = Times.of([decoded.seconds for decoded in upstream.decoded]).median / times.median
            common_tokens = _common_tokens(plan, mine[-1].tokens, upstream.decoded[-1].tokens)
        error_rate = None
        if plan.reference is not None and plan.transcription is not None:
            error_rate = accuracy.word_error_rate(mine[-1].text, plan.reference, plan.transcription.language)
        result = TranscriptionResult(
            subject=process.kind.name,
            threads=process.threads,
            times=times,
            ratio=ratio,
            speed=plan.audio_seconds / times.median,
            tokens=len(mine[-1].tokens),
            common_tokens=common_tokens,
            word_error_rate=error_rate,
            text=mine[-1].text,
        )
        results.append(result)
    return results


def _common_tokens(plan: Plan, tokens: Sequence[int], expected: Sequence[int]) -> float:
    if all(token < plan.setup.first_timestamp for token in tokens):  # whisper.cpp returns those of the text alone
        expected = [token for token in expected if token < plan.setup.first_timestamp]
    return accuracy.common_tokens(tokens, expected)


def stage_results(plan: Plan, limits: Limits, measured: Sequence[Measured]) -> list[StageResult]:
    """Return one result for each stage of each subject, stage by stage."""
    results = []
    for stage in plan.stages:
        processes = [process for process in measured if stage in process.stages]
        upstream = next((process for process in processes if process.kind.name == UPSTREAM.name), None)
        for process in processes:
            times, storage = Times.of(process.stages[stage]), process.loaded.storage
            cost = stages.cost_of(
                stage,
                ModelDimensions(**plan.setup.dims),
                storage,
                n_tokens=plan.n_tokens,
                n_start=len(plan.setup.start),
            )
            speed = limits.products(half=storage.half_products)
            result = StageResult(
                stage=stage,
                title=stages.title(stage, plan.n_tokens),
                subject=process.kind.name,
                threads=process.threads,
                times=times,
                device_seconds=process.device_seconds[stage],
                ratio=None if upstream is None else Times.of(upstream.stages[stage]).median / times.median,
                n_bytes=cost.n_bytes,
                flops=cost.flops,
                limit_part=cost.seconds(limits.read_bytes_per_second, speed) / times.median,
            )
            results.append(result)
    return results
