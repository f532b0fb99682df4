"""What validate.py found, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def problem_of(found: dict[str, Any]) -> str | None:
    """Return what a step itself says is wrong."""
    parity = found.get("parity")
    if parity is None:
        problem: str | None = found.get("problem")
        return problem
    problems = [parity["problem"]] if parity["problem"] else []
    for model in parity["models"]:
        problems += [model["problem"]] if model["problem"] else []
        problems += [f"{row['name']} {row['note'] or _error(row['error'])}" for row in model["rows"] if not row["ok"]]
    return "; ".join(problems) or None


def markdown(told: dict[str, Any]) -> str:
    """Return the report: facts, one line for each step, errors, transcripts, times."""
    steps = told["steps"]
    facts = next((step["found"] for step in steps if step["name"] == "facts"), {})
    correct = [step for step in steps if step["about"] == "correctness"]
    n_passed = sum(step["result"] == "pass" for step in correct)
    parts = [
        f"# Validation on {facts.get('gpu') or told['device']}",
        f"{n_passed} of {len(correct)} steps about correctness passed.",
        _table([["", ""], *([key, _text(value)] for key, value in facts.items())]),
        "## Steps",
        _table(
            [["step", "result", "seconds", "what was found"]]
            + [[step["name"], step["result"], f"{step['seconds']:.1f}", _found(step)] for step in steps]
        ),
    ]
    for title, rows in (
        ("Graphs against torch: largest error, as a part of the largest value", _parity(steps)),
        ("Transcripts against upstream's, by torch on the CPU", _transcripts(steps)),
        ("Parts of the model, milliseconds", _stages(steps)),
        ("Whole transcriptions", _transcriptions(steps)),
    ):
        if len(rows) > 1:
            parts += [f"## {title}", _table(rows)]
    left_out = dict.fromkeys(line for step in steps for line in step["found"].get("missing", []))
    return "\n\n".join([*parts, *left_out]) + "\n"


def _found(step: dict[str, Any]) -> str:
    if step["problem"]:
        return step["problem"]
    found = step["found"]
    if "parity" in found:
        errors = [row["error"] for model in found["parity"]["models"] for row in model["rows"]]
        return f"largest error {_error(max(errors))}"
    if "transcripts" in found:
        n_equal = sum(row["equal_tokens"] for row in found["transcripts"])
        n_steps = found["graph_runs"].get("step", 0)
        return f"{n_equal} tokens are upstream's; {found['steps_replayed']} of {n_steps} steps were replayed"
    if "kernels" in found:
        times = [f"{1e3 * found[key]:.3f} ms" for key in ("replay_seconds", "replay_seconds_by_clock")]
        n_kernels, of_limit = sum(found["kernels"].values()), f"{100 * found['limit_part']:.0f} %"
        return f"{n_kernels} kernels; a step takes {times[0]} by events, {times[1]} by the clock, {of_limit} of limit"
    return "; ".join(f"{row['subject']} {row['times']['median']:.3f} s" for row in found.get("transcriptions", []))


def _parity(steps: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows = [["model", "encoder", "prefill", "steps", "beams", "ranking", "alignment", "words", "tokens"]]
    for step in steps:
        for model in step["found"].get("parity", {}).get("models", []):
            errors = {row["name"]: row["error"] for row in model["rows"]}
            counted = [row for row in model["rows"] if row["tokens"] is not None]
            tokens = "; ".join(f"{row['equal_tokens']} of {row['tokens']}" for row in counted)
            size = step["name"].partition(" ")[2]
            rows.append([size, *(_error(errors.get(name)) for name in rows[0][1:-1]), tokens])
    return rows


def _transcripts(steps: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows = [["options", "equal tokens", "score error", "word time error, s", "seconds"]]
    for step in steps:
        for row in step["found"].get("transcripts", []):
            equal = f"{row['equal_tokens']} of {row['tokens']}"
            errors = [_error(row["score_error"]), _error(row["word_time_error"])]
            rows.append([row["options"], equal, *errors, f"{row['seconds']:.2f}"])
    return rows


def _stages(steps: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows = [["size", "part", "whose", "median", "least", "most", "on device", "times upstream", "of limit"]]
    for step in steps:
        for stage in step["found"].get("stages", []):
            times = [f"{1e3 * stage['times'][key]:.3f}" for key in ("median", "min", "max")]
            on_device = stage["device_seconds"]
            times.append("-" if on_device is None else f"{1e3 * on_device:.3f}")
            last = [_ratio(stage["ratio"]), f"{100 * stage['limit_part']:.0f} %"]
            rows.append([step["name"].partition(" ")[2], stage["title"], stage["subject"], *times, *last])
    return rows


def _transcriptions(steps: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows = [["recording", "whose", "seconds", "audio per second", "times upstream", "tokens"]]
    for step in steps:
        for row in step["found"].get("transcriptions", []):
            speed = [f"{row['times']['median']:.3f}", f"{row['speed']:.0f}", _ratio(row["ratio"]), str(row["tokens"])]
            rows.append([step["name"].partition(" ")[2], row["subject"], *speed])
    return rows


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _text(value: object) -> str:
    return "-" if value is None else str(value)


def _error(error: float | None) -> str:
    return "-" if error is None else f"{error:.1e}"


def _ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"
