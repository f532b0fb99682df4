"""Reads Whisper checkpoints of Hugging Face: a folder's configuration, and its tensors by upstream's names."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from whisper.model import ModelDimensions

from whisper_max_plugin.checkpoints import alignment_heads
from whisper_max_plugin.checkpoints.checkpoint import Checkpoint, check_state, expected_shapes
from whisper_max_plugin.checkpoints.huggingface_files import read_json, read_tensors
from whisper_max_plugin.errors import CheckpointError

logger = logging.getLogger(__name__)

CONFIG, GENERATION_CONFIG, ADAPTER_CONFIG = "config.json", "generation_config.json", "adapter_config.json"
NAMES_OF_DIMS = {
    "n_mels": "num_mel_bins",
    "n_audio_ctx": "max_source_positions",
    "n_audio_state": "d_model",
    "n_audio_head": "encoder_attention_heads",
    "n_audio_layer": "encoder_layers",
    "n_vocab": "vocab_size",
    "n_text_ctx": "max_target_positions",
    "n_text_state": "d_model",
    "n_text_head": "decoder_attention_heads",
    "n_text_layer": "decoder_layers",
}
N_MELS = (80, 128)  # of upstream's filters
N_AUDIO_CTX = 1500  # 30 s, what upstream's audio is padded to
N_VOCABS = (51864, 51865, 51866)  # of upstream's tokenizers: English, multilingual, with Cantonese
# what upstream calls otherwise, part by part; `mlp.0` and `mlp.2` are `fc1` and `fc2`
NAMES_OF_PARTS = {
    "blocks": "layers",
    "attn": "self_attn",
    "attn_ln": "self_attn_layer_norm",
    "cross_attn": "encoder_attn",
    "cross_attn_ln": "encoder_attn_layer_norm",
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "out": "out_proj",
    "mlp_ln": "final_layer_norm",
    "ln": "layer_norm",
    "ln_post": "layer_norm",
    "token_embedding": "embed_tokens",
    "positional_embedding": "embed_positions.weight",
}
EMBEDDING, PROJECTION = "model.decoder.embed_tokens.weight", "proj_out.weight"
STORED_TYPES = (torch.float16, torch.bfloat16, torch.float32)


def read(folder: str | Path) -> Checkpoint:
    """Check the checkpoint in `folder` strictly, and return what it holds; the tensors are mapped, not read.

    Raises
    ------
    CheckpointError
        if the folder holds something else than a whole Whisper model in safetensors, a model that upstream's classes
        cannot be, or damaged files; or if a tensor is missing, unused, of the wrong shape or type
    """
    folder = Path(folder)
    if (folder / ADAPTER_CONFIG).exists():
        raise CheckpointError(
            f"{folder} holds an adapter (such as LoRA), which whisper cannot apply: merge it into its base model by "
            "peft's merge_and_unload(), and save the result"
        )
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"{folder} is no checkpoint of Hugging Face, for it has no {CONFIG}: give the folder that has one beside "
            "the weights"
        )
    config = read_json(folder / CONFIG)
    dims = _dims(config, folder / CONFIG)
    tensors = read_tensors(folder)
    _drop_zero_biases(tensors, folder)
    _drop_tied_projection(tensors, config, folder)
    check_state(dims, tensors, source=str(folder), described_by=CONFIG, renamed=hugging_faces_name)
    for name, tensor in tensors.items():
        if tensor.dtype not in STORED_TYPES:
            raise CheckpointError(
                f"{name} in {folder} is of type {_type_name(tensor)}: save the model in float32, float16 or bfloat16"
            )
    state = {name: tensors[hugging_faces_name(name)] for name in expected_shapes(dims)}
    return Checkpoint(dims, state, _alignment_heads(folder, dims))


def hugging_faces_name(name: str) -> str:
    """Return what Hugging Face calls the tensor that upstream calls `name`."""
    parts = name.replace("mlp.0", "fc1").replace("mlp.2", "fc2").split(".")
    return ".".join(["model", *(NAMES_OF_PARTS.get(part, part) for part in parts)])


def _dims(config: Mapping[str, Any], path: Path) -> ModelDimensions:
    """Return what `config` says of the model's size, if upstream's classes can be that model."""
    if config.get("model_type") != "whisper":
        raise CheckpointError(
            f"{path} describes no Whisper model of Hugging Face: its model_type is {config.get('model_type')!r} and "
            "should be 'whisper'"
        )
    if config.get("quantization_config") is not None:
        raise CheckpointError(
            f"{path} describes quantised weights, which are read by the library that made them alone: save the model "
            "in float32, float16 or bfloat16"
        )
    for key in NAMES_OF_DIMS.values():
        if type(config.get(key)) is not int or config[key] < 1:
            raise CheckpointError(f"{path} has {key} {config.get(key)!r}, which should be a positive integer")
    n_state = config["d_model"]
    for part in ("encoder", "decoder"):
        if n_state % config[f"{part}_attention_heads"]:
            n_head = config[f"{part}_attention_heads"]
            raise CheckpointError(f"{path} has {part}_attention_heads {n_head}, which do not divide d_model {n_state}")
    if config["vocab_size"] not in N_VOCABS:
        raise CheckpointError(
            f"{path} has vocab_size {config['vocab_size']}, and whisper's tokenizers have {_listed(N_VOCABS)} tokens: "
            "others cannot be decoded, so cut them off by transformers' resize_token_embeddings() and save the result"
        )
    for key, possible in {
        "num_mel_bins": N_MELS,
        "max_source_positions": (N_AUDIO_CTX,),
        "encoder_ffn_dim": (4 * n_state,),
        "decoder_ffn_dim": (4 * n_state,),
        "activation_function": ("gelu",),
    }.items():
        if config.get(key) not in possible:
            raise CheckpointError(
                f"{path} has {key} {config.get(key)!r}, and whisper runs {_listed(possible)} only: run this model "
                "by transformers"
            )
    return ModelDimensions(**{name: config[key] for name, key in NAMES_OF_DIMS.items()})


def _listed(values: tuple[object, ...]) -> str:
    return " or ".join(map(str, values))


def _drop_zero_biases(tensors: dict[str, Tensor], folder: Path) -> None:
    """Take out the biases of key projections, which no Whisper has but some tools write."""
    for name in [name for name in tensors if name.endswith("_attn.k_proj.bias")]:
        if torch.count_nonzero(tensors[name]):
            raise CheckpointError(
                f"{name} in {folder} is not zero, and whisper's key projections have no bias: run this model by "
                "transformers"
            )
        if name.replace(".bias", ".weight") in tensors:
            del tensors[name]


def _drop_tied_projection(tensors: dict[str, Tensor], config: Mapping[str, Any], folder: Path) -> None:
    """Take out the output projection, for which upstream takes the token embedding."""
    embedding, projection = tensors.get(EMBEDDING), tensors.pop(PROJECTION, None)
    if projection is None and config.get("tie_word_embeddings") is False:
        raise CheckpointError(
            f"the tensors in {folder} are not those of its {CONFIG}: missing {PROJECTION}, for tie_word_embeddings "
            "is false"
        )
    if projection is None or embedding is None:
        return
    if projection.shape != embedding.shape or not torch.equal(projection.float(), embedding.float()):
        raise CheckpointError(
            f"{PROJECTION} in {folder} differs from {EMBEDDING}, and whisper has one tensor for both: run this model "
            "by transformers"
        )


def _type_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _alignment_heads(folder: Path, dims: ModelDimensions) -> str | None:
    """Return the folder's alignment heads as upstream takes them; None if it names none of this model."""
    path = folder / GENERATION_CONFIG
    if not path.exists():
        return None
    heads = read_json(path).get("alignment_heads")
    if heads is None or heads == []:
        return None
    if not isinstance(heads, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(type(n) is int and n >= 0 for n in pair) for pair in heads
    ):
        raise CheckpointError(f"{path} has malformed alignment_heads: they should be a list of [layer, head]")
    # Distilled models often come with the file of the model that they were distilled from.
    if any(layer >= dims.n_text_layer or head >= dims.n_text_head for layer, head in heads):
        logger.warning(
            "the alignment_heads in %s are of a model with more layers or heads, so words are aligned by upstream's "
            "default, the upper half of the decoder's layers",
            path,
        )
        return None
    return alignment_heads.dump(((layer, head) for layer, head in heads), dims)
