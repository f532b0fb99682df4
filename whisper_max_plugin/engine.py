"""Runs compiled graphs on torch tensors: device, session, weight binding, execution."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from max.driver import CPU, Buffer
from max.dtype import DType
from max.engine import CompiledModel, InferenceSession
from max.graph import DeviceRef
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from . import artifacts
from .checkpoint import check_state
from .errors import ForkedProcessError
from .graphs import build_module
from .report import REPORT

if TYPE_CHECKING:
    from whisper.model import ModelDimensions

PRECISION = "float32"
DEVICE = "cpu"

CrossKV = list[Buffer]
"""Per layer the key and the value, each (n_audio, n_text_head, n_audio_ctx, head_dim), on the device."""


@dataclass(frozen=True)
class DecoderOutput:
    """What one run of the decoder graph returns.

    Attributes
    ----------
    logits : Tensor, shape = (batch, n_rows, n_vocab)
    hidden : Tensor, shape = (batch, n_tokens, n_text_state)
        what the last layer norm, ``ln``, takes
    cross_attn_inputs, cross_attn_outputs : per layer, each (batch, n_tokens, n_text_state)
        what the layer's ``cross_attn`` takes and returns
    """

    logits: Tensor
    hidden: Tensor
    cross_attn_inputs: Sequence[Tensor]
    cross_attn_outputs: Sequence[Tensor]


class Engine:
    """The graphs of one model size, bound to one checkpoint's weights.

    All tensors that go in and come out are contiguous float32 (tokens: int64) on the host. Calls are serialised,
    so that threads may share an engine.

    Parameters
    ----------
    dims : ModelDimensions
    state : Mapping[str, Tensor]
        the model's parameters by upstream's names. Those that are contiguous float32 on the CPU are shared with
        the graphs, not copied.

    Raises
    ------
    CheckpointError
        if a tensor is missing, unused or of the wrong shape
    RuntimeError
        if MAX cannot compile the graphs
    """

    def __init__(self, dims: ModelDimensions, state: Mapping[str, Tensor]) -> None:
        self.dims = dims
        self._lock = threading.Lock()
        check_state(dims, state, source="the model")
        self._weights = graph_weights(state)  # keeps the memory alive that the graphs read
        models = _session().init_all(compile_graphs(dims), weights_registry=self._weights)
        self._encoder, self._decoder = models["encoder"], models["decoder"]
        self._cross_kv, self._cross_scores = models["cross_kv"], models["cross_scores"]
        # -inf above the diagonal: upstream's ``TextDecoder.mask``
        self._mask = torch.full((dims.n_text_ctx, dims.n_text_ctx), -np.inf).triu_(1)
        REPORT.engine_ready(DEVICE, PRECISION)

    def encode(self, mel: Tensor) -> Tensor:
        """Encode mel (B, n_mels, 2 * n_audio_ctx) to audio_features (B, n_audio_ctx, n_audio_state)."""
        with self._lock:
            (features,) = self._encoder.execute(_buffer(mel))
        REPORT.graph_run("encoder")
        return from_dlpack(features)

    def cross_kv(self, audio_features: Tensor) -> CrossKV:
        """Project audio_features (n_audio, n_audio_ctx, n_audio_state) to every layer's cross-attention K and V."""
        with self._lock:
            outputs = self._cross_kv.execute(_buffer(audio_features))
        REPORT.graph_run("cross_kv")
        return list(outputs)

    def decode(
        self, tokens: Tensor, rows: Sequence[int], self_kv: Sequence[Tensor], cross_kv: CrossKV
    ) -> DecoderOutput:
        """Run the decoder on the latest tokens, and write their keys and values into the cache.

        Parameters
        ----------
        tokens : Tensor, shape = (n_audio, n_group, n_tokens), int64
        rows : positions among the tokens whose logits are wanted
        self_kv : 2 * n_text_layer tensors (n_filled, n_audio * n_group, n_text_state)
            key 0, value 0, key 1, …: the front of the cache, n_filled = tokens before + n_tokens long
        cross_kv : what `cross_kv` returned for the n_audio windows
        """
        n_audio, n_group, n_tokens = tokens.shape
        n_filled = self_kv[0].shape[0]
        offset = n_filled - n_tokens
        inputs = [
            _buffer(tokens),
            np.array(offset, dtype=np.int64),
            _buffer(self._mask[offset:n_filled, :n_filled]),
            _buffer(torch.tensor(rows)),
            *(_buffer(x.view(n_filled, n_audio, n_group, -1)) for x in self_kv),
            *cross_kv,
        ]
        with self._lock:
            outputs = self._decoder.execute(*inputs)
        REPORT.graph_run("prefill" if n_tokens > 1 else "step")
        logits, hidden, *traces = map(from_dlpack, outputs)
        return DecoderOutput(logits, hidden, traces[0::2], traces[1::2])

    def cross_scores(self, layer: int, x: Tensor, cross_kv: CrossKV) -> Tensor:
        """Return one layer's cross-attention scores before the softmax, as upstream's ``qk``.

        Parameters
        ----------
        layer : int
        x : Tensor, shape = (batch, n_tokens, n_text_state)
            the layer's `DecoderOutput.cross_attn_inputs`
        cross_kv : what the decoder ran with, for n_audio windows; batch = n_audio * n_group

        Returns
        -------
        scores : Tensor, shape = (batch, n_text_head, n_tokens, n_audio_ctx)
        """
        key = cross_kv[2 * layer]
        query = f"decoder.blocks.{layer}.cross_attn.query"
        batch, n_tokens, n_state = x.shape
        n_audio, n_head, n_audio_ctx, _ = key.shape
        with self._lock:
            (scores,) = self._cross_scores.execute(
                _buffer(x.reshape(n_audio, -1, n_state)),
                key,
                _buffer(self._weights[f"{query}.weight"]),
                _buffer(self._weights[f"{query}.bias"]),
            )
        REPORT.graph_run("cross_scores")
        scores = from_dlpack(scores)  # (n_audio, n_head, n_group * n_tokens, n_audio_ctx)
        scores = scores.view(n_audio, n_head, -1, n_tokens, n_audio_ctx).transpose(1, 2)
        return scores.reshape(batch, n_head, n_tokens, n_audio_ctx)


