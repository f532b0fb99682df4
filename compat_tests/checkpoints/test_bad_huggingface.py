"""Folders that are no whole Whisper model of Hugging Face are refused in one sentence, which says what to do."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import whisper
from torch import Tensor
from whisper.model import Whisper

import whisper_max_plugin
from whisper_max_plugin.cli import main
from whisper_max_plugin.errors import CheckpointError

from ..conftest import Pair
from ..data import NANO
from ..errors import assert_one_sentence, error_of
from .huggingface_fixtures import CONFIG, EMBEDDING, Tensors, config, tensors, write, write_index, write_shards

__all__ = ["config", "tensors"]  # fixtures, found by name

FC1 = "model.decoder.layers.1.fc1.weight"
KEY_BIAS = "model.encoder.layers.0.self_attn.k_proj.bias"
LFS_POINTER = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 290403936\n"
)


@pytest.fixture(autouse=True)
def installed() -> None:
    whisper_max_plugin.install()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "my model"
    folder.mkdir()
    return folder


def load(folder: Path) -> Whisper:
    return whisper.load_model(str(folder), device="cpu", backend="max")


def refused(folder: Path, *named: object) -> str:
    """Assert that the folder is refused in one sentence, which names it and what is wrong."""
    error = error_of(lambda: load(folder))
    assert isinstance(error, CheckpointError), repr(error)
    assert_one_sentence(error, folder, *named)
    return str(error)


# What the folder is


def test_an_empty_folder(folder: Path) -> None:
    refused(folder, "has no config.json")


def test_a_folder_of_openais_checkpoints(folder: Path) -> None:
    (folder / "nano.pt").symlink_to(NANO)
    refused(folder, "has no config.json")


def test_an_adapter(folder: Path, tensors: Tensors) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 32}))
    (folder / "adapter_model.safetensors").touch()
    refused(folder, "adapter", "merge_and_unload()")
    refused(write(folder, tensors), "adapter", "merge_and_unload()")  # a whole model is beside it, to be changed by it


def test_weights_in_a_pickle_alone_are_not_loaded(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "sentinel")))
    refused(folder, "pytorch_model.bin", "save_pretrained()")
    assert not (tmp_path / "sentinel").exists()
    (folder / "pytorch_model.bin").rename(folder / "pytorch_model.bin.index.json")
    refused(folder, "pytorch_model.bin.index.json", "save_pretrained()")


class Payload:
    """Unpickling it makes a folder: the stand-in for an attack."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (os.mkdir, (str(self.sentinel),))


def test_a_pickle_beside_safetensors_is_not_read(folder: Path, tensors: Tensors) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"no pickle")
    assert load(write(folder, tensors)).dims.n_vocab == 51865


def test_no_weights(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "flax_model.msgpack").touch()
    refused(folder, "no weights", "model.safetensors")


# config.json


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'"whisper"', b"null", bytes(100)])
@pytest.mark.parametrize("name", ["config", "generation_config"])
def test_a_damaged_json_file(folder: Path, tensors: Tensors, name: str, content: bytes) -> None:
    write(folder, tensors)
    (folder / f"{name}.json").write_bytes(content)
    refused(folder, f"{name}.json", "JSON")


@pytest.mark.parametrize("key", ["model_type", "d_model", "vocab_size", "encoder_ffn_dim", "activation_function"])
def test_a_configuration_that_lacks_something(folder: Path, tensors: Tensors, config: dict[str, Any], key: str) -> None:
    del config[key]
    refused(write(folder, tensors, config), "config.json", key, "None")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "wav2vec2"),
        ("d_model", 0),
        ("d_model", "128"),
        ("d_model", 128.0),
        ("encoder_layers", -1),
        ("decoder_layers", True),
        ("num_mel_bins", [80]),
        ("num_mel_bins", 64),
        ("max_source_positions", 750),
        ("encoder_ffn_dim", 256),
        ("decoder_ffn_dim", 1024),
        ("activation_function", "relu"),
        ("activation_function", "gelu_new"),
        ("activation_function", ["gelu"]),
        ("encoder_attention_heads", 3),
        ("decoder_attention_heads", 256),
    ],
)
def test_a_configuration_that_whisper_cannot_be(
    folder: Path, tensors: Tensors, config: dict[str, Any], key: str, value: object
) -> None:
    refused(write(folder, tensors, config | {key: value}), "config.json", key, repr(value).strip("'"))


@pytest.mark.parametrize("n_vocab", [51863, 51867, 51868, 51968, 50257])
def test_a_vocabulary_with_added_tokens(folder: Path, tensors: Tensors, config: dict[str, Any], n_vocab: int) -> None:
    tensors[EMBEDDING] = torch.zeros(n_vocab, 128, dtype=torch.float16)
    refused(
        write(folder, tensors, config | {"vocab_size": n_vocab}), f"vocab_size {n_vocab}", "51864 or 51865 or 51866"
    )


def test_quantised_weights(folder: Path, tensors: Tensors, config: dict[str, Any]) -> None:
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    refused(write(folder, tensors, config), "quantised")


@pytest.mark.parametrize("n_layer", [3, 1000, 10**9])
def test_a_configuration_of_more_layers_than_there_are(
    folder: Path, tensors: Tensors, config: dict[str, Any], n_layer: int
) -> None:
    refused(write(folder, tensors, config | {"decoder_layers": n_layer}), "are not those of its config.json")


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


# generation_config.json


@pytest.mark.parametrize(
    "heads",
    ["all", 3, {"1": 0}, [1, 0], [[1]], [[1, 0, 0]], [["1", "0"]], [[1.0, 0]], [[True, False]], [[-1, 0]], [None]],
    ids=str,
)
def test_malformed_alignment_heads(folder: Path, tensors: Tensors, heads: object) -> None:
    write(folder, tensors, generation_config={"alignment_heads": heads})
    refused(folder, "generation_config.json", "malformed alignment_heads", "[layer, head]")


# The commands


def test_the_commands_print_the_sentence_and_no_traceback(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(folder)
    for arguments in (["warmup", str(folder)], ["convert", str(folder), str(folder / "nano.pt")]):
        assert main(arguments) == 2
        assert capsys.readouterr() == ("", f"whisper-max: error: {message}\n")
    assert main(["doctor", "--parity", str(folder)]) == 1
    assert f"FAIL: {folder}: {message}" in capsys.readouterr().out


def test_a_refused_folder_leaves_nothing_behind(nano: Pair, folder: Path, tensors: Tensors) -> None:
    kept = tensors.pop(FC1)
    refused(write(folder, tensors))
    model = load(write(folder, tensors | {FC1: kept}))
    assert torch.equal(model.decoder.blocks[1].mlp[0].weight, nano.torch.decoder.blocks[1].mlp[0].weight)
