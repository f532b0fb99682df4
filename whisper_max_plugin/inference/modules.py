"""The encoder and the decoder of an accelerated model: upstream's modules, whose forward pass runs graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import whisper.model
from torch import Tensor, nn
from whisper.model import AudioEncoder, MultiHeadAttention, TextDecoder, Whisper

from whisper_max_plugin.execution.engine import CrossKV, DecoderOutput, Engine
from whisper_max_plugin.execution.session import refuse_after_fork
from whisper_max_plugin.execution.step_inputs import SearchInputs
from whisper_max_plugin.execution.threads import all_torch_threads, copied
from whisper_max_plugin.inference.backward import without_backward
from whisper_max_plugin.inference.hooks import has_global_hooks, has_hooks, run_forward_hooks, why_foreign
from whisper_max_plugin.inference.kv_cache import KVCache
from whisper_max_plugin.inference.lockstep import giving_way
from whisper_max_plugin.inference.runtime import Runtime
from whisper_max_plugin.report import REPORT


class MaxAudioEncoder(AudioEncoder):
    """Upstream's encoder; its forward pass is the graph ``encoder``."""

    runtime: Runtime

    def forward(self, x: Tensor) -> Tensor:
        """
        x : torch.Tensor, shape = (batch_size, n_mels, n_ctx)
            the mel spectrogram of the audio

        Raises
        ------
        ValueError
            if the spectrogram holds NaN or infinite values
        ForkedProcessError
            in a process that was forked from one in which MAX had started
        """
        refuse_after_fork()
        with self.runtime.passes:
            return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        dims = self.runtime.dims
        if x.shape[1:] != (dims.n_mels, 2 * dims.n_audio_ctx) or x.shape[0] == 0 or not x.is_floating_point():
            return _upstreams_error(self._forward_torch, x)
        mel = _to_host(x)
        if not np.isfinite(mel.numpy()).all():  # not by torch, see `copied`
            raise ValueError("the mel spectrogram holds NaN or infinite values: check the audio samples")
        reason = self.runtime.why_unbound() or why_foreign(self, "encoder", {self.conv1}, dims.n_audio_head)
        if reason is not None:
            REPORT.fallback(reason)
            return self._forward_torch(x)
        if self.conv1._forward_hooks:
            run_forward_hooks("encoder.conv1", self.conv1, (x,), self.conv1.forward(x))
        features = giving_way(self.runtime, lambda: self.runtime.encode(mel, x.dtype))
        return without_backward(features.to(x.device, x.dtype), x, self)

    def _forward_torch(self, x: Tensor) -> Tensor:
        """Upstream's forward pass."""
        return super().forward(x)


