"""Seeded random checkpoints, so that models of real dimensions can be run without a download."""

from __future__ import annotations

from pathlib import Path

import torch
from whisper.model import ModelDimensions, Whisper


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
    state = Whisper(dims).state_dict()
    for name, tensor in state.items():
        if name == "encoder.positional_embedding":
            continue  # sinusoids
        if "_ln" in name or ".ln" in name:
            base = 1.0 if name.endswith("weight") else 0.0
            value = base + 0.1 * torch.randn(tensor.shape, generator=generator)
        elif tensor.ndim == 1:
            value = 0.1 * torch.randn(tensor.shape, generator=generator)
        elif "embedding" in name:
            value = 0.3 * torch.randn(tensor.shape, generator=generator)
        else:
            fan_in = tensor[0].numel()
            value = fan_in**-0.5 * torch.randn(tensor.shape, generator=generator)
        state[name] = value
    half = {name: tensor.half() for name, tensor in state.items()}
    torch.save({"dims": vars(dims), "model_state_dict": half}, path)
    return path
