"""Writes a Whisper model as whisper.cpp reads it: the format of its ``convert-pt-to-ggml.py``."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from torch import Tensor
from whisper.audio import N_FFT, mel_filters
from whisper.model import Whisper

from whisper_max_plugin.bench.subjects import vocabulary

MAGIC = 0x67676D6C  # "ggml"
FLOAT32, FLOAT16 = 0, 1
HEADER = (
    *("n_vocab", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer"),
    *("n_text_ctx", "n_text_state", "n_text_head", "n_text_layer", "n_mels"),
)


def write(model: Whisper, path: Path) -> None:
    """Write the model with its matrices in float16, as published ones are."""
    dims = vars(model.dims)
    tokens = vocabulary.text_tokens(dims)
    with path.open("wb") as file:
        _write_integers(file, MAGIC, *(dims[name] for name in HEADER), FLOAT16)
        _write_integers(file, dims["n_mels"], N_FFT // 2 + 1)
        file.write(mel_filters("cpu", dims["n_mels"]).numpy().astype(np.float32).tobytes())
        _write_integers(file, len(tokens))
        for token in tokens:
            _write_integers(file, len(token))
            file.write(token)
        for name, tensor in model.state_dict().items():
            _write_tensor(file, name, tensor)


def _write_tensor(file: BinaryIO, name: str, tensor: Tensor) -> None:
    values = tensor.detach().float().numpy()
    if name in ("encoder.conv1.bias", "encoder.conv2.bias"):
        values = values[:, None]  # added to every frame
    half = values.ndim > 1 and not name.endswith((".bias", ".positional_embedding"))
    encoded = name.encode()
    _write_integers(file, values.ndim, len(encoded), FLOAT16 if half else FLOAT32, *reversed(values.shape))
    file.write(encoded)
    file.write(values.astype(np.float16 if half else np.float32).tobytes())


def _write_integers(file: BinaryIO, *numbers: int) -> None:
    file.write(struct.pack(f"<{len(numbers)}i", *numbers))