class MaxTextDecoder(TextDecoder):
    """Upstream's decoder; its forward pass is the graph ``decoder``."""

    runtime: Runtime

    def forward(
        self,
        x: Tensor,
        xa: Tensor,
        kv_cache: Mapping[nn.Module, Tensor] | None = None,
        *,
        rows: Sequence[int] | None = None,
    ) -> Tensor:
        """
        x : torch.LongTensor, shape = (batch_size, <= n_ctx)
            the text tokens
        xa : torch.Tensor, shape = (batch_size, n_audio_ctx, n_audio_state)
            the encoded audio features to be attended on
        kv_cache : Mapping
            what `install_kv_cache_hooks` returned
        rows : Sequence[int]
            the positions among `x` whose logits are wanted; all by default

        Returns
        -------
        logits : torch.Tensor, shape = (batch_size, len(rows) or x.shape[1], n_vocab), float32

        Raises
        ------
        IndexError
            if a token is not in the vocabulary
        ForkedProcessError
            in a process that was forked from one in which MAX had started
        """
        refuse_after_fork()
        with self.runtime.passes:
            if kv_cache is not None:  # which lies where the passes before have run
                return self._forward(x, xa, kv_cache, rows)
            return giving_way(self.runtime, lambda: self._forward(x, xa, None, rows))

    def _forward(
        self, x: Tensor, xa: Tensor, kv_cache: Mapping[nn.Module, Tensor] | None, rows: Sequence[int] | None
    ) -> Tensor:
        if not self._is_sound(x, xa, kv_cache):
            return _upstreams_error(self._forward_torch, x, xa, kv_cache)
        if (reason := self._unsupported(kv_cache)) is not None:
            REPORT.fallback(reason)
            logits = self._forward_torch(x, xa, kv_cache)
            return logits if rows is None else logits[:, list(rows)]

        cache = kv_cache if isinstance(kv_cache, KVCache) else KVCache(self, self.runtime)
        engine = cache.engine = cache.engine or self.runtime.engine(xa.dtype)
        cross_kv = cache.cross_kv = cache.cross_kv or self.runtime.cross_kv(xa, engine)
        if self.token_embedding._forward_hooks:
            run_forward_hooks("decoder.token_embedding", self.token_embedding, (x,), self.token_embedding.forward(x))
        n_audio = xa.shape[0]
        x = x.expand(max(x.shape[0], n_audio), -1)  # one sequence for many windows, as upstream broadcasts it
        batch, n_tokens = x.shape
        tokens = x.to("cpu", torch.int64).reshape(n_audio, batch // n_audio, n_tokens)
        if n_tokens == 1 and engine.has_step and not self.is_observed():
            inputs = cache.next_step(tokens.flatten().tolist())
            engine.step(inputs)
            logits = copied(engine.device.get(inputs.search.logits))  # the next step writes there
            return without_backward(logits.unsqueeze(1).to(xa.device), xa, self)
        self_kv = cache.extend(batch, n_tokens)
        wanted = range(n_tokens) if rows is None else [row % n_tokens for row in rows]
        output = engine.decode(tokens, wanted, self_kv, cross_kv)
        self._run_cross_attention_hooks(output, xa, cache, engine, cross_kv)
        if self.ln._forward_hooks:
            hidden = engine.device.get(output.hidden).to(xa.device, xa.dtype)
            run_forward_hooks("decoder.ln", self.ln, (hidden,), self.ln.forward(hidden))
        return without_backward(engine.device.get(output.logits).to(xa.device), xa, self)

    def can_step(self, cache: KVCache) -> bool:
        """Tell whether `step` may continue what a pass of the whole module has begun in `cache`."""
        return cache.engine is not None and cache.engine.has_step and self._is_unwatched(cache)

    def can_align(self) -> bool:
        """Tell whether `align` may stand for a pass of the whole module."""
        return self._is_unwatched(None)

    def _is_unwatched(self, cache: KVCache | None) -> bool:
        """Tell whether nothing looks into passes, or does anything else in them than graphs do."""
        return not self.is_observed() and self._unsupported(cache) is None and self.is_called_as_it_is()

    def is_called_as_it_is(self) -> bool:
        """Tell whether to call the module is to call `forward`, and nothing of somebody else's around it."""
        return not has_hooks(self, ()) and "forward" not in vars(self) and type(self) is MaxTextDecoder

    def step(self, tokens: Sequence[int], cache: KVCache, search: SearchInputs, n_steps: int) -> None:
        """Run one token of each sequence, and search: `forward` without what surrounds the graph.

        Further steps continue with the best token of each sequence. What was found lies in `search`.

        Raises
        ------
        ForkedProcessError
            in a process that was forked from one in which MAX had started
        """
        assert cache.engine is not None, "a step needs a first pass, see `can_step`"
        refuse_after_fork()
        with self.runtime.passes:
            cache.engine.step(cache.next_step(tokens, search), n_steps)
            cache.advance(n_steps - 1)

    def align(
        self, tokens: Sequence[int], n_before: int, xa: Tensor, heads: Mapping[int, Sequence[int]], n_frames: int
    ) -> tuple[Tensor, Tensor]:
        """Run the decoder on a window's text: tell how likely it was, and what each token attended to.

        It mirrors what ``whisper.timing.find_alignment`` computes from ``model(mel, tokens)`` to
        ``weights.mean(axis=0)``.

        Parameters
        ----------
        tokens : the sot sequence, of `n_before` tokens, <|notimestamps|>, the text and <|endoftext|>
        n_before : int
        xa : Tensor, shape = (1, n_audio_ctx, n_audio_state)
        heads : Mapping[int, Sequence[int]]
            by their layer, those that tell the times of words
        n_frames : int
            of the window, as the encoder counts them: more than half of `MEDIAN_WIDTH`, at most n_audio_ctx

        Returns
        -------
        probs : Tensor, shape = (n_text,)
            the probability of each token of the text
        matrix : Tensor, shape = (n_tokens, n_frames)
        """
        with self.runtime.passes:
            cache = KVCache(self, self.runtime)
            engine = cache.engine = self.runtime.engine(xa.dtype)
            cross_kv = self.runtime.cross_kv(xa, engine)
            text = tokens[n_before + 1 : -1]
            rows = range(n_before, n_before + len(text))
            self_kv = cache.extend(1, len(tokens))
            output = engine.decode(torch.tensor([[tokens]]), rows, self_kv, cross_kv)
            probs = engine.token_probs(output.logits, text, n_text=tokens[-1])
            attended = (
                (engine.cross_scores(layer, output.cross_attn_inputs[layer], cross_kv), of_layer)
                for layer, of_layer in heads.items()
            )
            matrix = engine.align(attended, len(tokens), n_frames)
            return probs, matrix / sum(map(len, heads.values()))

    def is_observed(self) -> bool:
        """Tell whether forward hooks look into the passes."""
        return any(module._forward_hooks for module in self._observed())

    def _observed(self) -> set[nn.Module]:
        """Return the modules inside whose forward hooks are run on what the graph has computed."""
        return {self.token_embedding, self.ln, *(block.cross_attn for block in self.blocks)}

    def _is_sound(self, x: Tensor, xa: Tensor, kv_cache: Mapping[nn.Module, Tensor] | None) -> bool:
        """Tell whether shapes, types and values are such that upstream's code would not fail on them."""
        dims = self.runtime.dims
        if x.ndim != 2 or x.numel() == 0 or x.dtype not in (torch.int64, torch.int32):
            return False
        if xa.shape[1:] != (dims.n_audio_ctx, dims.n_audio_state) or not xa.is_floating_point():
            return False
        if xa.shape[0] not in (1, x.shape[0]) and (x.shape[0] != 1 or xa.shape[0] == 0):
            return False
        n_filled = kv_cache.n_filled if isinstance(kv_cache, KVCache) else 0
        return n_filled + x.shape[1] <= dims.n_text_ctx and int(x.min()) >= 0 and int(x.max()) < dims.n_vocab

    def _unsupported(self, kv_cache: Mapping[nn.Module, Tensor] | None) -> str | None:
        """Return why graphs cannot serve this call, or None."""
        observed = self._observed()
        checked = kv_cache.checked_modules if isinstance(kv_cache, KVCache) else []
        if checked and not has_global_hooks() and not any(has_hooks(module, observed) for module in checked):
            return None  # a step behind a pass that looked at everything; only hooks may have come since
        dims = self.runtime.dims
        reason = self.runtime.why_unbound() or why_foreign(self, "decoder", observed, dims.n_text_head)
        if reason is not None:
            return reason
        if isinstance(kv_cache, KVCache):
            kv_cache.checked_modules = list(self.modules())[1:]
        elif kv_cache:
            return "a kv_cache that this model's install_kv_cache_hooks did not make"
        return None

    def _run_cross_attention_hooks(
        self, output: DecoderOutput, xa: Tensor, cache: KVCache, engine: Engine, cross_kv: CrossKV
    ) -> None:
        """Call the forward hooks on cross_attn modules, as in a torch pass; `find_alignment` reads scores so."""
        for layer, block in enumerate(self.blocks):
            if not block.cross_attn._forward_hooks:
                continue
            taken, returned = output.cross_attn_inputs[layer], output.cross_attn_outputs[layer]
            x, out = (engine.device.get(trace).to(xa.device, xa.dtype) for trace in (taken, returned))
            qk = None
            if _returns_scores():
                scores = engine.device.get(engine.cross_scores(layer, taken, cross_kv))
                qk = _of_each_sequence(scores, n_tokens=x.shape[1]).to(xa.device)
            name = f"decoder.blocks.{layer}.cross_attn"
            run_forward_hooks(name, block.cross_attn, (x, xa), (out, qk), kv_cache=cache)

    def _forward_torch(self, x: Tensor, xa: Tensor, kv_cache: Mapping[nn.Module, Tensor] | None) -> Tensor:
        """Upstream's forward pass, which extends `kv_cache` by upstream's hooks."""
        if not isinstance(kv_cache, KVCache):
            with all_torch_threads():
                return super().forward(x, xa, kv_cache=kv_cache)
        model = SimpleNamespace(dims=self.runtime.dims, decoder=self)  # all that upstream's method looks at
        entries = {module: entry.to(xa.dtype) for module, entry in kv_cache.items()}
        cache, hooks = Whisper.install_kv_cache_hooks(model, entries)
        try:
            with all_torch_threads():
                logits = super().forward(x, xa, kv_cache=cache)
        finally:
            for hook in hooks:
                hook.remove()
        kv_cache.update(cache)
        return logits


def _upstreams_error(forward: Callable[..., Tensor], *args: Any) -> Tensor:
    """Let upstream's own code refuse an input; should it accept it after all, that was a fallback."""
    result = forward(*args)
    REPORT.fallback("input of a shape or type that graphs do not take")
    return result


def _of_each_sequence(scores: Tensor, n_tokens: int) -> Tensor:
    """Return scores (n_audio, n_head, n_group * n_tokens, n_audio_ctx) as (n_audio * n_group, n_head, n_tokens, …)."""
    n_audio, n_head, n_rows, n_audio_ctx = scores.shape
    scores = scores.view(n_audio, n_head, n_rows // n_tokens, n_tokens, n_audio_ctx)
    return scores.transpose(1, 2).flatten(0, 1)


def _returns_scores() -> bool:
    """Tell whether upstream's attention returns its scores now: not while it uses SDPA (since 20240927)."""
    return not (getattr(whisper.model, "SDPA_AVAILABLE", False) and getattr(MultiHeadAttention, "use_sdpa", False))


def _to_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32)
