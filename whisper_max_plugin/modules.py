"""The encoder and the decoder of an accelerated model: upstream's modules, whose forward pass runs graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import torch
import whisper.model
from torch import Tensor, nn
from whisper.model import AudioEncoder, MultiHeadAttention, TextDecoder, Whisper

from .engine import CrossKV, DecoderOutput, Engine
from .kv_cache import KVCache
from .report import REPORT
from .runtime import Runtime


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
        if x.shape[1:] != (dims.n_mels, 2 * dims.n_audio_ctx) or not x.is_floating_point():
            return super().forward(x)  # raises upstream's own error
        if not torch.isfinite(x).all():
            raise ValueError("the mel spectrogram holds NaN or infinite values: check the audio samples")
        if hooked := hooked_modules(self):
            REPORT.fallback(f"forward hooks on encoder modules that graphs do not compute: {_summary(hooked)}")
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
        if (reason := self._unsupported(x, xa, kv_cache)) is not None:
            logits = self._forward_torch(x, xa, kv_cache)  # raises upstream's own error if the input is wrong
            REPORT.fallback(reason)
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

    def _unsupported(self, x: Tensor, xa: Tensor, kv_cache: Mapping[nn.Module, Tensor] | None) -> str | None:
        """Return why graphs cannot serve this call, or None."""
        dims = self.runtime.dims
        if xa.shape[1:] != (dims.n_audio_ctx, dims.n_audio_state) or x.ndim != 2:
            return "decoder input of another shape than (batch, tokens) and (batch, n_audio_ctx, n_audio_state)"
        if xa.shape[0] not in (1, x.shape[0]) and x.shape[0] != 1:
            return "as many token sequences as audio windows are needed, or one of either"
        if x.is_floating_point() or x.numel() == 0:
            return "tokens that are not integers, or none"
        if kv_cache and not isinstance(kv_cache, KVCache):
            return "a kv_cache that this model's install_kv_cache_hooks did not make"
        offset = kv_cache.n_filled if isinstance(kv_cache, KVCache) else 0
        if offset + x.shape[1] > dims.n_text_ctx:
            return "more tokens than n_text_ctx"
        if int(x.min()) < 0 or int(x.max()) >= dims.n_vocab:
            return "tokens outside the vocabulary"
        hooked = hooked_modules(self, forward_hooks_allowed_on=MaxCrossAttention)
        if hooked:
            return f"forward hooks on decoder modules that graphs do not compute: {_summary(hooked)}"
        return None

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
            cross_attn.computed = (out.to(xa.device, xa.dtype), qk)
            try:
                result = cross_attn(x.to(xa.device, xa.dtype), xa, kv_cache=cache)
                if result is not cross_attn.computed:
                    raise RuntimeError(
                        f"a forward hook on decoder.blocks.{layer}.cross_attn replaced the output, which a compiled "
                        'graph cannot take: load the model with backend="torch"'
                    )
            finally:
                del cross_attn.computed

    def _forward_torch(self, x: Tensor, xa: Tensor, kv_cache: Mapping[nn.Module, Tensor] | None) -> Tensor:
        """Upstream's forward pass, which extends `kv_cache` by upstream's hooks."""
        if not isinstance(kv_cache, KVCache):
            return super().forward(x, xa, kv_cache=kv_cache)
        model = SimpleNamespace(dims=self.runtime.dims, decoder=self)  # all that upstream's method looks at
        cache, hooks = Whisper.install_kv_cache_hooks(model, dict(kv_cache))
        try:
            logits = super().forward(x, xa, kv_cache=cache)
        finally:
            for hook in hooks:
                hook.remove()
        kv_cache.update(cache)
        return logits


def hooked_modules(root: nn.Module, forward_hooks_allowed_on: type[nn.Module] | None = None) -> list[str]:
    """Return the names of the modules inside `root` whose hooks would be skipped by a graph."""
    names = []
    for name, module in root.named_modules():
        if module is root:
            continue  # its own hooks run in any case
        forward_hooks = module._forward_hooks
        if forward_hooks_allowed_on is not None and isinstance(module, forward_hooks_allowed_on):
            forward_hooks = None
        if forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            names.append(name)
    return names


def _returns_scores() -> bool:
    """Tell whether upstream's attention returns its scores now: not while it uses SDPA (since 20240927)."""
    return not (getattr(whisper.model, "SDPA_AVAILABLE", False) and getattr(MultiHeadAttention, "use_sdpa", False))


def _summary(names: Sequence[str]) -> str:
    """Name one module of each kind: ``blocks.*.attn`` for all of them."""
    kinds = {".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names}
    return ", ".join(sorted(kinds))


def _to_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32)
