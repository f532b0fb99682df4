"""Decoding on graphs: upstream's `DecodingTask` with an `Inference` that reads the rows it needs."""

from __future__ import annotations

import inspect
import math
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
import whisper.decoding
from torch import Tensor
from whisper.decoding import (
    BeamSearchDecoder,
    DecodingOptions,
    DecodingResult,
    DecodingTask,
    Inference,
    PyTorchInference,
)
from whisper.model import Whisper

from whisper_max_plugin import patches
from whisper_max_plugin.execution.engine import Engine
from whisper_max_plugin.execution.threads import OneTorchThread
from whisper_max_plugin.inference.kv_cache import KVCache
from whisper_max_plugin.inference.lockstep import current, giving_way
from whisper_max_plugin.inference.modules import MaxTextDecoder
from whisper_max_plugin.inference.runtime import Runtime
from whisper_max_plugin.inference.search import Rules, Search

_MIRRORED = "__init__", "logits", "rearrange_kv_cache", "cleanup_caching"  # of PyTorchInference
_upstreams_decode = inspect.unwrap(whisper.decoding.decode)


class PrefillLogits:
    """Logits of the first pass, (batch, n_tokens, n_vocab), of which two rows were computed.

    `DecodingTask` reads the row of <|startoftranscript|>, for the no-speech probability, and the last one; upstream
    multiplies all of a prompt's up to 224 tokens with the whole vocabulary.
    """

    def __init__(self, logits: Tensor, rows: list[int], n_tokens: int) -> None:
        self.shape = torch.Size((logits.shape[0], n_tokens, logits.shape[2]))
        self._rows = {row: logits[:, index] for index, row in enumerate(rows)}

    def __getitem__(self, key: tuple[slice, int]) -> Tensor:
        """Return ``logits[:, row]``, shape (batch, n_vocab).

        Raises
        ------
        IndexError
            for any other key than a computed row of all sequences
        """
        if not (isinstance(key, tuple) and len(key) == 2 and key[0] == slice(None) and isinstance(key[1], int)):
            raise IndexError(f"of the first pass only logits[:, row] can be read, not logits[{key!r}]")
        row = key[1] % self.shape[1]
        if row not in self._rows:
            raise IndexError(f"the first pass computed the logits of rows {sorted(self._rows)}, not of row {row}")
        return self._rows[row]


