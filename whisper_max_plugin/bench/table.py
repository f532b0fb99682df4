"""The report as text."""

from __future__ import annotations

import textwrap

from whisper_max_plugin.bench.results import Report, StageResult, SubjectResult, Times, TranscriptionResult
from whisper_max_plugin.console import aligned, layers_of_model

WIDTH = 120  # of lines of prose


def lines(report: Report) -> list[str]:
    """Return the lines of the text table, the command line first."""
    blocks = [_head(report)]
    if report.transcriptions:
        blocks.append(_transcriptions(report))
    if report.stages:
        blocks.append(_stages(report))
    blocks.append(_subjects(report))
    if notes := _notes(report):
        blocks.append(notes)
    return [line for block in blocks for line in (*block, "")][:-1]


def _head(report: Report) -> list[str]:
    limits, machine = report.limits, report.machine
    read, copied = limits.read_bytes_per_second / 1e9, limits.copy_bytes_per_second / 1e9
    products = [
        f"of {kind} matrices: {speed / 1e9:.0f} GFLOP/s"
        for kind, speed in (("float32", limits.flops_per_second), ("float16", limits.half_flops_per_second))
        if speed is not None
    ]
    gpu = []
    if report.device != "cpu":
        gpu = [
            f"{report.device}: {machine['gpu']} ({machine['architecture']}, {machine['memory'] / 1e9:.0f} GB), "
            f"driver {machine['driver'] or 'unknown'}"
        ]
    return [
        f"$ {report.command}",
        f"{report.model}: {layers_of_model(report.dims)}; median of {report.rounds} interleaved rounds",
        *gpu,
        f"{machine['cpu']}, {machine['processors']} processors; torch {machine['torch']}, max {machine['max']}",
        f"memory {read:.1f} GB/s read, {copied:.1f} GB/s copied; "
        f"products {', '.join(products) or 'were not measured, as torch has no CUDA: OF LIMIT is of memory alone'}",
    ]


def _transcriptions(report: Report) -> list[str]:
    options = report.transcription or {}
    beams = f"beam {options['beam_size']}" if options["beam_size"] else "greedy"
    words = ", word timestamps" if options["word_timestamps"] else ""
    if options["n_tokens"] is None:
        work = ""
    else:
        work = f", exactly {options['n_tokens']} tokens a window, as the end of text and timestamps are suppressed"
    audio = f"{report.audio_seconds:.1f} s of audio, decoded beforehand"
    title = f"transcribe(): {audio}, temperature 0, {beams}{words}{work}"
    rows = [["", "MEDIAN", "MIN - MAX", "RATIO", "AUDIO/TIME", "THREADS", "TOKENS", "AS UPSTREAM", "WER"]]
    titles = _titles(report)
    for result in report.transcriptions:
        rows.append(_transcription_row(titles[result.subject], result))
    if all(row[-1] == "-" for row in rows[1:]):
        rows = [row[:-1] for row in rows]
    return [*textwrap.wrap(title, WIDTH), *aligned(rows, figures=True)]


def _transcription_row(title: str, result: TranscriptionResult) -> list[str]:
    same = result.common_tokens
    return [
        title,
        f"{result.times.median:.3f} s",
        f"{result.times.min:.3f} - {result.times.max:.3f}",
        _ratio(result.ratio),
        f"{result.speed:.1f}x",
        _threads(result.threads),
        str(result.tokens),
        "-" if same is None else "same" if same == 1 else f"{100 * same:.1f} %",
        "-" if result.word_error_rate is None else f"{100 * result.word_error_rate:.1f} %",
    ]


def _stages(report: Report) -> list[str]:
    titles = _titles(report)
    rows = [["", "MEDIAN", "MIN - MAX", "ON DEVICE", "RATIO", "THREADS", "MUST MOVE", "COMPUTE", "OF LIMIT"]]
    previous = None
    for result in report.stages:
        if result.stage != previous:
            rows.append([result.title, *[""] * 8])
            previous = result.stage
        rows.append(_stage_row(f"  {titles[result.subject]}", result))
    if not _has_device_seconds(report):
        rows = [[*row[:3], *row[4:]] for row in rows]
    return [f"Stages (a step is the mean of {report.n_tokens}, with filters and search)", *aligned(rows, figures=True)]


def _has_device_seconds(report: Report) -> bool:
    return any(result.device_seconds is not None for result in report.stages)


def _stage_row(title: str, result: StageResult) -> list[str]:
    return [
        title,
        *_milliseconds(result.times),
        "-" if result.device_seconds is None else f"{1e3 * result.device_seconds:.3f} ms",
        _ratio(result.ratio),
        _threads(result.threads),
        f"{result.n_bytes / 1e6:.1f} MB",
        f"{result.flops / 1e9:.2f} GFLOP",
        f"{100 * result.limit_part:.0f} %",
    ]


def _subjects(report: Report) -> list[str]:
    rows = [["", "VERSION", "IMPORT", "LOAD", "COMPILE", "PEAK MEMORY"]]
    for subject in report.subjects:
        rows.append(
            [
                subject.title,
                subject.version or "-",
                f"{subject.import_seconds:.2f} s",
                f"{subject.load_seconds:.2f} s",
                _compiling(subject),
                f"{subject.peak_bytes / 1e6:.0f} MB",
            ]
        )
    return ["Start and memory", *aligned(rows, figures=True)]


def _compiling(subject: SubjectResult) -> str:
    if subject.compile_seconds is None:
        return "-"
    return f"{subject.compile_seconds:.1f} s" if subject.compile_seconds else "cached"


def _notes(report: Report) -> list[str]:
    notes = [
        "RATIO: how many times faster than upstream. MUST MOVE, COMPUTE: weights, keys, values, input and output once, "
        "and products in floating point.",
        "OF LIMIT: the time that this takes at the measured bandwidth or product speed, whichever is longer, as a part "
        "of the median; int8 products, or faster ones than torch's, may exceed it.",
    ]
    if report.device != "cpu":
        notes.append(
            "Times are of a caller's clock, read when the device has finished; whisper-max's include its input's way "
            "from the host and its output's back. PEAK MEMORY is of the host."
        )
    if _has_device_seconds(report):
        notes.append(
            "ON DEVICE: for how long the GPU was at work on graphs in one further call, by events before and behind "
            "each; the rest is copies and the host."
        )
    notes += [f"{subject.title}: {subject.note}." for subject in report.subjects if subject.note]
    return [line for note in notes + report.missing for line in textwrap.wrap(note, WIDTH, subsequent_indent="  ")]


def _titles(report: Report) -> dict[str, str]:
    return {subject.name: subject.title for subject in report.subjects}


def _milliseconds(times: Times) -> list[str]:
    digits = 2 if times.median < 0.1 else 1
    median, least, most = (f"{1e3 * seconds:.{digits}f}" for seconds in (times.median, times.min, times.max))
    return [f"{median} ms", f"{least} - {most}"]


def _ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"


def _threads(threads: int | None) -> str:
    return "own" if threads is None else str(threads)
