"""Seeded random checkpoints, so that models of real dimensions can be run without a download."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from whisper.model import AudioEncoder, ModelDimensions, TextDecoder, sinusoids


def random_checkpoint(path: Path, dims: ModelDimensions, seed: int = 0) -> Path:
    """Write a checkpoint of seeded random float16 weights, scaled so that activations stay of order one.

    Parameters
    ----------
    path : Path
        the file to write, in OpenAI's format
    dims : ModelDimensions
    seed : int

    Returns
    -------
    Path
        `path`
    """
    generator = torch.Generator().manual_seed(seed)
    half = {}
    for name, tensor in _empty_state(dims).items():
        if name == "encoder.positional_embedding":
            value = sinusoids(dims.n_audio_ctx, dims.n_audio_state)
        elif "_ln" in name or ".ln" in name:
            base = 1.0 if name.endswith("weight") else 0.0
            value = base + 0.1 * torch.randn(tensor.shape, generator=generator)
        elif tensor.ndim == 1:
            value = 0.1 * torch.randn(tensor.shape, generator=generator)
        elif "embedding" in name:
            value = 0.3 * torch.randn(tensor.shape, generator=generator)
        else:
            fan_in = tensor[0].numel()
            value = fan_in**-0.5 * torch.randn(tensor.shape, generator=generator)
        half[name] = value.half()
    torch.save({"dims": vars(dims), "model_state_dict": half}, path)
    return path


def _empty_state(dims: ModelDimensions) -> dict[str, Tensor]:
    """Return upstream's parameters without memory, which for a large model takes seconds to fill and gigabytes."""
    sizes = vars(dims)
    names = ("ctx", "state", "head", "layer")
    with torch.device("meta"):
        encoder = AudioEncoder(dims.n_mels, *(sizes[f"n_audio_{name}"] for name in names))
        decoder = TextDecoder(dims.n_vocab, *(sizes[f"n_text_{name}"] for name in names))
    parts = {"encoder": encoder, "decoder": decoder}
    return {f"{part}.{name}": tensor for part, module in parts.items() for name, tensor in module.state_dict().items()}
