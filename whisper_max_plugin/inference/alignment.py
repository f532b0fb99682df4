"""Words' times: ``whisper.timing.find_alignment``, with its arithmetic over tokens, frames and vocabulary in graphs."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from whisper import timing
from whisper.model import Whisper
from whisper.timing import WordTiming
from whisper.tokenizer import Tokenizer

from whisper_max_plugin import patches
from whisper_max_plugin.graphs.alignment import MEDIAN_WIDTH
from whisper_max_plugin.inference.hooks import has_hooks
from whisper_max_plugin.inference.lockstep import giving_way
from whisper_max_plugin.inference.modules import MaxTextDecoder

MIRRORED = {"5c0fab47e0937611", "d91537323566c6ae"}
"""The `digest` of what upstream's function has been: until 20240927, and since then, when SDPA came."""


@torch.no_grad()
def find_alignment(
    original: Callable[..., list[WordTiming]],
    model: Whisper,
    tokenizer: Tokenizer,
    text_tokens: list[int],
    mel: Tensor,
    num_frames: int,
    **settings: Any,
) -> list[WordTiming]:
    """Find the words of a text in a window, as upstream does.

    Upstream's own function does it, on what the graphs return to its hooks, where anybody else could notice the
    difference, where it is not the one that is mirrored here, and where numbers are undefined.

    Parameters
    ----------
    original : Callable
        upstream's ``whisper.timing.find_alignment``, or a wrapper of it, in which it has its turn
    model : Whisper
        an accelerated one
    tokenizer : Tokenizer
    text_tokens : list of int
    mel : Tensor, shape = (n_mels, 2 * n_audio_ctx)
    num_frames : int
        of the window that hold sound
    settings : upstream's ``medfilt_width`` and ``qk_scale``
    """
    tokens = [*tokenizer.sot_sequence, tokenizer.no_timestamps, *text_tokens, tokenizer.eot]
    n_before = len(tokenizer.sot_sequence)
    n_frames = min(num_frames // 2, model.dims.n_audio_ctx)
    heads = _heads(model)
    is_usual = (
        not settings
        and 0 < len(text_tokens) <= model.dims.n_text_ctx - n_before - 2
        and all(0 <= token < tokenizer.eot for token in text_tokens)
        and max(tokens) < model.dims.n_vocab
        and n_frames > MEDIAN_WIDTH // 2
        and len(heads) > 0
        and _is_mirrored(original)
        and _is_unwatched(model)
    )
    if not is_usual:
        return original(model, tokenizer, text_tokens, mel, num_frames, **settings)

    features = model.encoder(mel.unsqueeze(0))
    probs, matrix = giving_way(
        model.decoder.runtime, lambda: model.decoder.align(tokens, n_before, features, heads, n_frames)
    )
    if not (matrix.isfinite().all() and probs.isfinite().all()):
        return original(model, tokenizer, text_tokens, mel, num_frames)

    words, word_tokens = tokenizer.split_to_word_tokens([*text_tokens, tokenizer.eot])
    if len(word_tokens) <= 1:
        return []
    text_indices, time_indices = timing.dtw(-matrix[n_before:-1])
    jumps = np.pad(np.diff(text_indices), (1, 0), constant_values=1).astype(bool)
    jump_times = time_indices[jumps] / timing.TOKENS_PER_SECOND
    bounds = np.cumsum([0, *map(len, word_tokens[:-1])])
    text_probs = probs.tolist()
    return [
        WordTiming(word, of_word, jump_times[first], jump_times[last], np.mean(text_probs[first:last]))
        for word, of_word, first, last in zip(words, word_tokens, bounds[:-1], bounds[1:], strict=False)
    ]


def digest(function: Callable[..., Any]) -> str:
    """Return the beginning of the SHA-256 of a function's source."""
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]


@functools.cache
def _is_mirrored(original: Callable[..., Any]) -> bool:
    inside = getattr(original, "__wrapped__", original)
    try:
        return patches.is_defined_in(inside, timing) and digest(inside) in MIRRORED
    except (OSError, TypeError):  # the source is not at hand
        return False


def _is_unwatched(model: Whisper) -> bool:
    """Tell whether nobody's code runs in a pass of the model, or has replaced what follows."""
    return (
        type(model).forward is Whisper.forward
        and "forward" not in vars(model)
        and not has_hooks(model, ())
        and isinstance(model.decoder, MaxTextDecoder)
        and model.decoder.can_align()
        and patches.is_defined_in(patches.originals.get(timing.median_filter, timing.median_filter), timing)
    )


def _heads(model: Whisper) -> dict[int, list[int]]:
    """Return the heads that tell the times of words, by their layer; none if they are not of this model."""
    heads: dict[int, list[int]] = {}
    mask = model.alignment_heads
    if mask.shape == (model.dims.n_text_layer, model.dims.n_text_head):
        for layer, head in mask.indices().T.tolist():
            heads.setdefault(layer, []).append(head)
    return heads
