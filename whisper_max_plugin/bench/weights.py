"""Seeded random checkpoints, so that models of real dimensions can be run without a download."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from whisper.model import ModelDimensions, sinusoids

from whisper_max_plugin.checkpoints.checkpoint import expected_shapes


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
    for name, shape in expected_shapes(dims).items():
        if name == "encoder.positional_embedding":
            value = sinusoids(dims.n_audio_ctx, dims.n_audio_state)
        elif "_ln" in name or ".ln" in name:
            base = 1.0 if name.endswith("weight") else 0.0
            value = base + 0.1 * torch.randn(shape, generator=generator)
        elif len(shape) == 1:
            value = 0.1 * torch.randn(shape, generator=generator)
        elif "embedding" in name:
            value = 0.3 * torch.randn(shape, generator=generator)
        else:
            fan_in = math.prod(shape[1:])
            value = fan_in**-0.5 * torch.randn(shape, generator=generator)
        half[name] = value.half()
    torch.save({"dims": vars(dims), "model_state_dict": half}, path)
    return path
