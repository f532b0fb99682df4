"""Every graph of a model against what upstream computed, for ``doctor --parity`` and the first load on a GPU."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from whisper.model import Whisper

from whisper_max_plugin.doctor import parity_checks as checks
from whisper_max_plugin.errors import CheckpointError, MemoryFullError
from whisper_max_plugin.inference.model import MaxWhisper
from whisper_max_plugin.inference.search import STEPS_AHEAD
from whisper_max_plugin.precision import DEFAULT
from whisper_max_plugin.report import REPORT

LIMITS = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1, "int8": 1e-1}
"""Of the largest magnitude that upstream computes, in float32: for each precision, much more than it rounds."""


@dataclass(frozen=True)
class Row:
    """One check of one model.

    Attributes
    ----------
    name, compared : str
        a word, and what was compared
    ok : bool
        graphs computed it, without a fallback, and the error is within the limit
    error : float | None
        the largest one, as a part of the largest magnitude expected; None when there is no finite one
    limit : float
    tokens, equal_tokens : int | None
        how many tokens were chosen, and how many of them are upstream's; None where none are chosen
    note : str | None
        why it is not ok, or which tokens differ
    """

    name: str
    compared: str
    ok: bool
    error: float | None = None
    limit: float = LIMITS[DEFAULT]
    tokens: int | None = None
    equal_tokens: int | None = None
    note: str | None = None


@dataclass(frozen=True)
class Check:
    """One comparison: what `compute` returns for either model; `graph` is the one that has to run for it.

    With `rounds` the graph computes in the model's precision, and the limit of its error is for that.
    """

    name: str
    compared: str
    graph: str
    compute: Callable[[Whisper, checks.Window, checks.Results], list[Tensor]]
    rounds: bool = True


CHECKS = (
    Check("mel", "spectrogram of 30 s", "log_mel", checks.mel, rounds=False),
    Check("encoder", "audio features of 30 s", "encoder", checks.encoder),
    Check("prefill", f"logits of {checks.N_PROMPT} tokens", "prefill", checks.prefill),
    Check("steps", f"logits of {checks.N_STEPS} cached greedy steps", "step", checks.steps),
    Check("beams", f"logits of {checks.N_PASSES} passes of {checks.N_BEAM} reordered beams", "step", checks.beams),
    Check("ranking", f"the best {checks.N_BEAM} tokens of {checks.N_STEPS} steps", "search", checks.ranking),
    Check("alignment", f"cross-attention scores of {checks.N_ALIGNED} tokens", "cross_scores", checks.alignment),
    Check("words", "probabilities and filtered attention of tokens", "alignment", checks.words, rounds=False),
)


def compute_upstreams(model: Whisper, window: checks.Window) -> checks.Results:
    """Compute with upstream's `model` what `compare` compares with.

    Raises
    ------
    CheckpointError
        if the results hold NaN or infinite values
    """
    upstreams: checks.Results = {}
    with torch.no_grad():
        for check in CHECKS:
            upstreams[check.name] = check.compute(model, window, upstreams)
            if not _all_finite(upstreams[check.name]):
                raise CheckpointError(f"upstream's own result of {check.name!r} holds NaN or infinite values")
    return upstreams


def compare(model: MaxWhisper, window: checks.Window, upstreams: checks.Results) -> list[Row]:
    """Run every check on graphs, and compare with what upstream's model computed in float32."""
    with torch.no_grad():
        rows = [_compare(check, model, window, upstreams) for check in CHECKS]
        if model.decoder.runtime.device.shares_memory:
            return rows
        return [*rows, _compare_steps_ahead(model, window, upstreams)]


def _compare(check: Check, model: MaxWhisper, window: checks.Window, upstreams: checks.Results) -> Row:
    """Compute on graphs, and compare with upstream's results."""
    expected = upstreams[check.name]
    before = REPORT.snapshot()
    try:
        actual = check.compute(model, window, upstreams)
    except MemoryFullError:  # which tells nothing of what is computed
        raise
    except (RuntimeError, ValueError) as failure:  # MAX raises both, and so do the plugin's own checks
        return Row(check.name, check.compared, False, note=f"failed: {failure}")
    after = REPORT.snapshot()
    if fallbacks := added("fallbacks", before, after):
        return Row(check.name, check.compared, False, note=f"fell back to torch: {'; '.join(fallbacks)}")
    if check.graph not in added("graph_runs", before, after):
        return Row(check.name, check.compared, False, note=f"the graph {check.graph!r} did not run")
    shapes, wanted = [tuple(x.shape) for x in actual], [tuple(x.shape) for x in expected]
    if shapes != wanted:
        return Row(check.name, check.compared, False, note=f"results of shapes {shapes} instead of {wanted}")
    if not _all_finite(actual):
        return Row(check.name, check.compared, False, note="the result of the graph holds NaN or infinite values")
    error = max(_relative_error(*pair) for pair in zip(actual, expected, strict=True))
    limit = LIMITS[(check.rounds and model.decoder.runtime.precision) or DEFAULT]
    row = Row(check.name, check.compared, error <= limit, error, limit)
    return _with_tokens(row, actual, expected, window) if check.compute is checks.steps else row


def _compare_steps_ahead(model: MaxWhisper, window: checks.Window, upstreams: checks.Results) -> Row:
    """Compare the tokens of steps that the host does not wait for with those of steps that it looks at one by one."""
    name, compared = "ahead", f"tokens of {checks.N_STEPS} steps, {STEPS_AHEAD} at a time"
    try:
        actual, expected = (checks.greedy(model, window, upstreams, n_ahead) for n_ahead in (STEPS_AHEAD, 1))
    except MemoryFullError:  # which tells nothing of what is computed
        raise
    except (RuntimeError, ValueError) as failure:
        return Row(name, compared, False, note=f"failed: {failure}")
    n_tokens, n_equal = len(actual), sum(map(operator.eq, actual, expected))
    note = None if actual == expected else "steps one by one chose others"
    return Row(name, compared, actual == expected, 0.0, tokens=n_tokens, equal_tokens=n_equal, note=note)


def _with_tokens(row: Row, actual: Sequence[Tensor], expected: Sequence[Tensor], window: checks.Window) -> Row:
    """Compare the token that each step chooses, and tell of those that differ whether rounding may decide so."""
    notes = []
    for step, (logits, wanted) in enumerate(zip(actual, expected, strict=True), start=1):
        token, upstreams = int(window.best(logits)), int(window.best(wanted))
        if token != upstreams:
            gap = float((wanted[0, upstreams] - wanted[0, token]) / wanted.abs().max())
            # errors within the limit may lower the one's logit and raise the other's
            kind = "near tie" if gap <= 2 * row.limit else "clear choice"
            notes.append(f"step {step} chose token {token}, upstream {upstreams}: a {kind}, {gap:.1e} apart")
    return replace(row, tokens=len(actual), equal_tokens=len(actual) - len(notes), note="; ".join(notes) or None)


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    largest = expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny)  # a model may return nothing but zeros
    return float((actual - expected).abs().max() / largest)


def _all_finite(results: Sequence[Tensor]) -> bool:
    return all(bool(torch.isfinite(result).all()) for result in results)


def added(counter: str, before: dict[str, Any], after: dict[str, Any]) -> dict[str, int]:
    """What one of the report's counters counted between two snapshots."""
    return {
        kind: n - before[counter].get(kind, 0) for kind, n in after[counter].items() if n > before[counter].get(kind, 0)
    }
