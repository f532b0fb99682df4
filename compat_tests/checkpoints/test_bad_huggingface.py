"""Folders that are no whole Whisper model of Hugging Face are refused in one sentence, which says what to do."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from whisper_max_plugin.cli import main

from ..conftest import Pair
from ..data import NANO
from .huggingface_fixtures import CONFIG, EMBEDDING, Tensors, config, tensors, write
from .refusals import FC1, folder, installed, load, refused

__all__ = ["config", "folder", "installed", "tensors"]  # fixtures, found by name

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
    assert f"FAIL: {message}" in capsys.readouterr().out  # which begins with the folder


def test_a_refused_folder_leaves_nothing_behind(nano: Pair, folder: Path, tensors: Tensors) -> None:
    kept = tensors.pop(FC1)
    refused(write(folder, tensors))
    model = load(write(folder, tensors | {FC1: kept}))
    assert torch.equal(model.decoder.blocks[1].mlp[0].weight, nano.torch.decoder.blocks[1].mlp[0].weight)
