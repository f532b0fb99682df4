"""Folders as Hugging Face has them, written without `transformers`: nano by other names, and what tests change of it.

The names are those of `transformers`' own conversion, a list of substitutions; what the plugin has goes the other way.
`test_huggingface.py` loads them into `transformers`, which takes no others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ..data import NANO

SUBSTITUTIONS = (
    ("blocks", "layers"),
    ("mlp.0", "fc1"),
    ("mlp.2", "fc2"),
    ("mlp_ln", "final_layer_norm"),
    (".cross_attn_ln", ".encoder_attn_layer_norm"),
    (".cross_attn", ".encoder_attn"),
    (".attn_ln", ".self_attn_layer_norm"),
    (".attn", ".self_attn"),
    (".query", ".q_proj"),
    (".key", ".k_proj"),
    (".value", ".v_proj"),
    (".out.", ".out_proj."),
    ("decoder.ln.", "decoder.layer_norm."),
    ("encoder.ln_post.", "encoder.layer_norm."),
    ("token_embedding", "embed_tokens"),
    ("positional_embedding", "embed_positions.weight"),
)
CONFIG: dict[str, Any] = {
    "model_type": "whisper",
    "activation_function": "gelu",
    "d_model": 128,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 512,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 512,
    "max_source_positions": 1500,
    "max_target_positions": 448,
    "num_mel_bins": 80,
    "vocab_size": 51865,
}
EMBEDDING = "model.decoder.embed_tokens.weight"

Tensors = dict[str, Tensor]


def hugging_faces(state: Tensors) -> Tensors:
    """Return upstream's tensors by Hugging Face's names."""
    renamed = {}
    for name, tensor in state.items():
        for upstreams, theirs in SUBSTITUTIONS:
            name = name.replace(upstreams, theirs)
        renamed[f"model.{name}"] = tensor
    return renamed


@pytest.fixture
def tensors() -> Tensors:
    """What nano.pt holds, float16, by Hugging Face's names."""
    return hugging_faces(torch.load(NANO)["model_state_dict"])


@pytest.fixture
def config() -> dict[str, Any]:
    return {**CONFIG}


def write(folder: Path, tensors: Tensors, config: object = CONFIG, **files: object) -> Path:
    """Write a folder of one safetensors file; `files` are further JSON files, by name without the ending."""
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in {"config": config, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def write_shards(folder: Path, tensors: Tensors, shards: Iterable[Iterable[str]]) -> dict[str, str]:
    """Write a folder of several safetensors files; return which of them holds which tensor, as the index does."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    weight_map = {}
    for i, names in enumerate(map(list, shards), start=1):
        save_file({name: tensors[name] for name in names}, folder / f"model-{i}.safetensors")
        weight_map |= dict.fromkeys(names, f"model-{i}.safetensors")
    write_index(folder, {"metadata": {}, "weight_map": weight_map})
    return weight_map


def write_index(folder: Path, content: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
