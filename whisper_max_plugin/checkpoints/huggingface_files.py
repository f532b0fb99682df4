"""Reads the files of a Hugging Face folder: JSON, and safetensors in one file or in several with an index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from whisper_max_plugin.errors import CheckpointError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
LFS_POINTER = b"version https://git-lfs"


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in the file at `path`.

    Raises
    ------
    CheckpointError
        if there is none
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or not JSON: download or save it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} should hold a JSON object: download or save it again")
    return content


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return all tensors in `folder`, mapped and not read into memory.

    Raises
    ------
    CheckpointError
        if there are none, if a file is missing or damaged, or if the index does not tell what is in the files
    """
    if (folder / SINGLE).is_file():  # it comes first for transformers, too
        return _read_file(folder / SINGLE)
    if (folder / INDEX).is_file():
        return _read_shards(folder)
    for name in PICKLES:
        if (folder / name).exists():
            raise CheckpointError(
                f"{folder} has its weights in {name} alone, a pickle, and loading those can run code: where you trust "
                "it, save it as safetensors by transformers' from_pretrained() and save_pretrained()"
            )
    raise CheckpointError(f"{folder} has no weights, neither {SINGLE} nor {INDEX}: download or save it again")


def _read_shards(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    files = _weight_map(folder / INDEX)
    for file in sorted(set(files.values())):
        if not (folder / file).is_file():
            raise CheckpointError(f"{folder} lacks {file}, which its {INDEX} names: download it as well")
        found = _read_file(folder / file)
        named = {name for name, place in files.items() if place == file}
        if differing := sorted(named ^ found.keys()):
            name = differing[0]
            fault = "is not in it" if name in named else "is in it and not in the index"
            raise CheckpointError(
                f"{file} and {INDEX} in {folder} do not belong together, for {name} {fault}: download both again"
            )
        tensors |= found
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    """Return which file of the folder holds which tensor."""
    files = read_json(index).get("weight_map")
    # a plain name, so that an index reaches no file elsewhere
    if not isinstance(files, dict) or not all(
        isinstance(file, str) and file.endswith(".safetensors") and Path(file).name == file for file in files.values()
    ):
        raise CheckpointError(
            f"{index} has a malformed 'weight_map': it should map names of tensors to safetensors files beside it"
        )
    return files


def _read_file(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise CheckpointError(f"{path} is the pointer that Git LFS left in the place of a file: `git lfs pull`")
        with safe_open(path, framework="pt") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118  no mapping
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error}): download or save it again") from error
