"""The dimensions of the official models, so that graphs can be compiled before a checkpoint is downloaded."""

from __future__ import annotations

from whisper.model import ModelDimensions

# n_state, n_head, n_layer of encoder and decoder alike; see model-card.md and `whisper.model` upstream
_SIZES = {
    "tiny": (384, 6, 4),
    "base": (512, 8, 6),
    "small": (768, 12, 12),
    "medium": (1024, 16, 24),
    "large": (1280, 20, 32),
}
_ENGLISH, _MULTILINGUAL, _V3 = 51864, 51865, 51866  # n_vocab; v3 added Cantonese


def _dims(
    size: str, n_vocab: int = _MULTILINGUAL, *, n_mels: int = 80, n_text_layer: int | None = None
) -> ModelDimensions:
    n_state, n_head, n_layer = _SIZES[size]
    return ModelDimensions(
        n_mels=n_mels,
        n_audio_ctx=1500,
        n_audio_state=n_state,
        n_audio_head=n_head,
        n_audio_layer=n_layer,
        n_vocab=n_vocab,
        n_text_ctx=448,
        n_text_state=n_state,
        n_text_head=n_head,
        n_text_layer=n_text_layer or n_layer,
    )


OFFICIAL_DIMS: dict[str, ModelDimensions] = {
    **{size: _dims(size) for size in ("tiny", "base", "small", "medium")},
    **{f"{size}.en": _dims(size, _ENGLISH) for size in ("tiny", "base", "small", "medium")},
    "large-v1": _dims("large"),
    "large-v2": _dims("large"),
    "large-v3": _dims("large", _V3, n_mels=128),
    "large": _dims("large", _V3, n_mels=128),
    "large-v3-turbo": _dims("large", _V3, n_mels=128, n_text_layer=4),
    "turbo": _dims("large", _V3, n_mels=128, n_text_layer=4),
}
