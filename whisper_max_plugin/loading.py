"""Loads models onto graphs, as `whisper.load_model` does, and compiles graphs ahead of time."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from whisper.model import ModelDimensions, Whisper

from .checkpoints import checkpoint
from .checkpoints.sizes import OFFICIAL_DIMS
from .errors import DeviceError, UnknownModelError
from .execution import artifacts, devices
from .execution.devices import Device
from .execution.engine import artifact_precision, check_precision, compile_graphs
from .execution.weights import chosen_dtype, stored_dtype
from .inference.model import MaxWhisper, accelerate
from .precision import DEFAULT

logger = logging.getLogger(__name__)


def load(
    name: str,
    *,
    device: str | torch.device | None,
    download_root: str | None,
    in_memory: bool,
    upstream_load_model: Callable[..., Whisper],
    precision: str = DEFAULT,
) -> MaxWhisper:
    """Load a model as `whisper.load_model` does, and accelerate it for one of `precision.PRECISIONS`.

    Raises
    ------
    DeviceError
        if `device` is not one that graphs run on, or if it computes anything else than torch
    CheckpointError
        if the checkpoint is damaged, carries code, or its tensors are not those of its dimensions
    PrecisionError
        if there are no kernels for `precision`, or no values for the model's weights
    RuntimeError
        upstream's errors: no such model, failed download
    """
    graphs_device = devices.find(device)
    model = load_unaccelerated(
        name, download_root=download_root, in_memory=in_memory, upstream_load_model=upstream_load_model
    )
    check_precision(precision, model.dims, graphs_device)
    if graphs_device.shares_memory:
        return accelerate(model, graphs_device, precision)
    return accelerate_checked(model, graphs_device)


def load_unaccelerated(
    name: str,
    *,
    download_root: str | None = None,
    in_memory: bool = False,
    upstream_load_model: Callable[..., Whisper],
) -> Whisper:
    """Load upstream's model onto the CPU, a path only after strict checks; it may be a folder of Hugging Face.

    Raises
    ------
    CheckpointError
        if the checkpoint is damaged, carries code, or its tensors are not those of its dimensions
    RuntimeError
        upstream's errors: no such model, failed download
    """
    # upstream verifies downloads by their SHA-256
    found = checkpoint.read(name) if name not in OFFICIAL_DIMS and _is_path(name) else None
    if found is not None and os.path.isdir(name):
        model = Whisper(found.dims)
        model.load_state_dict(found.state)
    else:
        model = upstream_load_model(name, device="cpu", download_root=download_root, in_memory=in_memory)
    if found is not None and found.alignment_heads is not None:
        model.set_alignment_heads(found.alignment_heads)
    return model


def _is_path(name: str) -> bool:
    return os.path.isfile(name) or os.path.isdir(name)


def accelerate_checked(model: Whisper, device: Device) -> MaxWhisper:
    """Accelerate `model` in place, after a comparison with torch, once for a GPU's architecture and a model's size.

    Its kernels, MAX's and the driver meet on the user's machine for the first time, so nothing else can tell.

    Raises
    ------
    DeviceError
        if graphs and torch differ by more than float32's rounding explains
    """
    stored = stored_dtype(model.state_dict())
    record = artifacts.path_of(model.dims, artifact_precision(stored), device.kind).with_suffix(".checked")
    if record.exists():
        return accelerate(model, device)
    from .doctor import comparison, parity_checks

    logger.warning("comparing what %s computes with torch, once for this size of model", device.name)
    window = parity_checks.prepare(model, parity_checks.synthetic_audio())
    upstreams = comparison.compute_upstreams(model, window)
    accelerated = accelerate(model, device)
    wrong = [row for row in comparison.compare(accelerated, window, upstreams) if not row.ok]
    if wrong:
        reasons = "; ".join(f"{row.name} {row.note or f'is off by {row.error:.0e} of the largest'}" for row in wrong)
        raise DeviceError(
            f"what {device.name} computes is not what torch computes ({reasons}): load the model with "
            'device="cpu" (on the command line --device cpu), and report this with the output of `whisper-max doctor`'
        )
    with contextlib.suppress(OSError):  # a cache that cannot be written: the next load compares again
        record.touch()
    return accelerated


@dataclass(frozen=True)
class WarmupResult:
    """What `warmup` did for one model."""

    name: str
    dims: ModelDimensions
    seconds: float
    cached: bool


def warmup(name: str, device: str | torch.device | None = None, precision: str = DEFAULT) -> WarmupResult:
    """Compile the graphs that `name` needs, unless they are cached; an official model is not downloaded for it.

    Raises
    ------
    UnknownModelError
        if `name` is neither an official model nor a path
    DeviceError
        if `device` is not one that graphs run on
    CheckpointError
        if what lies at the path is not a usable checkpoint
    PrecisionError
        if there are no kernels for `precision`
    """
    try:
        graphs_device = devices.find(device)
    except DeviceError as error:
        if torch.device(device or "cpu").type != "cuda":
            raise
        raise DeviceError(f"{error}, or compile for a GPU of another machine by whisper-max warmup --target") from error
    if name in OFFICIAL_DIMS:
        dims = OFFICIAL_DIMS[name]
        stored = (
            torch.float16 if precision == DEFAULT else chosen_dtype({}, precision)
        )  # float16 is what OpenAI publishes
    elif _is_path(name):
        found = checkpoint.read(name)
        dims, stored = found.dims, chosen_dtype(found.state, precision)
    else:
        raise UnknownModelError(
            f"no model {name!r}: give the path of a checkpoint, or one of {', '.join(OFFICIAL_DIMS)}"
        )
    check_precision(precision, dims, graphs_device)
    cached = artifacts.is_cached(dims, artifact_precision(stored), graphs_device.kind)
    started = time.monotonic()
    compile_graphs(dims, stored, graphs_device)
    return WarmupResult(name, dims, time.monotonic() - started, cached)
