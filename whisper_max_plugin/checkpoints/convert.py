"""Writes checkpoints of Hugging Face in OpenAI's format, which upstream and everything built on it loads."""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from whisper_max_plugin.checkpoints import alignment_heads, huggingface
from whisper_max_plugin.checkpoints.checkpoint import Checkpoint
from whisper_max_plugin.errors import CheckpointError


def convert(folder: str | Path, path: str | Path) -> Checkpoint:
    """Write the checkpoint in `folder` to the new file `path`, tensors in the types they have, and return it.

    Alignment heads, for which the format has no place, become one entry more, which `openai.read` knows and
    upstream passes over.

    Raises
    ------
    CheckpointError
        if `folder` is not a usable checkpoint of Hugging Face, or if `path` exists or cannot be written
    """
    folder, path = Path(folder), Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder: give one that has config.json and the weights in safetensors")
    if path.exists():
        raise CheckpointError(f"{path} exists already: remove it, or give another name")
    checkpoint = huggingface.read(folder)
    content: dict[str, Any] = {
        "dims": asdict(checkpoint.dims),
        # copies, for what is mapped from one file would be written as one block
        "model_state_dict": {name: tensor.clone() for name, tensor in checkpoint.state.items()},
    }
    if checkpoint.alignment_heads is not None:
        content[alignment_heads.KEY] = checkpoint.alignment_heads
    _write(content, path)
    return checkpoint


def _write(content: dict[str, Any], path: Path) -> None:
    """Write the file complete or not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with partial.open("xb") as file:
            torch.save(content, file)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # RuntimeError: torch's for a full disk
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{path} cannot be written: {reason}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
