"""Folders of Hugging Face whose tensors, or the files that hold them, are not those of the model are refused."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from .huggingface_fixtures import EMBEDDING, Tensors, config, tensors, write, write_index, write_shards
from .refusals import FC1, folder, installed, load, refused

__all__ = ["config", "folder", "installed", "tensors"]  # fixtures, found by name

KEY_BIAS = "model.encoder.layers.0.self_attn.k_proj.bias"
LFS_POINTER = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 290403936\n"
)


# Tensors


def test_a_missing_tensor(folder: Path, tensors: Tensors) -> None:
    del tensors[FC1]
    refused(write(folder, tensors), f"not those of its config.json: missing {FC1}")


@pytest.mark.parametrize("name", ["classifier.weight", "model.decoder.layers.2.fc1.weight", "model.mask", FC1[6:]])
def test_an_extra_tensor(folder: Path, tensors: Tensors, name: str) -> None:
    refused(write(folder, tensors | {name: torch.zeros(128)}), f"unused {name}")


def test_a_tensor_of_the_wrong_shape(folder: Path, tensors: Tensors) -> None:
    tensors[FC1] = tensors[FC1][:-1].clone()
    refused(write(folder, tensors), f"{FC1} of shape (511, 128) instead of (512, 128)")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float64, torch.float8_e4m3fn, torch.bool], ids=str)
def test_a_tensor_of_the_wrong_type(folder: Path, tensors: Tensors, dtype: torch.dtype) -> None:
    tensors[FC1] = tensors[FC1].to(dtype)
    refused(write(folder, tensors), FC1, f"of type {str(dtype).removeprefix('torch.')}", "save the model in float32")


def test_names_without_the_prefix_name_some_tensors_and_count_the_rest(folder: Path, tensors: Tensors) -> None:
    write(folder, {name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    refused(folder, "missing model.", " more")


def set_last_value(tensor: Tensor) -> Tensor:
    changed = tensor.clone()
    changed[-1, -1] += 1
    return changed


@pytest.mark.parametrize(
    "projection",
    [
        pytest.param(set_last_value, id="one value"),
        pytest.param(lambda embedding: embedding[:-1].clone(), id="one token"),
        pytest.param(lambda embedding: embedding.T.contiguous(), id="transposed"),
    ],
)
def test_an_output_projection_that_is_not_the_embedding(
    folder: Path, tensors: Tensors, projection: Callable[[Tensor], Tensor]
) -> None:
    tensors["proj_out.weight"] = projection(tensors[EMBEDDING])
    refused(write(folder, tensors), "proj_out.weight", "differs from", EMBEDDING)


def test_an_output_projection_that_is_missing_though_it_is_not_tied(
    folder: Path, tensors: Tensors, config: dict[str, Any]
) -> None:
    refused(write(folder, tensors, config | {"tie_word_embeddings": False}), "missing proj_out.weight")


@pytest.mark.parametrize("value", [1e-7, float("nan")])
def test_a_bias_of_a_key_projection_that_is_not_zero(folder: Path, tensors: Tensors, value: float) -> None:
    bias = torch.zeros(128)
    bias[17] = value
    refused(write(folder, tensors | {KEY_BIAS: bias}), KEY_BIAS, "not zero")


def test_a_bias_of_a_key_projection_that_is_not_there(folder: Path, tensors: Tensors) -> None:
    name = KEY_BIAS.replace("layers.0", "layers.7")
    refused(write(folder, tensors | {name: torch.zeros(128)}), f"unused {name}")


# Files of tensors


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, 0.5, -1])
def test_a_truncated_file(folder: Path, tensors: Tensors, kept: float) -> None:
    path = write(folder, tensors) / "model.safetensors"
    size = path.stat().st_size
    os.truncate(path, int(kept * size) if 0 < kept < 1 else int(kept) % size)
    refused(folder, "model.safetensors is truncated or damaged", "download or save it again")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"hello\n", id="text"),
        pytest.param(b"PK\x03\x04" + bytes(100), id="zip"),
        pytest.param(b"<html>" + b" " * 100, id="a page"),
        pytest.param(struct.pack("<Q", 2**60) + b"{}", id="a huge header"),
        pytest.param(struct.pack("<Q", 2) + b"[]", id="another header"),
        pytest.param(
            struct.pack("<Q", 56) + b'{"a": {"dtype":"F32","shape":[9],"data_offsets":[0,4]}} ' + bytes(4),
            id="another size",
        ),
    ],
)
def test_a_file_of_another_kind(folder: Path, tensors: Tensors, content: bytes) -> None:
    (write(folder, tensors) / "model.safetensors").write_bytes(content)
    refused(folder, "model.safetensors is truncated or damaged")


def test_a_pointer_of_git_lfs(folder: Path, tensors: Tensors) -> None:
    (write(folder, tensors) / "model.safetensors").write_text(LFS_POINTER)
    refused(folder, "model.safetensors", "git lfs pull")


# Several files and their index


@pytest.fixture
def weight_map(folder: Path, tensors: Tensors) -> dict[str, str]:
    """A sound folder of two files."""
    names = sorted(tensors)
    weight_map = write_shards(folder, tensors, [names[:30], names[30:]])
    assert load(folder).dims.n_vocab == 51865
    return weight_map


def test_a_file_that_the_index_names_is_missing(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / "model-2.safetensors").unlink()
    refused(folder, "lacks model-2.safetensors", "model.safetensors.index.json")


def test_one_of_the_files_is_truncated(folder: Path, weight_map: dict[str, str]) -> None:
    os.truncate(folder / "model-2.safetensors", 5000)
    refused(folder, "model-2.safetensors is truncated or damaged")


def test_a_tensor_that_the_index_names_is_missing(folder: Path, weight_map: dict[str, str]) -> None:
    write_index(folder, {"weight_map": weight_map | {"model.more": "model-1.safetensors"}})
    refused(folder, "model-1.safetensors", "model.more is not in it")


def test_a_tensor_that_the_index_does_not_name(folder: Path, weight_map: dict[str, str]) -> None:
    file = weight_map.pop(FC1)
    write_index(folder, {"weight_map": weight_map})
    refused(folder, file, f"{FC1} is in it and not in the index")


def test_a_file_that_the_index_does_not_name(folder: Path, weight_map: dict[str, str]) -> None:
    write_index(folder, {"weight_map": {name: file for name, file in weight_map.items() if "-1" in file}})
    refused(folder, "are not those of its config.json: missing ")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param({}, id="empty"),
        pytest.param({"weight_map": None}, id="None"),
        pytest.param({"weight_map": [FC1]}, id="a list"),
        pytest.param({"weight_map": {FC1: 1}}, id="a number"),
        pytest.param({"weight_map": {FC1: "../model-1.safetensors"}}, id="a file elsewhere"),
        pytest.param({"weight_map": {FC1: "/etc/hostname"}}, id="an absolute path"),
        pytest.param({"weight_map": {FC1: "pytorch_model.bin"}}, id="a pickle"),
    ],
)
def test_a_malformed_index(folder: Path, weight_map: dict[str, str], content: object) -> None:
    write_index(folder, content)
    refused(folder, "model.safetensors.index.json has a malformed 'weight_map'")


def test_a_damaged_index(folder: Path, weight_map: dict[str, str]) -> None:
    os.truncate(folder / "model.safetensors.index.json", 50)
    refused(folder, "model.safetensors.index.json", "not JSON")
