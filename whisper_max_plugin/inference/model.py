"""The accelerated model: a real `whisper.Whisper` whose encoder and decoder run compiled graphs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
import whisper.decoding
from torch import Tensor, nn
from whisper.decoding import DecodingResult
from whisper.model import Whisper

from whisper_max_plugin import patches
from whisper_max_plugin.execution.devices import HOST, Device
from whisper_max_plugin.execution.threads import OneTorchThread
from whisper_max_plugin.graphs import Types
from whisper_max_plugin.inference.decoding import decode as decode_function
from whisper_max_plugin.inference.kv_cache import KVCache
from whisper_max_plugin.inference.modules import MaxAudioEncoder, MaxTextDecoder
from whisper_max_plugin.inference.runtime import Runtime


class MaxWhisper(Whisper):
    """Upstream's model with graphs in its forward passes; everything else is inherited.

    Made by `accelerate`. It can be copied and pickled: the copy compiles nothing, and binds its own
    parameters to the graphs when it first runs.
    """

    @functools.wraps(decode_function)
    def decode(self, *arguments: Any, **options: Any) -> DecodingResult | list[DecodingResult]:
        # as upstream's method does, or as what somebody has put in its place
        wrapper = Whisper.decode  # which is `torch.no_grad`'s
        inside = getattr(wrapper, "__wrapped__", wrapper)
        if patches.is_defined_in(wrapper, torch.utils._contextlib) and patches.is_defined_in(inside, whisper.decoding):
            return decode_function(self, *arguments, **options)
        return super().decode(*arguments, **options)

    @property
    def device(self) -> torch.device:
        """Where the parameters are, and inputs have to be.

        While graphs run on a GPU that is "cpu:0". Upstream's functions give up ``fp16`` on a model whose device equals
        "cpu", and the graphs of a GPU do not.
        """
        device: torch.device = super().device
        runtime: Runtime | None = getattr(self.decoder, "runtime", None)  # a decoder of upstream's may be in its place
        half = runtime is not None and runtime.device.computes_in_half
        return torch.device("cpu", 0) if half and device == torch.device("cpu") else device

    def install_kv_cache_hooks(
        self, cache: Mapping[nn.Module, Tensor] | None = None
    ) -> tuple[MutableMapping[nn.Module, Tensor], list[Any]]:
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
        What is to be removed in their place, after decoding, is the limit of torch to one thread. A decoder whose
        passes cannot run on graphs at all gets upstream's dictionary and hooks.
        """
        if not isinstance(self.decoder, MaxTextDecoder) or self.decoder.runtime.why_unbound() is not None:
            cache_and_hooks: tuple[dict[nn.Module, Tensor], list[Any]] = super().install_kv_cache_hooks(cache)
            return cache_and_hooks
        return KVCache(self.decoder, self.decoder.runtime, cache), [OneTorchThread()]


def accelerate(
    model: Whisper,
    device: Device = HOST,
    precision: str | None = None,
    verify: Callable[[Types], None] | None = None,
    *,
    is_asked_for: bool = True,
) -> MaxWhisper:
    """Turn `model`, in place, into one that runs on MAX graphs; its parameters stay where they are.

    The graphs are compiled here, or found in the cache, so that whatever can fail fails now.

    Parameters
    ----------
    model : Whisper
    device : Device
    precision : str | None
        one of `precision.PRECISIONS`, or None for what `Runtime.engine` decides
    verify : Callable[[Types], None] | None
        called before graphs of some types are used for the first time
    is_asked_for : bool
        whether somebody wants this `device`; else the model leaves it for the CPU when it fails, with a warning

    Raises
    ------
    DeviceError
        if the device that was asked for has no room for the weights, or `verify` finds it wrong
    CheckpointError
        if the model's tensors are not exactly those of its dimensions
    PrecisionError
        if there are no kernels for `precision`, or no values for the model's weights
    RuntimeError
        if MAX cannot compile the graphs
    """
    # Changing the classes keeps the parameters, hooks and attributes that the modules have; building upstream's
    # modules a second time would take as long as loading, only to throw the first ones away.
    model.__class__ = MaxWhisper
    model.encoder.__class__ = MaxAudioEncoder
    model.decoder.__class__ = MaxTextDecoder
    runtime = Runtime(model.dims, model.encoder, model.decoder, device, precision, verify, is_asked_for=is_asked_for)
    model.encoder.runtime = model.decoder.runtime = runtime
    runtime.engine()
    return model
