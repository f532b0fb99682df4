"""Writes a Whisper model as CTranslate2 and faster-whisper read it, without transformers and without the network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import tokenizers
from numpy.typing import NDArray
from torch import Tensor
from whisper.model import Whisper

from whisper_max_plugin.bench.subjects import vocabulary
from whisper_max_plugin.execution.weights import stored_dtype

Arrays = Mapping[str, NDArray[np.float32]]


def write(model: Whisper, folder: Path) -> None:
    """Write weights, vocabulary and tokenizer of `model`; float16 where nothing is lost, as published models are.

    Parameters
    ----------
    model : Whisper
    folder : Path
        made if it is not there
    """
    dims, state = vars(model.dims), model.state_dict()
    spec = _spec(dims, {name: _float32(tensor) for name, tensor in state.items()})
    tokens, specials = vocabulary.text_tokens(dims), vocabulary.special_tokens(dims)
    spec.register_vocabulary([*map(vocabulary.printable, tokens), *specials])
    spec.config.suppress_ids = []  # given with each call
    spec.config.suppress_ids_begin = [*vocabulary.tokenizer_of(dims).encode(" "), vocabulary.tokenizer_of(dims).eot]
    spec.config.lang_ids = list(vocabulary.tokenizer_of(dims).all_language_tokens)
    spec.config.alignment_heads = model.alignment_heads.indices().T.tolist()
    spec.validate()
    exact = stored_dtype(state).itemsize == 2
    spec.optimize(quantization="float16" if exact else None)
    folder.mkdir(exist_ok=True)
    spec.save(str(folder))
    (folder / "preprocessor_config.json").write_text(json.dumps({"feature_size": dims["n_mels"]}))
    _tokenizer(tokens, specials).save(str(folder / "tokenizer.json"))


def _float32(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().float().numpy()


def _spec(dims: dict[str, int], state: Arrays) -> Any:
    spec = ctranslate2.specs.WhisperSpec(
        dims["n_audio_layer"], dims["n_audio_head"], dims["n_text_layer"], dims["n_text_head"]
    )
    encoder, decoder = spec.encoder, spec.decoder
    for name in ("conv1", "conv2"):
        _weight_and_bias(getattr(encoder, name), state, f"encoder.{name}")
    encoder.position_encodings.encodings = state["encoder.positional_embedding"]
    _norm(encoder.layer_norm, state, "encoder.ln_post")
    decoder.embeddings.weight = decoder.projection.weight = state["decoder.token_embedding.weight"]
    decoder.position_encodings.encodings = state["decoder.positional_embedding"]
    _norm(decoder.layer_norm, state, "decoder.ln")
    for part, layers in (("encoder", encoder.layer), ("decoder", decoder.layer)):
        for number, layer in enumerate(layers):
            _block(layer, state, f"{part}.blocks.{number}", cross_attention=part == "decoder")
    return spec


def _block(layer: Any, state: Arrays, name: str, *, cross_attention: bool) -> None:
    _norm(layer.self_attention.layer_norm, state, f"{name}.attn_ln")
    joined, out = layer.self_attention.linear
    _joined(joined, state, f"{name}.attn", "query", "key", "value")
    _weight_and_bias(out, state, f"{name}.attn.out")
    if cross_attention:
        _norm(layer.attention.layer_norm, state, f"{name}.cross_attn_ln")
        query, joined, out = layer.attention.linear
        _joined(query, state, f"{name}.cross_attn", "query")
        _joined(joined, state, f"{name}.cross_attn", "key", "value")
        _weight_and_bias(out, state, f"{name}.cross_attn.out")
    _norm(layer.ffn.layer_norm, state, f"{name}.mlp_ln")
    _weight_and_bias(layer.ffn.linear_0, state, f"{name}.mlp.0")
    _weight_and_bias(layer.ffn.linear_1, state, f"{name}.mlp.2")


def _joined(spec: Any, state: Arrays, name: str, *parts: str) -> None:
    """Fill one linear layer with several; the key has no bias."""
    weights = [state[f"{name}.{part}.weight"] for part in parts]
    biases = [
        state.get(f"{name}.{part}.bias", np.zeros(len(weight), np.float32))
        for part, weight in zip(parts, weights, strict=True)
    ]
    spec.weight, spec.bias = np.concatenate(weights), np.concatenate(biases)


def _weight_and_bias(spec: Any, state: Arrays, name: str) -> None:
    spec.weight, spec.bias = state[f"{name}.weight"], state[f"{name}.bias"]


def _norm(spec: Any, state: Arrays, name: str) -> None:
    spec.gamma, spec.beta = state[f"{name}.weight"], state[f"{name}.bias"]


def _tokenizer(tokens: list[bytes], specials: list[str]) -> tokenizers.Tokenizer:
    model = tokenizers.models.BPE(
        vocab={vocabulary.printable(token): number for number, token in enumerate(tokens)},
        merges=[(vocabulary.printable(left), vocabulary.printable(right)) for left, right in vocabulary.merges(tokens)],
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    return tokenizer