@cache
def _session() -> InferenceSession:
    refuse_after_fork()
    return InferenceSession(devices=[CPU()])


_forked_while_running = False


def refuse_after_fork() -> None:
    """Fail in a process in which MAX would wait forever.

    Raises
    ------
    ForkedProcessError
        if this process was forked from one in which MAX had started: its threads did not come along
    """
    if _forked_while_running:
        raise ForkedProcessError(
            "this process was forked from one that runs graphs, and MAX's threads do not survive a fork: start the "
            'worker processes with multiprocessing.get_context("spawn"), or load the first model in the workers'
        )


def _after_fork() -> None:
    global _forked_while_running
    if _session.cache_info().currsize > 0:
        _forked_while_running = True
        _session.cache_clear()
        # OpenMP's threads did not come along either: without this, torch waits for them in the mel spectrogram already
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


_compiled: dict[tuple[int, ...], CompiledModel] = {}
_compile_lock = threading.Lock()


def compile_graphs(dims: ModelDimensions) -> CompiledModel:
    """Return the compiled graphs of `dims`: from this process, from the cache on disk, or compiled now."""
    sizes = tuple(vars(dims).values())
    with _compile_lock:
        if sizes not in _compiled:
            build = partial(build_module, dims, DType.float32, DeviceRef.CPU())
            _compiled[sizes] = artifacts.obtain(_session(), dims, PRECISION, DEVICE, build)
        return _compiled[sizes]


def graph_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the graphs' weights for a model's `state`: its tensors as float32, and the convolutions' filters."""
    weights = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in state.items()}
    for conv in ("encoder.conv1", "encoder.conv2"):
        # (n_out, n_in, 3) to (1, 3, n_in, n_out), see `graphs.layers.conv1d`
        weights[f"{conv}.filter"] = weights.pop(f"{conv}.weight").permute(2, 1, 0)[None].contiguous()
    return weights


def _buffer(tensor: Tensor) -> Buffer:
    """Hand a tensor's memory to MAX without copying, where it is contiguous."""
    return Buffer.from_dlpack(tensor.contiguous())
