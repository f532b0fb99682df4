"""The accelerated model: a real `whisper.Whisper` whose encoder and decoder run compiled graphs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from whisper.model import ModelDimensions, Whisper

from . import artifacts, checkpoint
from .decoding import decode as decode_function
from .engine import DEVICE, artifact_precision, compile_graphs
from .errors import DeviceError, UnknownModelError
from .kv_cache import KVCache
from .modules import MaxAudioEncoder, MaxTextDecoder
from .runtime import Runtime
from .sizes import OFFICIAL_DIMS
from .threads import OneTorchThread
from .weights import stored_dtype


class MaxWhisper(Whisper):
    """Upstream's model with graphs in its forward passes; everything else is inherited.

    Made by `load` or `accelerate`. It can be copied and pickled: the copy compiles nothing, and binds its own
    parameters to the graphs when it first runs.
    """

    decode = decode_function

    def install_kv_cache_hooks(
        self, cache: Mapping[nn.Module, Tensor] | None = None
    ) -> tuple[KVCache, list[OneTorchThread]]:
        """
        The `MultiHeadAttention` module optionally accepts `kv_cache` which stores the key and value
        tensors calculated for the previous positions. This method returns a dictionary that stores
        all caches, and the necessary hooks for the key and value projection modules that save the
        intermediate tensors to be reused during later calculations.

        Returns
        -------
        cache : Dict[nn.Module, torch.Tensor]
            A dictionary object mapping the key/value projection modules to its cache
        hooks : List[RemovableHandle]
            List of PyTorch RemovableHandle objects to stop the hooks to be called

        Notes
        -----
        The dictionary is a `KVCache`, which the decoder's graph extends by itself, so that no hooks are necessary.
        What is to be removed in their place, after decoding, is the limit of torch to one thread.
        """
        return KVCache(self.decoder, cache), [OneTorchThread()]


def accelerate(model: Whisper) -> MaxWhisper:
    """Turn `model`, in place, into one that runs on MAX graphs; its parameters stay where they are.

    The graphs are compiled here, or found in the cache, so that whatever can fail fails now.

    Raises
    ------
    CheckpointError
        if the model's tensors are not exactly those of its dimensions
    RuntimeError
        if MAX cannot compile the graphs
    """
    # Changing the classes keeps the parameters, hooks and attributes that the modules have; building upstream's
    # modules a second time would take as long as loading, only to throw the first ones away.
    model.__class__ = MaxWhisper
    model.encoder.__class__ = MaxAudioEncoder
    model.decoder.__class__ = MaxTextDecoder
    runtime = Runtime(model.dims, model.encoder, model.decoder)
    model.encoder.runtime = model.decoder.runtime = runtime
    runtime.engine()
    return model


def load(
    name: str,
    *,
    device: str | torch.device | None,
    download_root: str | None,
    in_memory: bool,
    upstream_load_model: Callable[..., Whisper],
) -> MaxWhisper:
    """Load a model as `whisper.load_model` does, and accelerate it.

    Raises
    ------
    DeviceError
        if `device` is not one that graphs run on
    CheckpointError
        if the checkpoint is damaged, carries code, or its tensors are not those of its dimensions
    RuntimeError
        upstream's errors: no such model, failed download
    """
    _check_device(device)
    if name not in OFFICIAL_DIMS and os.path.isfile(name):  # upstream verifies downloads by their SHA-256
        checkpoint.read(name)
    return accelerate(upstream_load_model(name, device="cpu", download_root=download_root, in_memory=in_memory))


@dataclass(frozen=True)
class WarmupResult:
    """What `warmup` did for one model."""

    name: str
    dims: ModelDimensions
    seconds: float
    cached: bool


def warmup(name: str, device: str | torch.device | None = None) -> WarmupResult:
    """Compile the graphs that `name` needs, unless they are cached; an official model is not downloaded for it.

    Raises
    ------
    UnknownModelError
        if `name` is neither an official model nor a file
    DeviceError
        if `device` is not one that graphs run on
    CheckpointError
        if the file is not a usable checkpoint
    """
    _check_device(device)
    if name in OFFICIAL_DIMS:
        dims, stored = OFFICIAL_DIMS[name], torch.float16  # as OpenAI publishes them
    elif os.path.isfile(name):
        dims, state = checkpoint.read(name)
        stored = stored_dtype(state)
    else:
        raise UnknownModelError(
            f"no model {name!r}: give the path of a checkpoint, or one of {', '.join(OFFICIAL_DIMS)}"
        )
    cached = artifacts.is_cached(dims, artifact_precision(stored), DEVICE)
    started = time.monotonic()
    compile_graphs(dims, stored)
    return WarmupResult(name, dims, time.monotonic() - started, cached)


def _check_device(device: str | torch.device | None) -> None:
    if device is not None and torch.device(device).type != "cpu":
        raise DeviceError(
            f"the backend 'max' runs on the CPU in this release, not on {str(device)!r}: "
            'pass device="cpu" (on the command line --device cpu), or backend="torch"'
        )
