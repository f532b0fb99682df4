"""Reads OpenAI's checkpoints: whole files, free of code."""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from whisper.model import ModelDimensions

from whisper_max_plugin.checkpoints import alignment_heads
from whisper_max_plugin.checkpoints.checkpoint import Checkpoint, check_state
from whisper_max_plugin.errors import CheckpointError


def read(path: str | Path) -> Checkpoint:
    """Check the file at `path` strictly, and return what it holds; the tensors are mapped, not read into memory.

    Every supported version of upstream can then load it: recent ones pass ``weights_only=True`` themselves, older ones
    rely on this check.

    Raises
    ------
    CheckpointError
        if the file is truncated or damaged, if its pickle carries code, if it is not a Whisper checkpoint, or if a
        tensor is missing, unused or of the wrong shape
    """
    checkpoint = _load_mapped(Path(path))
    if not isinstance(checkpoint, dict) or not {"dims", "model_state_dict"} <= checkpoint.keys():
        raise CheckpointError(
            f"{path} is not a Whisper checkpoint: it should be a dict with the keys 'dims' and 'model_state_dict'"
        )
    dims = _checked_dims(checkpoint["dims"], path)
    state = checkpoint["model_state_dict"]
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} has a malformed 'model_state_dict': it should map names to tensors")
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{path} has no tensor but a {type(tensor).__name__} as {name!r}")
    check_state(dims, state, source=str(path))
    dump = checkpoint.get(alignment_heads.KEY)
    if not isinstance(dump, str):  # somebody else's, as whatever lies beside the model
        return Checkpoint(dims, state)
    alignment_heads.check(dump, dims, source=str(path))
    return Checkpoint(dims, state, dump)


def _checked_dims(dims: Any, path: str | Path) -> ModelDimensions:
    """Return `dims` as `ModelDimensions`, if they are positive integers that make a model."""
    names = [field.name for field in fields(ModelDimensions)]
    if (
        not isinstance(dims, dict)
        or dims.keys() != set(names)
        or any(type(n) is not int or n < 1 for n in dims.values())
    ):
        raise CheckpointError(f"{path} has malformed 'dims': they should be positive integers named {', '.join(names)}")
    checked = ModelDimensions(**dims)
    for part, n_state, n_head in (
        ("audio", checked.n_audio_state, checked.n_audio_head),
        ("text", checked.n_text_state, checked.n_text_head),
    ):
        if n_state % n_head:
            raise CheckpointError(f"{path} has malformed 'dims': {n_head} heads do not divide n_{part}_state {n_state}")
    return checked


def _load_mapped(path: Path) -> Any:
    """Unpickle `path` without running code from it."""
    is_zip = zipfile.is_zipfile(path)
    try:
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()  # torch itself does not compare the checksums
            if damaged is not None:
                raise CheckpointError(f"{path} is damaged in {damaged}: download or save it again")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):  # the opcode that names a class or a function
            raise CheckpointError(
                f"{path} is refused because it holds Python objects other than tensors, and loading those can run "
                "code: save a dict of plain 'dims' and 'model_state_dict' instead"
            ) from error
        raise CheckpointError(f"{path} is not a checkpoint that torch can read: download or save it again") from error
    except (CheckpointError, MemoryError):
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        raise CheckpointError(f"{path} is truncated or not a checkpoint: download or save it again") from error
