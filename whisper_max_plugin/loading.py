"""Loads models onto graphs, as `whisper.load_model` does, and compiles graphs ahead of time."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import whisper
from torch import Tensor
from whisper.model import ModelDimensions, Whisper

from whisper_max_plugin import checkpoints, trial
from whisper_max_plugin.checkpoints.sizes import OFFICIAL_DIMS
from whisper_max_plugin.errors import DeviceError, UnknownModelError
from whisper_max_plugin.execution import artifacts, devices
from whisper_max_plugin.execution.compiled import check_precision, checked_types, compile_graphs
from whisper_max_plugin.execution.devices import Device
from whisper_max_plugin.inference.model import MaxWhisper, accelerate
from whisper_max_plugin.precision import DEFAULT

logger = logging.getLogger(__name__)


def load(
    name: str,
    *,
    device: str | torch.device | None,
    download_root: str | None,
    in_memory: bool,
    upstream_load_model: Callable[..., Whisper],
    precision: str | None = None,
) -> MaxWhisper:
    """Load a model as `whisper.load_model` does, and accelerate it for one of `precision.PRECISIONS`, or by default.

    Raises
    ------
    DeviceError
        if `device` is not one that graphs run on, has no room for the weights, or computes anything else than torch; a
        GPU that nobody asked for gives way to the CPU then, and when its memory is full later, with a warning
    CheckpointError
        if the checkpoint is damaged, carries code, or its tensors are not those of its dimensions
    PrecisionError
        if there are no kernels for `precision`, or no values for the model's weights
    RuntimeError
        upstream's errors: no such model, failed download
    """
    if isinstance(name, bytes):  # a path, as upstream takes it
        name = os.fsdecode(name)
    graphs_device = device_for(device, precision)
    model = load_unaccelerated(
        name, download_root=download_root, in_memory=in_memory, upstream_load_model=upstream_load_model
    )
    check_precision(precision or DEFAULT, model.dims, graphs_device)
    if graphs_device.shares_memory:
        return accelerate(model, graphs_device, precision)
    verify = partial(trial.verify, _path_of(name, download_root), model.dims, graphs_device)
    return accelerate(model, graphs_device, precision, verify, is_asked_for=device is not None)


def device_for(device: str | torch.device | None, precision: str | None) -> Device:
    """Return the device that graphs run on; if none is given, the best that MAX sees and `precision` is for.

    Raises
    ------
    DeviceError
        if graphs do not run on `device`, or it is not there
    """
    return devices.HOST if device is None and precision == "int8" else devices.find(device)


def _path_of(name: str, download_root: str | None) -> str:
    """Return where a model lies that upstream has loaded, as it decides itself."""
    if name not in OFFICIAL_DIMS:
        return name
    return os.path.join(download_root or download_folder(), os.path.basename(whisper._MODELS[name]))


def download_folder() -> str:
    """Return where upstream looks for official models, and downloads them to, if it is told of no other folder."""
    default = os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(os.getenv("XDG_CACHE_HOME", default), "whisper")


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
    found = checkpoints.read(name) if name not in OFFICIAL_DIMS and _is_path(name) else None
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


@dataclass(frozen=True)
class WarmupResult:
    """What `warmup` did for one model."""

    name: str
    dims: ModelDimensions
    seconds: float
    cached: bool


def warmup(name: str, device: str | torch.device | None = None, precision: str | None = None) -> WarmupResult:
    """Compile the graphs that `name` needs, unless they are cached; an official model is not downloaded for it.

    Those of the default precision are the ones that `load` compiles: on a GPU those of float16. A GPU that nobody asked
    for and that nothing can be compiled for gives way to the CPU, with a warning.

    Raises
    ------
    UnknownModelError
        if `name` is neither an official model nor a path
    DeviceError
        if `device` is not one that graphs run on, or MAX cannot compile for it
    CheckpointError
        if what lies at the path is not a usable checkpoint
    PrecisionError
        if there are no kernels for `precision`
    RuntimeError
        if MAX cannot compile for the CPU
    """
    try:
        graphs_device = device_for(device, precision)
    except DeviceError as error:
        if not str(device).startswith("cuda"):
            raise
        raise DeviceError(f"{error}, or compile for a GPU of another machine by whisper-max warmup --target") from error
    if name in OFFICIAL_DIMS:
        dims, state = OFFICIAL_DIMS[name], {}  # of no weights at all, all are exact in float16, as OpenAI's are
    elif _is_path(name):
        found = checkpoints.read(name)
        dims, state = found.dims, dict(found.state)
    else:
        raise UnknownModelError.of(name, OFFICIAL_DIMS)
    try:
        return _warmup(name, dims, state, graphs_device, precision)
    except DeviceError as error:
        if device is not None:
            raise
        logger.warning("compiling for the CPU, where the model will run, because %s", error)
        return _warmup(name, dims, state, devices.HOST, precision)


def _warmup(
    name: str, dims: ModelDimensions, state: Mapping[str, Tensor], device: Device, precision: str | None
) -> WarmupResult:
    chosen = precision or ("float16" if device.computes_in_half else DEFAULT)
    types = checked_types(dims, state, chosen, device)
    cached = artifacts.is_cached(dims, str(types), device.kind)
    started = time.monotonic()
    compile_graphs(dims, types, device)
    return WarmupResult(name, dims, time.monotonic() - started, cached)
