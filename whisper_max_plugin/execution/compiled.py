"""The compiled graphs of a model's size, and for which models, devices and precisions there are any."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from max.engine import CompiledModel
from torch import Tensor

from whisper_max_plugin.errors import DeviceError, PrecisionError
from whisper_max_plugin.execution import artifacts
from whisper_max_plugin.execution.devices import Device
from whisper_max_plugin.execution.session import session
from whisper_max_plugin.execution.weights import types_for
from whisper_max_plugin.graphs import LARGEST_VECTOR, Types, build_module, has_kernels
from whisper_max_plugin.precision import DEFAULT

if TYPE_CHECKING:
    from whisper.model import ModelDimensions

HEAD_ON_GPU = 64
WIDEST_ON_GPU = 1280  # for a token, see `kernels/gpu_tensor_linear.mojo`


def check_sizes(dims: ModelDimensions) -> None:
    """Refuse a model that kernels on GPUs cannot serve; MAX's own operations would round more than float32 does.

    Raises
    ------
    DeviceError
        if its heads are not of 64 values, as those of all of OpenAI's models are, or its text is wider than theirs
    """
    reason = None
    heads = {dims.n_audio_state // dims.n_audio_head, dims.n_text_state // dims.n_text_head}
    if heads != {HEAD_ON_GPU}:
        reason = f"heads of {HEAD_ON_GPU} values, and this model has heads of {' and '.join(map(str, sorted(heads)))}"
    elif dims.n_text_state > WIDEST_ON_GPU:
        reason = f"up to {WIDEST_ON_GPU} values for a token, and this model has {dims.n_text_state}"
    if reason is not None:
        raise DeviceError(
            f'graphs on GPUs are for {reason}: load it with device="cpu" (on the command line --device cpu)'
        )


def check_precision(precision: str, dims: ModelDimensions, device: Device) -> None:
    """Refuse a precision other than the default where there are no kernels for it.

    Raises
    ------
    PrecisionError
        for int8 on a GPU, and for a model whose step is not a graph of kernels
    """
    if precision == DEFAULT:
        return
    if device.index is not None and precision == "int8":
        raise PrecisionError(
            f"precision={precision!r} is for the CPU and this is {device.name}: leave it out, or load the model with "
            'device="cpu" (on the command line --device cpu)'
        )
    if not has_kernels(dims):
        raise PrecisionError(
            f"precision={precision!r} is for models whose heads have a multiple of {LARGEST_VECTOR} values, and this "
            "one's have not: leave it out"
        )


def checked_types(dims: ModelDimensions, state: Mapping[str, Tensor], precision: str, device: Device) -> Types:
    """Return `types_for` of a model that there are kernels for.

    Raises
    ------
    DeviceError
        see `check_sizes`
    PrecisionError
        see `check_precision` and `types_for`
    """
    if device.index is not None:
        check_sizes(dims)
    check_precision(precision, dims, device)
    return types_for(state, precision, device)


_compiled: dict[tuple[tuple[int, ...], Types, str], CompiledModel] = {}
_compile_lock = threading.Lock()


def compile_graphs(dims: ModelDimensions, types: Types, device: Device) -> CompiledModel:
    """Return the compiled graphs of `dims`: from this process, from the cache on disk, or compiled now.

    Raises
    ------
    DeviceError
        if `device` is a GPU that MAX cannot compile for
    RuntimeError
        if MAX cannot compile for the CPU
    """
    key = tuple(vars(dims).values()), types, device.kind
    with _compile_lock:
        if key not in _compiled:
            build = partial(build_module, dims, types, device.ref)
            try:
                _compiled[key] = artifacts.obtain(session(device), dims, str(types), device.kind, build)
            except RuntimeError as error:
                if device.index is None:
                    raise
                architecture, reason = device.kind.partition("-")[0], str(error).strip().partition("\n")[0]
                raise DeviceError(
                    f"MAX cannot compile for {device.name}, which is {architecture} ({reason}): choose another device, "
                    'or device="cpu" (on the command line --device cpu)'
                ) from error
        return _compiled[key]
