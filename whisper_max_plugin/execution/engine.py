"""Runs compiled graphs on torch tensors: device, session, weight binding, execution."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from max.driver import Buffer
from max.engine import Model
from torch import Tensor
from whisper.audio import HOP_LENGTH

from whisper_max_plugin.checkpoints.checkpoint import check_state
from whisper_max_plugin.execution.compiled import checked_types, compile_graphs
from whisper_max_plugin.execution.devices import HOST, Device
from whisper_max_plugin.execution.mel_tables import mel_tables
from whisper_max_plugin.execution.replay import Replay
from whisper_max_plugin.execution.session import refuse_after_fork, session
from whisper_max_plugin.execution.step_inputs import SearchPool
from whisper_max_plugin.execution.weights import addresses, graph_weights, torch_type
from whisper_max_plugin.graphs import has_kernels
from whisper_max_plugin.precision import DEFAULT
from whisper_max_plugin.report import REPORT

if TYPE_CHECKING:
    from whisper.model import ModelDimensions

    from whisper_max_plugin.execution.step_inputs import SearchInputs, StepInputs

CrossKV = list[Buffer]
"""Per layer the key and the value, each (n_audio, n_text_head, n_audio_ctx, head_dim), on the device."""


@dataclass(frozen=True)
class DecoderOutput:
    """What one run of the decoder graph returns, on the device: most of it is for hooks, which few callers have.

    Attributes
    ----------
    logits : Buffer, shape = (batch, n_rows, n_vocab)
    hidden : Buffer, shape = (batch, n_tokens, n_text_state)
        what the last layer norm, ``ln``, takes
    cross_attn_inputs, cross_attn_outputs : per layer, each (batch, n_tokens, n_text_state)
        what the layer's ``cross_attn`` takes and returns
    """

    logits: Buffer
    hidden: Buffer
    cross_attn_inputs: Sequence[Buffer]
    cross_attn_outputs: Sequence[Buffer]


class Engine:
    """The graphs of one model size on one device, bound to one checkpoint's weights.

    Tensors are on the host, and float32 (tokens: int64) where nothing else is said; buffers are on the device. Calls
    are serialised, so that threads may share an engine.

    Parameters
    ----------
    dims : ModelDimensions
    state : Mapping[str, Tensor]
        the model's parameters by upstream's names. On the CPU, those that are contiguous float32 are shared with the
        graphs, not copied; a GPU gets the graphs' weights once.
    device : Device
    precision : str
        one of `precision.PRECISIONS`

    Raises
    ------
    CheckpointError
        if a tensor is missing, unused or of the wrong shape
    PrecisionError
        see `checked_types`, or if a weight is not finite, which int8 has no value for
    DeviceError
        see `checked_types` and `compile_graphs`, or if the device has no room for the weights
    RuntimeError
        if MAX cannot compile the graphs for the CPU
    """

    def __init__(
        self, dims: ModelDimensions, state: Mapping[str, Tensor], device: Device, precision: str = DEFAULT
    ) -> None:
        self.dims = dims
        self.device = device
        self._lock = threading.Lock()
        check_state(dims, state, source="the model")
        self.types = checked_types(dims, state, precision, device)
        compiled = compile_graphs(dims, self.types, device)
        # keeps the memory alive that the graphs read
        weights = graph_weights(state, self.types, kernels=has_kernels(dims))
        self._weights = {name: device.put(tensor) for name, tensor in weights.items()}
        if device.index is None and has_kernels(dims):
            self._weights["stored.addresses"] = device.put(addresses(self._weights, dims.n_text_layer))
        with device.at_work():
            models = session(device).init_all(compiled, weights_registry=self._weights)
        self._encoder, self._decoder, self._step = models["encoder"], models["decoder"], models.get("step")
        self._cross_kv, self._cross_scores = models["cross_kv"], models["cross_scores"]
        self._alignment, self._token_probs = models["alignment"], models["token_probs"]
        self._search, self._log_mel = models["search"], models["log_mel"]
        self.searches = SearchPool(device, dims.n_text_ctx)
        REPORT.engine_ready(device.name, precision)

    def log_mel(self, samples: Tensor, padding: int) -> Tensor | None:
        """Return the log-mel spectrogram (n_mels, n_frames) as upstream's function does, but for rounding.

        Parameters
        ----------
        samples : Tensor, shape = (n_samples,)
            of 16 kHz
        padding : int
            zeros to add at the end; with them there are to be more than half of `whisper.audio.N_FFT`

        Returns
        -------
        mel : Tensor | None
            None if a sample is not finite

        Raises
        ------
        ForkedProcessError
            in a process that was forked from one that ran graphs
        """
        refuse_after_fork()
        n_frames = (samples.shape[0] + padding) // HOP_LENGTH
        mel = torch.empty(self.dims.n_mels, n_frames, dtype=torch.float32)
        tables = mel_tables(self.dims.n_mels)
        operands = mel, samples, tables.window, tables.filters, tables.twiddles, torch.tensor([padding])
        (top,) = self._run(self._log_mel, *map(HOST.put, operands))  # whatever the device
        REPORT.graph_run("log_mel")
        return mel if np.isfinite(top.to_numpy()[0]) else None

    def encode(self, mel: Tensor) -> Buffer:
        """Encode mel (B, n_mels, 2 * n_audio_ctx) to audio_features (B, n_audio_ctx, n_audio_state)."""
        (features,) = self._run(self._encoder, self.device.put(mel))
        REPORT.graph_run("encoder")
        return features

    def put_features(self, audio_features: Tensor) -> Buffer:
        """Return what somebody brings, of any type of floats, as `encode` returns it."""
        return self.device.put(audio_features.to(torch_type(self.types.features)))

    def cross_kv(self, audio_features: Buffer) -> CrossKV:
        """Project audio_features (n_audio, n_audio_ctx, n_audio_state) to every layer's cross-attention K and V."""
        outputs = self._run(self._cross_kv, audio_features)
        REPORT.graph_run("cross_kv")
        return outputs

    def decode(
        self, tokens: Tensor, rows: Sequence[int], self_kv: Sequence[Buffer], cross_kv: CrossKV
    ) -> DecoderOutput:
        """Run the decoder on the latest tokens, and write their keys and values into the cache.

        Parameters
        ----------
        tokens : Tensor, shape = (n_audio, n_group, n_tokens), int64
        rows : positions among the tokens whose logits are wanted
        self_kv : 2 * n_text_layer buffers (n_filled, n_audio * n_group * n_copies, n_text_state)
            key 0, value 0, key 1, …: the front of the cache, n_filled = tokens before + n_tokens long; of the rows of a
            sequence the first is its own
        cross_kv : what `cross_kv` returned for the n_audio windows
        """
        n_audio, n_group, n_tokens = tokens.shape
        n_filled, n_rows, n_state = self_kv[0].shape
        cache_shape = n_filled, n_audio, n_group, n_rows // (n_audio * n_group), n_state
        inputs = [
            self.device.put(tokens),
            self.device.put(torch.arange(n_filled - n_tokens, n_filled)),
            self.device.put(torch.tensor(rows)),
            *(x.view(x.dtype, cache_shape) for x in self_kv),
            *cross_kv,
        ]
        logits, hidden, *traces = self._run(self._decoder, *inputs)
        REPORT.graph_run("prefill" if n_tokens > 1 else "step")
        return DecoderOutput(logits, hidden, traces[0::2], traces[1::2])

    @property
    def has_step(self) -> bool:
        """Whether there is a graph for single tokens, beside the one for any number."""
        return self._step is not None

    def step(self, inputs: StepInputs, n_steps: int = 1) -> None:
        """Run the decoder on one token of each sequence, write its keys and values into the cache, and search.

        Parameters
        ----------
        inputs : the logits of the last step, and what was found, then lie in ``inputs.search``
        n_steps : further steps continue with the best token of each sequence
        """
        assert self._step is not None, "asked for a graph that this model does not have, see `has_step`"
        with self._lock, self.device.at_work():
            for _ in range(n_steps):
                if not self.device.records_graphs:
                    self._step.execute(*inputs.buffers)
                    continue
                if inputs.replay is None:
                    inputs.replay = Replay(self._step, inputs.buffers, inputs.changing)
                inputs.replay.run()
                if inputs.replay.is_recorded:
                    REPORT.step_replayed()
            inputs.search.pull(n_steps)
        REPORT.graph_run("step", n_steps)

    def search(self, logits: Buffer, inputs: SearchInputs, suppressed: Buffer) -> None:
        """Filter logits in place and find each row's best tokens; see `graphs.search.build_search`."""
        inputs.allowed.push()
        allowed = (mirror.buffer for mirror in (inputs.ranges, inputs.temperatures, inputs.seeds))
        self._run(self._search, inputs.ids.buffer, inputs.logprobs.buffer, logits, suppressed, *allowed)
        REPORT.graph_run("search")

    def cross_scores(self, layer: int, x: Buffer, cross_kv: CrossKV) -> Buffer:
        """Return one layer's cross-attention scores before the softmax, as upstream's ``qk``.

        Parameters
        ----------
        layer : int
        x : Buffer, shape = (batch, n_tokens, n_text_state)
            the layer's `DecoderOutput.cross_attn_inputs`
        cross_kv : what the decoder ran with, for n_audio windows; batch = n_audio * n_group

        Returns
        -------
        scores : Buffer, shape = (n_audio, n_text_head, n_group * n_tokens, n_audio_ctx)
        """
        key = cross_kv[2 * layer]
        query = f"blocks.{layer}.cross_attn.query"
        # the model's own, unless what the step reads is in its place
        matrix = f"decoder.{query}.weight"
        if matrix not in self._weights:
            matrix = f"stored.{query}.weight"
        batch, n_tokens, n_state = x.shape
        n_audio = key.shape[0]
        (scores,) = self._run(
            self._cross_scores,
            x.view(x.dtype, (n_audio, batch // n_audio * n_tokens, n_state)),
            key,
            self._weights[matrix],
            self._weights[f"decoder.{query}.bias"],
        )
        REPORT.graph_run("cross_scores")
        return scores

    def align(self, attended: Iterable[tuple[Buffer, Sequence[int]]], n_tokens: int, n_frames: int) -> Tensor:
        """Return the sum of some heads' filtered attention, (n_tokens, n_frames).

        See `graphs.alignment.build_alignment`.

        Parameters
        ----------
        attended : what `cross_scores` returned for a layer, and which of its heads, of each layer
        """
        matrix = self.device.put(torch.zeros(n_tokens, n_frames, dtype=torch.float32))
        for scores, heads in attended:
            self._run(self._alignment, matrix, scores, self.device.put(torch.tensor(heads)))
            REPORT.graph_run("alignment")
        return self.device.get(matrix)

    def token_probs(self, logits: Buffer, tokens: Sequence[int], n_text: int) -> Tensor:
        """Return how likely each token was, (n_rows); see `graphs.alignment.build_token_probs`."""
        inputs = logits, self.device.put(torch.tensor(tokens)), np.array(n_text, dtype=np.int32)
        (probs,) = self._run(self._token_probs, *inputs)
        REPORT.graph_run("token_probs")
        return self.device.get(probs)

    def _run(self, model: Model, *inputs: Buffer | np.ndarray) -> list[Buffer]:
        with self._lock, self.device.at_work():
            return list(model.execute(*inputs))
