"""What models are loaded from: OpenAI's checkpoints and folders of Hugging Face, checked strictly."""

from __future__ import annotations

from pathlib import Path

from whisper_max_plugin.checkpoints import huggingface, openai
from whisper_max_plugin.checkpoints.checkpoint import Checkpoint


def read(path: str | Path) -> Checkpoint:
    """Return what the checkpoint at `path` holds: a file is OpenAI's, a folder one of Hugging Face.

    Raises
    ------
    CheckpointError
        see `openai.read` and `huggingface.read`
    """
    return huggingface.read(path) if Path(path).is_dir() else openai.read(path)
