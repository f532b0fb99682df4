"""What an accelerated model's encoder and decoder share: the bound engine, and the window they work on."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard, TypeVar

import numpy as np
import torch
from max.driver import Buffer
from torch import Tensor, nn

from whisper_max_plugin.checkpoints.checkpoint import check_state
from whisper_max_plugin.errors import CheckpointError, DeviceError
from whisper_max_plugin.execution.compiled import checked_types
from whisper_max_plugin.execution.devices import HOST, Device
from whisper_max_plugin.execution.engine import CrossKV, Engine
from whisper_max_plugin.execution.threads import OneTorchThread, copied
from whisper_max_plugin.graphs import Types
from whisper_max_plugin.inference.fingerprint import RAW, Fingerprint
from whisper_max_plugin.precision import DEFAULT
from whisper_max_plugin.report import REPORT

if TYPE_CHECKING:
    from whisper.model import AudioEncoder, ModelDimensions, TextDecoder

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class _Computed:
    """A graph's result, a copy of the input it belongs to, and what computed it."""

    engine: weakref.ref[Engine]
    input: Tensor
    output: Any


class _Features(NamedTuple):
    """What an encoder run returned, here and on the device."""

    here: Tensor
    there: Buffer


class _Window(threading.local):
    """The window that a thread works on: threads that decode together have one each."""

    encoded: _Computed | None = None
    projected: _Computed | None = None


