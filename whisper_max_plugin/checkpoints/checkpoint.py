"""Reads checkpoints strictly, OpenAI's format here: readable, free of code, and exactly Whisper's tensors."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from whisper.model import ModelDimensions

from ..errors import CheckpointError
from . import alignment_heads


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes
    ----------
    dims : ModelDimensions
    state : dict[str, Tensor]
        the tensors in the types they are stored in, by upstream's names
    alignment_heads : str | None
        what `Whisper.set_alignment_heads` takes; None where upstream's default holds
    """

    dims: ModelDimensions
    state: dict[str, Tensor]
    alignment_heads: str | None = None


def read(path: str | Path) -> Checkpoint:
    """Check the checkpoint at `path` strictly, and return what it holds.

    Every supported version of upstream can then load a file: recent ones pass ``weights_only=True`` themselves, older
    ones rely on this check. The tensors are mapped, not read into memory. A folder is one of Hugging Face, see
    `huggingface.read`.

    Raises
    ------
    CheckpointError
        if the file is truncated or damaged, if its pickle carries code, if it is not a Whisper checkpoint, or if a
        tensor is missing, unused or of the wrong shape
    """
    if Path(path).is_dir():
        from . import huggingface

        return huggingface.read(path)
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


def check_state(
    dims: ModelDimensions,
    state: Mapping[str, Tensor],
    *,
    source: str,
    described_by: str = "dimensions",
    renamed: Callable[[str], str] = str,
) -> None:
    """Check that `state` holds exactly the tensors of a Whisper model of `dims`.

    Parameters
    ----------
    dims : ModelDimensions
    state : Mapping[str, Tensor]
    source : str
        where the tensors come from, for the error
    described_by : str
        what of the source tells the dimensions, for the error
    renamed : Callable[[str], str]
        gives the name in `state` for one of upstream's

    Raises
    ------
    CheckpointError
        naming the tensors that are missing, unused or of the wrong shape
    """
    mismatch = f"the tensors in {source} are not those of its {described_by}"
    n_layer = dims.n_audio_layer + dims.n_text_layer
    if n_layer > len(state):  # before as many names are made
        raise CheckpointError(f"{mismatch}: {len(state)} tensors for {n_layer} layers")
    expected = {renamed(name): shape for name, shape in expected_shapes(dims).items()}
    faults = [f"missing {name}" for name in expected.keys() - state.keys()]
    faults += [f"unused {name}" for name in state.keys() - expected.keys()]
    faults += [
        f"{name} of shape {tuple(state[name].shape)} instead of {shape}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    if faults:
        shown = ", ".join(sorted(faults)[:5]) + (f" and {len(faults) - 5} more" if len(faults) > 5 else "")
        raise CheckpointError(f"{mismatch}: {shown}")


def expected_shapes(dims: ModelDimensions) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor in the state_dict of ``whisper.model.Whisper(dims)``, in its order.

    Written out, for building the model just to look at its shapes would take as long as loading it.
    """
    n_audio, n_text = dims.n_audio_state, dims.n_text_state
    shapes = {
        "encoder.positional_embedding": (dims.n_audio_ctx, n_audio),
        **_weight_and_bias("encoder.conv1", n_audio, dims.n_mels, 3),
        **_weight_and_bias("encoder.conv2", n_audio, n_audio, 3),
    }
    for layer in range(dims.n_audio_layer):
        shapes |= _block_shapes(f"encoder.blocks.{layer}", n_audio, ["attn"])
    shapes |= {
        **_weight_and_bias("encoder.ln_post", n_audio),
        "decoder.positional_embedding": (dims.n_text_ctx, n_text),
        "decoder.token_embedding.weight": (dims.n_vocab, n_text),
    }
    for layer in range(dims.n_text_layer):
        shapes |= _block_shapes(f"decoder.blocks.{layer}", n_text, ["attn", "cross_attn"])
    return shapes | _weight_and_bias("decoder.ln", n_text)


def _block_shapes(name: str, n_state: int, attentions: list[str]) -> dict[str, tuple[int, ...]]:
    """The tensors of a ``ResidualAttentionBlock``; the key projection of an attention has no bias."""
    shapes: dict[str, tuple[int, ...]] = {}
    for attention in attentions:
        shapes |= _weight_and_bias(f"{name}.{attention}.query", n_state, n_state)
        shapes[f"{name}.{attention}.key.weight"] = (n_state, n_state)
        for part in ("value", "out"):
            shapes |= _weight_and_bias(f"{name}.{attention}.{part}", n_state, n_state)
        shapes |= _weight_and_bias(f"{name}.{attention}_ln", n_state)
    return {
        **shapes,
        **_weight_and_bias(f"{name}.mlp.0", 4 * n_state, n_state),
        **_weight_and_bias(f"{name}.mlp.2", n_state, 4 * n_state),
        **_weight_and_bias(f"{name}.mlp_ln", n_state),
    }


def _weight_and_bias(name: str, n_out: int, *n_in: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (n_out, *n_in), f"{name}.bias": (n_out,)}


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
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path} is truncated or not a checkpoint: download or save it again") from error
