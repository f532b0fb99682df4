"""The self-check behind ``whisper-max doctor --parity``: one model on torch and on graphs, result by result.

Upstream's model computes everything first and is accelerated in place then, so that its weights lie in memory once.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import whisper
from torch import Tensor
from whisper.model import Whisper

from .. import audio, environment, loading
from ..errors import CheckpointError, UnknownModelError, WhisperMaxError
from ..execution import devices
from ..inference.model import MaxWhisper, accelerate
from ..inference.search import STEPS_AHEAD
from ..report import REPORT
from . import parity_checks as checks

LIMIT = 1e-4  # of the largest magnitude that upstream computes; float32 noise is about 1e-6
DISTRIBUTIONS = ("whisper-max-plugin", "max", "torch", "openai-whisper")


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
    limit: float = LIMIT
    tokens: int | None = None
    equal_tokens: int | None = None
    note: str | None = None


@dataclass(frozen=True)
class Parity:
    """What the checks of one model found; `problem` says why it could not be checked, and there are no rows then."""

    model: str
    ok: bool
    problem: str | None = None
    dims: dict[str, int] = field(default_factory=dict)
    precision: str | None = None
    device: str | None = None
    rows: list[Row] = field(default_factory=list)
    graph_runs: dict[str, int] = field(default_factory=dict)
    fallbacks: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """One comparison: what `compute` returns for either model; `graph` is the one that has to run for it."""

    name: str
    compared: str
    graph: str
    compute: Callable[[Whisper, checks.Window, checks.Results], list[Tensor]]


CHECKS = (
    Check("encoder", "audio features of 30 s", "encoder", checks.encoder),
    Check("prefill", f"logits of {checks.N_PROMPT} tokens", "prefill", checks.prefill),
    Check("steps", f"logits of {checks.N_STEPS} cached greedy steps", "step", checks.steps),
    Check("beams", f"logits of {checks.N_PASSES} passes of {checks.N_BEAM} reordered beams", "step", checks.beams),
    Check("ranking", f"the best {checks.N_BEAM} tokens of {checks.N_STEPS} steps", "search", checks.ranking),
    Check("alignment", f"cross-attention scores of {checks.N_ALIGNED} tokens", "cross_scores", checks.alignment),
)


def machine() -> dict[str, str | None]:
    """Return versions of the libraries, and what they run on."""
    versions = {name: environment.version(name) for name in DISTRIBUTIONS}
    cpu = f"{_cpu_name()} ({torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads)"
    return {**versions, "python": platform.python_version(), "platform": platform.platform(), "cpu": cpu}


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def choose_models(names: Sequence[str]) -> list[str]:
    """Return `names` if each is a model; without any, the smallest model that whisper has downloaded.

    Raises
    ------
    UnknownModelError
        if a name is neither an official model nor a path, or if there is no name and nothing downloaded
    """
    official = whisper.available_models()
    for name in names:
        if name not in official and not os.path.exists(name):
            raise UnknownModelError(
                f"no model {name!r}: give the path of a checkpoint, or one of {', '.join(official)}"
            )
    if names:
        return list(names)
    cache = os.environ.get("XDG_CACHE_HOME", os.path.join(os.path.expanduser("~"), ".cache"))
    folder = Path(cache, "whisper")  # as in `whisper.load_model`
    found = [path for name in official if (path := folder / f"{name}.pt").is_file()]
    if not found:
        raise UnknownModelError(
            f"no model in {folder}: give the path of a checkpoint, or a name for whisper to download, "
            "as in `whisper-max doctor --parity tiny`"
        )
    # The path and not the name, with which upstream would download a damaged file again.
    return [str(min(found, key=lambda path: path.stat().st_size))]


def load_audio(path: str | None) -> Tensor:
    """Return the samples (n_samples,) of the recording at `path`, 16 kHz; for None synthetic sound.

    Raises
    ------
    WhisperMaxError
        if there is no such file, or no audio in it that can be read
    """
    if path is None:
        return checks.synthetic_audio()
    try:
        return torch.from_numpy(audio.load_audio(path))
    except RuntimeError as error:
        raise WhisperMaxError(str(error)) from error


@torch.no_grad()
def check_model(name: str, samples: Tensor, device: str | None = None) -> Parity:
    """Run every check on one model.

    Parameters
    ----------
    name : str
        as ``whisper --model`` takes it; an official model that is not there yet is downloaded, as whisper does
    samples : Tensor, shape = (n_samples,)
        16 kHz; the first 30 s are used
    device : str | None
        what graphs run on, as `whisper.load_model` takes it

    Raises
    ------
    DeviceError
        if graphs do not run on `device`, or it is not there
    """
    graphs_device = devices.find(device)
    try:
        model = _load(name)
        window = checks.prepare(model, samples)
        upstreams = compute_upstreams(model, window)
        accelerated = accelerate(model, graphs_device)
    except OSError as error:
        return Parity(name, False, f"cannot be loaded: {error}")
    except (WhisperMaxError, RuntimeError, ValueError) as error:  # ours, upstream's, torch's and MAX's
        return Parity(name, False, str(error))
    before = REPORT.snapshot()
    rows = compare(accelerated, window, upstreams)
    after = REPORT.snapshot()
    return Parity(
        name,
        all(row.ok for row in rows),
        dims=vars(model.dims),
        precision=after["precision"],
        device=after["device"],
        rows=rows,
        graph_runs=_added("graph_runs", before, after),
        fallbacks=_added("fallbacks", before, after),
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
    """Run every check on graphs, and compare with what upstream's model computed."""
    with torch.no_grad():
        rows = [_compare(check, model, window, upstreams) for check in CHECKS]
        if model.decoder.runtime.device.shares_memory:
            return rows
        return [*rows, _compare_steps_ahead(model, window, upstreams)]