class Runtime:
    """Binds a model's parameters to compiled graphs, and remembers each thread's latest window.

    Upstream encodes the same window again for language detection, for each temperature of the fallback and for
    word alignment. The latest mel and its features are kept here, as are the latest features and their
    cross-attention keys and values, and both are compared by content: what is equal is computed once.

    Copies and pickles carry no graphs: the copy binds its own parameters when it first runs.

    Attributes
    ----------
    device : Device
        where graphs run; a model leaves one that nobody asked for when it fails, see `leaves`
    precision : str | None
        what all passes are computed in, or None, see `engine`
    verify : Callable[[Types], None] | None
        called before graphs of some types are bound for the first time; what it raises, `engine` raises
    """

    def __init__(
        self,
        dims: ModelDimensions,
        encoder: AudioEncoder,
        decoder: TextDecoder,
        device: Device,
        precision: str | None = None,
        verify: Callable[[Types], None] | None = None,
        *,
        is_asked_for: bool = True,
    ) -> None:
        self.dims = dims
        self.device = device
        self.precision = precision
        self.verify = verify
        self._is_asked_for = is_asked_for
        self._modules: dict[str, nn.Module] = {"encoder": encoder, "decoder": decoder}
        self._reset()

    def _reset(self) -> None:
        """Be as new: with locks of its own, and no engine."""
        # One pass at a time, since hooks sit on modules that all threads share; `find_alignment` takes it as well,
        # so that its hooks see no other thread's pass.
        self.passes = threading.RLock()
        self._lock = threading.RLock()
        self._engines: dict[str, Engine] = {}  # by their precision
        self._fingerprint: Fingerprint | None = None
        self._mismatch: str | None = None  # between the parameters it was taken of and those of the dimensions
        self._window = _Window()

    def __getstate__(self) -> dict[str, Any]:
        kept = "dims", "device", "precision", "_is_asked_for", "_modules"
        return {name: vars(self)[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.verify = None
        self._reset()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other threads' passes away from the model, and torch's threads from the cores, inside."""
        with self.passes, OneTorchThread():
            yield

    def engine(self, dtype: torch.dtype = torch.float16) -> Engine:
        """Return the engine that computes with the model's current parameters.

        If the model was loaded for no precision, the numbers that a caller brings decide on a GPU, as with upstream,
        whose option ``fp16`` makes them float16; on the CPU everything is float32 then.

        Parameters that were replaced or written to since (``load_state_dict``, ``half()``, ``p.data.copy_()``) are
        bound anew, so that graphs never compute with weights that the model no longer has.

        Raises
        ------
        CheckpointError
            if modules were replaced so that the model's tensors are no longer Whisper's
        PrecisionError
            if there are no kernels for the precision, or no values for the weights
        DeviceError
            if the device that was asked for has no room for the weights, or computes anything else than torch
        RuntimeError
            if MAX cannot compile the graphs
        """
        return self.giving_way(lambda: self._engine(dtype))

    def why_unbound(self) -> str | None:
        """Return why graphs cannot have the model's parameters as they are now, by name or shape; None if they can."""
        with self._lock:
            self._look()
            return None if self._mismatch is None else f"parameters that are not Whisper's any more: {self._mismatch}"

    def _look(self) -> None:
        """Look at the parameters, and let go of engines that are bound to others."""
        if self._fingerprint is not None and self._fingerprint.fits():
            return
        self._let_go()
        self._fingerprint, self._mismatch = Fingerprint(self._modules.values()), None
        try:
            check_state(self.dims, self._state(), source="the model")
        except CheckpointError as error:
            self._mismatch = str(error)

    def _state(self) -> dict[str, Tensor]:
        return {
            f"{part}.{name}": tensor
            for part, module in self._modules.items()
            for name, tensor in module.state_dict(keep_vars=True).items()
        }

    def _engine(self, dtype: torch.dtype) -> Engine:
        with self._lock:
            self._look()
            precision = self.precision or self._precision_of(dtype)
            if precision not in self._engines:
                state = self._state()
                if self.verify is not None:
                    self.verify(checked_types(self.dims, state, precision, self.device))
                self._engines[precision] = Engine(self.dims, state, self.device, precision)
            return self._engines[precision]

    def giving_way(self, compute: Callable[[], T]) -> T:
        """Return what `compute` returns; a second time, on the CPU, where the device failed and nobody asked for it.

        Raises
        ------
        DeviceError
            of a device that was asked for
        """
        device = self.device
        try:
            return compute()
        except DeviceError as error:
            if not self.leaves(device, error):
                raise
        return compute()  # now that the error is gone, and what it held in the device's memory

    def leaves(self, device: Device, error: DeviceError) -> bool:
        """Leave `device`, where `error` arose, for the CPU if nobody asked for it; tell whether the model has left."""
        with self._lock:
            if self.device is device and not self._is_asked_for:
                # the text alone: handlers may keep what they get, and the error holds what was on the device
                logger.warning('the model runs on the CPU, which device="cpu" would choose, because %s', str(error))
                self.device, self.verify, self._is_asked_for = HOST, None, True
                self._let_go()
            return self.device is not device

    def _let_go(self) -> None:
        """Forget the engines and all windows, before others take their memory."""
        if self._engines:
            self._engines, self._window = {}, _Window()
            gc.collect()  # what searches keep of an engine refers to itself

    def _precision_of(self, dtype: torch.dtype) -> str:
        if not self.device.computes_in_half or dtype not in (torch.float16, torch.bfloat16):
            return DEFAULT
        return str(dtype).removeprefix("torch.")

    def encode(self, mel: Tensor, dtype: torch.dtype) -> Tensor:
        """Encode mel (B, n_mels, 2 * n_audio_ctx), float32 on the host, unless it is the latest one again.

        The caller's own numbers were of `dtype`, see `engine`.
        """
        with self._lock:
            engine, window = self.engine(dtype), self._window
            if _is_known(window.encoded, engine, mel):
                REPORT.encoder_run_saved()
            else:
                window.encoded = None  # let go before the next is computed, so that memory holds one of them
                own = copied(mel)
                there = engine.encode(own)
                window.encoded = _Computed(weakref.ref(engine), own, _Features(engine.device.get(there), there))
            features: _Features = window.encoded.output
            return copied(features.here)  # the caller may write to it

    def cross_kv(self, audio_features: Tensor, engine: Engine) -> CrossKV:
        """Project audio_features (n_audio, n_audio_ctx, n_audio_state), unless they are the latest ones again.

        Those of the latest encoder run are on the device still.
        """
        with self._lock:
            window = self._window
            audio_features = audio_features.detach().to("cpu")
            if not _is_known(window.projected, engine, audio_features):
                window.projected = None
                features = self._features(audio_features, engine)
                window.projected = _Computed(weakref.ref(engine), features.here, engine.cross_kv(features.there))
            cross_kv: CrossKV = window.projected.output
            return cross_kv

    def forget_window(self) -> None:
        """Let go of what the calling thread's latest window has left on the device."""
        self._window.encoded = self._window.projected = None

    def _features(self, audio_features: Tensor, engine: Engine) -> _Features:
        encoded = self._window.encoded
        if encoded is not None and encoded.engine() is engine:
            latest: _Features = encoded.output
            if _are_equal(latest.here, audio_features):
                return latest
        own = copied(audio_features)
        return _Features(own, engine.put_features(own))


def _is_known(latest: _Computed | None, engine: Engine, x: Tensor) -> TypeGuard[_Computed]:
    return latest is not None and latest.engine() is engine and _are_equal(latest.input, x)


def _are_equal(x: Tensor, y: Tensor) -> bool:
    """Compare the bits of tensors on the CPU; not by torch, see `copied`."""
    raw = RAW[x.element_size()]
    return x.dtype == y.dtype and np.array_equal(x.view(raw).numpy(), y.view(raw).numpy())
