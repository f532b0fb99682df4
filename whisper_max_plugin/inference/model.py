"""The accelerated model: a real `whisper.Whisper` whose encoder and decoder run compiled graphs."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from whisper.model import Whisper

from ..execution.devices import HOST, Device
from ..execution.threads import OneTorchThread
from ..precision import DEFAULT
from .decoding import decode as decode_function
from .kv_cache import KVCache
from .modules import MaxAudioEncoder, MaxTextDecoder
from .runtime import Runtime


class MaxWhisper(Whisper):
    """Upstream's model with graphs in its forward passes; everything else is inherited.

    Made by `accelerate`. It can be copied and pickled: the copy compiles nothing, and binds its own
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


def accelerate(model: Whisper, device: Device = HOST, precision: str = DEFAULT) -> MaxWhisper:
    """Turn `model`, in place, into one that runs on MAX graphs; its parameters stay where they are.

    The graphs are compiled here, or found in the cache, so that whatever can fail fails now.

    Raises
    ------
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
    runtime = Runtime(model.dims, model.encoder, model.decoder, device, precision)
    model.encoder.runtime = model.decoder.runtime = runtime
    runtime.engine()
    return model