def _load(name: str) -> Whisper:
    """Load upstream's model, whatever is installed at the moment."""
    load_model = inspect.unwrap(whisper.load_model)  # WHISPER_BACKEND may have put ours in front
    return loading.load_unaccelerated(name, upstream_load_model=load_model).eval()


def _compare(check: Check, model: MaxWhisper, window: checks.Window, upstreams: checks.Results) -> Row:
    """Compute on graphs, and compare with upstream's results."""
    expected = upstreams[check.name]
    before = REPORT.snapshot()
    try:
        actual = check.compute(model, window, upstreams)
    except (RuntimeError, ValueError) as failure:  # MAX raises both, and so do the plugin's own checks
        return Row(check.name, check.compared, False, note=f"failed: {failure}")
    after = REPORT.snapshot()
    if fallbacks := _added("fallbacks", before, after):
        return Row(check.name, check.compared, False, note=f"fell back to torch: {'; '.join(fallbacks)}")
    if check.graph not in _added("graph_runs", before, after):
        return Row(check.name, check.compared, False, note=f"the graph {check.graph!r} did not run")
    shapes, wanted = [tuple(x.shape) for x in actual], [tuple(x.shape) for x in expected]
    if shapes != wanted:
        return Row(check.name, check.compared, False, note=f"results of shapes {shapes} instead of {wanted}")
    if not _all_finite(actual):
        return Row(check.name, check.compared, False, note="the result of the graph holds NaN or infinite values")
    error = max(_relative_error(*pair) for pair in zip(actual, expected, strict=True))
    row = Row(check.name, check.compared, error <= LIMIT, error)
    return _with_tokens(row, actual, expected, window) if check.compute is checks.steps else row


def _compare_steps_ahead(model: MaxWhisper, window: checks.Window, upstreams: checks.Results) -> Row:
    """Compare the tokens of steps that the host does not wait for with those of steps that it looks at one by one."""
    name, compared = "ahead", f"tokens of {checks.N_STEPS} steps, {STEPS_AHEAD} at a time"
    try:
        actual, expected = (checks.greedy(model, window, upstreams, n_ahead) for n_ahead in (STEPS_AHEAD, 1))
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
            kind = "near tie" if gap <= 2 * LIMIT else "clear choice"
            notes.append(f"step {step} chose token {token}, upstream {upstreams}: a {kind}, {gap:.1e} apart")
    return replace(row, tokens=len(actual), equal_tokens=len(actual) - len(notes), note="; ".join(notes) or None)


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    largest = expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny)  # a model may return nothing but zeros
    return float((actual - expected).abs().max() / largest)


def _all_finite(results: Sequence[Tensor]) -> bool:
    return all(bool(torch.isfinite(result).all()) for result in results)


def _added(counter: str, before: dict[str, Any], after: dict[str, Any]) -> dict[str, int]:
    """What one of the report's counters counted between two snapshots."""
    return {
        kind: n - before[counter].get(kind, 0) for kind, n in after[counter].items() if n > before[counter].get(kind, 0)
    }