class MaxInference(Inference):
    """Runs the decoder of an accelerated model for a `DecodingTask`; upstream's counterpart is PyTorchInference.

    Parameters
    ----------
    model : Whisper
        an accelerated one
    initial_token_length : int
        the length of prompt, sot sequence and prefix, which the first pass takes
    sot_index : int
        the position of <|startoftranscript|> among them
    n_group : int
        the number of beams or samples of each audio, which all start from the same tokens
    """

    def __init__(self, model: Whisper, initial_token_length: int, sot_index: int, n_group: int) -> None:
        self.model = model  # as PyTorchInference has it, for callers that look
        self.decoder: MaxTextDecoder = model.decoder
        self.runtime = self.decoder.runtime
        self.initial_token_length = initial_token_length
        self.sot_index = sot_index
        self.n_group = n_group
        self.kv_cache: KVCache | None = None
        self._can_step = False  # without what surrounds the graph; looked up after the first pass

    def logits(self, tokens: Tensor, audio_features: Tensor) -> Tensor | PrefillLogits:
        """Perform a forward pass on the decoder and return per-token logits, shape (n_batch, n_tokens, n_vocab).

        The tokens are those not seen before.
        """
        if tokens.shape[-1] > self.initial_token_length:
            logits: Tensor = self.decoder(tokens[:, -1:], audio_features, kv_cache=self.kv_cache)
            return logits
        with self.runtime.passes:  # while no other thread's word alignment has hooks on the modules
            return self._first_logits(tokens, audio_features)

    def _first_logits(self, tokens: Tensor, audio_features: Tensor) -> Tensor | PrefillLogits:
        if not self.decoder.is_called_as_it_is():  # hooks, or a `forward` of somebody's, are to see what upstream's see
            self.kv_cache = KVCache(self.decoder, self.runtime)
            all_logits: Tensor = self.decoder(tokens, audio_features, kv_cache=self.kv_cache)
            return all_logits
        # hooks see every sequence; and groups of several windows are an error, which is upstream's to raise
        alone = self.decoder.is_observed() or audio_features.shape[0] > 1
        self.kv_cache = KVCache(self.decoder, self.runtime, n_copies=1 if alone else self.n_group)
        rows = sorted({self.sot_index, tokens.shape[-1] - 1})
        together = self.kv_cache.n_copies
        logits = self.decoder(tokens[::together], audio_features, kv_cache=self.kv_cache, rows=rows)
        if together > 1:  # the group has been computed once; from here on its sequences differ
            self.kv_cache.rearrange([sequence // self.n_group for sequence in range(tokens.shape[0])])
            logits = logits.repeat_interleave(self.n_group, dim=0)
        self._can_step = self.decoder.can_step(self.kv_cache)
        return PrefillLogits(logits, rows, tokens.shape[-1])

    def step(self, search: Search, audio_features: Tensor, n_left: int) -> int:
        """Extend each sequence by one or more of up to `n_left` tokens; return by how many."""
        assert self.kv_cache is not None, "a step needs a first pass"
        if not self._can_step:
            search.update(self.engine.device.put(self.logits(search.tokens, audio_features)[:, -1]))
            return 1
        n_steps = min(search.n_ahead, n_left)
        if (lockstep := current(self.runtime)) is not None:
            n_steps = lockstep.step(self.kv_cache, search, n_steps)
        else:
            self.decoder.step(search.latest, self.kv_cache, search.write_allowed(), n_steps)
        n_taken = search.accept(n_steps)
        self.kv_cache.advance(n_taken - n_steps)
        return n_taken

    @property
    def engine(self) -> Engine:
        """What computes the passes."""
        if self.kv_cache is not None and self.kv_cache.engine is not None:
            return self.kv_cache.engine
        return self.runtime.engine()

    def rearrange_kv_cache(self, source_indices: list[int]) -> None:
        """Update the key-value cache according to the updated beams."""
        if self.kv_cache is not None and source_indices != list(range(len(source_indices))):
            self.kv_cache.rearrange(source_indices)

    def cleanup_caching(self) -> None:
        """Clean up any resources or hooks after decoding is finished: the cache, since there are no hooks."""
        self.kv_cache = None


class MaxDecodingTask(DecodingTask):
    """Upstream's task, with `MaxInference` in place of PyTorchInference."""

    def __init__(self, model: Whisper, options: DecodingOptions) -> None:
        super().__init__(model, options)
        self.inference = MaxInference(model, len(self.initial_tokens), self.sot_index, self.n_group)
        if isinstance(self.decoder, BeamSearchDecoder):
            self.decoder.inference = self.inference

    def _main_loop(self, audio_features: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, list[float]]:
        """Upstream's sampling loop, with `Search` in place of the filters' and the decoder's code."""
        rules = Rules.of(self.logit_filters, self.model.dims.n_vocab, self.sample_begin)
        with OneTorchThread():
            if rules is None or self.sample_len < 1:
                return super()._main_loop(audio_features, tokens)
            no_speech_probs = [math.nan] * tokens.shape[0]
            try:
                logits = self.inference.logits(tokens, audio_features)
                if self.tokenizer.no_speech is not None:
                    probs_at_sot = logits[:, self.sot_index].float().softmax(dim=-1)
                    no_speech_probs = probs_at_sot[:, self.tokenizer.no_speech].tolist()
                search = Search(self.inference.engine, rules, self.decoder, tokens)
                search.update(self.inference.engine.device.put(logits[:, -1].float()))
                n_left = min(self.sample_len - 1, self.n_ctx + 1 - len(search.sequences[0]))
                while n_left > 0 and not search.completed:
                    n_left -= self.inference.step(search, audio_features, n_left)
            finally:
                self.inference.cleanup_caching()
            return search.tokens.to(tokens.device), search.sum_logprobs.to(audio_features.device), no_speech_probs


def _is_upstreams() -> bool:
    """Tell whether what `MaxDecodingTask` and `MaxInference` stand for is upstream's code still."""
    mirrored = DecodingTask._main_loop, *(getattr(PyTorchInference, name) for name in _MIRRORED)
    return whisper.decoding.DecodingTask is DecodingTask and all(
        patches.is_defined_in(function, whisper.decoding) for function in mirrored
    )


@torch.no_grad()
def decode(
    model: Whisper,
    mel: Tensor,
    options: DecodingOptions = DecodingOptions(),  # noqa: B008 upstream's signature
    **kwargs: Any,
) -> DecodingResult | list[DecodingResult]:
    """
    Performs decoding of 30-second audio segment(s), provided as Mel spectrogram(s).

    Parameters
    ----------
    model: Whisper
        the Whisper model instance

    mel: torch.Tensor, shape = (80, 3000) or (*, 80, 3000)
        A tensor containing the Mel spectrogram(s)

    options: DecodingOptions
        A dataclass that contains all necessary options for decoding 30-second segments

    Returns
    -------
    result: Union[DecodingResult, List[DecodingResult]]
        The result(s) of decoding contained in `DecodingResult` dataclass instance(s)
    """
    runtime: Runtime | None = getattr(model.decoder, "runtime", None)
    if runtime is None or runtime.why_unbound() is not None or not _is_upstreams():
        result: DecodingResult | list[DecodingResult] = _upstreams_decode(model, mel, options, **kwargs)
        return result
    if single := mel.ndim == 2:
        mel = mel.unsqueeze(0)
    if kwargs:
        options = replace(options, **kwargs)
    lockstep = current(runtime)
    with nullcontext() if lockstep is None else lockstep.decoding():
        results: list[DecodingResult] = giving_way(runtime, lambda: MaxDecodingTask(model, options).run(mel))
    return results[0] if single else results
