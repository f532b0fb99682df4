"""The encoder and the decoder of an accelerated model: upstream's modules, whose forward pass runs graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import whisper.model
from torch import Tensor, nn
from whisper.model import AudioEncoder, MultiHeadAttention, TextDecoder, Whisper

from .engine import CrossKV, DecoderOutput, Engine
from .graphs.layers import LAYER_NORM_EPS
from .kv_cache import KVCache
from .report import REPORT
from .runtime import Runtime
from .threads import all_torch_threads


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
        """
        dims = self.runtime.dims
        if x.shape[1:] != (dims.n_mels, 2 * dims.n_audio_ctx) or x.shape[0] == 0 or not x.is_floating_point():
            return _upstreams_error(super().forward, x)
        if not torch.isfinite(x).all():
            raise ValueError("the mel spectrogram holds NaN or infinite values: check the audio samples")
        if (reason := _why_foreign(self, "encoder")) is not None:
            REPORT.fallback(reason)
            return super().forward(x)
        features = self.runtime.encode(_to_host(x))
        return features.to(x.device, x.dtype)


class MaxCrossAttention(MultiHeadAttention):
    """Upstream's cross-attention module; called only to run its forward hooks on what a graph has computed."""

    computed: tuple[Tensor, Tensor | None] | None = None

    def forward(
        self,
        x: Tensor,
        xa: Tensor | None = None,
        mask: Tensor | None = None,
        kv_cache: Mapping[nn.Module, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return (output, qk) as upstream does: from the graph if it has run, else computed by torch."""
        if self.computed is not None:
            return self.computed
        return super().forward(x, xa, mask, kv_cache)


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
        """
        if not self._is_sound(x, xa, kv_cache):
            return _upstreams_error(self._forward_torch, x, xa, kv_cache)
        if (reason := self._unsupported(kv_cache)) is not None:
            REPORT.fallback(reason)
            logits = self._forward_torch(x, xa, kv_cache)
            return logits if rows is None else logits[:, list(rows)]

        cache = kv_cache if isinstance(kv_cache, KVCache) else KVCache(self)
        engine = cache.engine = cache.engine or self.runtime.engine()
        cross_kv = cache.cross_kv = cache.cross_kv or self.runtime.cross_kv(_to_host(xa))
        n_audio = xa.shape[0]
        x = x.expand(max(x.shape[0], n_audio), -1)  # one sequence for many windows, as upstream broadcasts it
        batch, n_tokens = x.shape
        output = engine.decode(
            x.to("cpu", torch.int64).reshape(n_audio, batch // n_audio, n_tokens),
            range(n_tokens) if rows is None else [row % n_tokens for row in rows],
            cache.extend(batch, n_tokens),
            cross_kv,
        )
        self._run_cross_attention_hooks(output, xa, cache, engine, cross_kv)
        return output.logits.to(xa.device)

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
        if kv_cache and not isinstance(kv_cache, KVCache):
            return "a kv_cache that this model's install_kv_cache_hooks did not make"
        checked = kv_cache.checked_modules if isinstance(kv_cache, KVCache) else []
        if checked and not any(map(_has_hooks, checked)):
            return None  # a step behind a pass that looked at everything; only hooks may have come since
        reason = _why_foreign(self, "decoder")
        if reason is None and isinstance(kv_cache, KVCache):
            kv_cache.checked_modules = list(self.modules())[1:]
        return reason

    def _run_cross_attention_hooks(
        self, output: DecoderOutput, xa: Tensor, cache: KVCache, engine: Engine, cross_kv: CrossKV
    ) -> None:
        """Call the forward hooks on cross_attn modules, as in a torch pass; `find_alignment` reads scores so."""
        for layer, block in enumerate(self.blocks):
            cross_attn: MaxCrossAttention = block.cross_attn
            if not cross_attn._forward_hooks:
                continue
            x, out = output.cross_attn_inputs[layer], output.cross_attn_outputs[layer]
            qk = engine.cross_scores(layer, x, cross_kv).to(xa.device) if _returns_scores() else None
            out = out.to(xa.device, xa.dtype)
            cross_attn.computed, version = (out, qk), out._version
            try:
                result = cross_attn(x.to(xa.device, xa.dtype), xa, kv_cache=cache)
                if result is not cross_attn.computed or out._version != version:
                    raise RuntimeError(
                        f"a forward hook on decoder.blocks.{layer}.cross_attn replaced the output, which a compiled "
                        'graph cannot take: load the model with backend="torch"'
                    )
            finally:
                del cross_attn.computed

    def _forward_torch(self, x: Tensor, xa: Tensor, kv_cache: Mapping[nn.Module, Tensor] | None) -> Tensor:
        """Upstream's forward pass, which extends `kv_cache` by upstream's hooks."""
        if not isinstance(kv_cache, KVCache):
            with all_torch_threads():
                return super().forward(x, xa, kv_cache=kv_cache)
        model = SimpleNamespace(dims=self.runtime.dims, decoder=self)  # all that upstream's method looks at
        cache, hooks = Whisper.install_kv_cache_hooks(model, dict(kv_cache))
        try:
            with all_torch_threads():
                logits = super().forward(x, xa, kv_cache=cache)
        finally:
            for hook in hooks:
                hook.remove()
        kv_cache.update(cache)
        return logits


# what upstream builds encoder and decoder from; graphs compute these, with their default settings
_UPSTREAMS_MODULES = {
    whisper.model.ResidualAttentionBlock,
    MultiHeadAttention,
    MaxCrossAttention,
    whisper.model.LayerNorm,
    whisper.model.Linear,
    whisper.model.Conv1d,
    nn.Embedding,
    nn.GELU,
    nn.Sequential,
    nn.ModuleList,
}


def _why_foreign(root: nn.Module, part: str) -> str | None:
    """Say which modules inside `root` a graph would not do justice to; None if there are none.

    These are modules with hooks, except the forward hooks of cross-attention, which are run; modules of another class
    than upstream's; and modules with a `forward` or a setting of their own. Hooks on `root` run in any case.
    """
    inside = [(name, module) for name, module in root.named_modules() if module is not root]
    names = [name for name, module in inside if _has_hooks(module) or _is_changed(module)]
    # one of each kind: "blocks.*.attn" for all of them
    kinds = {".".join("*" if word.isdigit() else word for word in name.split(".")) for name in names}
    if not kinds:
        return None
    return f"{part} modules with hooks or changes that graphs do not follow: {', '.join(sorted(kinds))}"


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        (module._forward_hooks and type(module) is not MaxCrossAttention)
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _is_changed(module: nn.Module) -> bool:
    return (
        type(module) not in _UPSTREAMS_MODULES
        or "forward" in vars(module)
        or (isinstance(module, nn.LayerNorm) and module.eps != LAYER_NORM_EPS)
        or (isinstance(module, nn.GELU) and module.approximate != "none")
    )


def _upstreams_error(forward: Callable[..., Tensor], *args: Any) -> Tensor:
    """Let upstream's own code refuse an input; should it accept it after all, that was a fallback."""
    result = forward(*args)
    REPORT.fallback("input of a shape or type that graphs do not take")
    return result


def _returns_scores() -> bool:
    """Tell whether upstream's attention returns its scores now: not while it uses SDPA (since 20240927)."""
    return not (getattr(whisper.model, "SDPA_AVAILABLE", False) and getattr(MultiHeadAttention, "use_sdpa", False))


def _to_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32)
