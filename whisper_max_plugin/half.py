"""Whether a model computes in half width where upstream's `fp16` asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from whisper.model import Whisper


def takes_half(model: Whisper) -> bool:
    """Return what to give as `fp16`: whether `transcribe()` would keep its default, True, for this model.

    That compares devices, as this does. `model.device.type` would not tell: a `MaxWhisper` whose graphs run on a GPU
    keeps its parameters on the CPU, and its device is "cpu:0".
    """
    return model.device != torch.device("cpu")
