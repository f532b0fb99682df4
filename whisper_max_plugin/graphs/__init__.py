"""Whisper as MAX graphs: pure functions of the model's dimensions, precision and device."""

from __future__ import annotations

from max.dtype import DType
from max.graph import DeviceRef, Module
from whisper.model import ModelDimensions

from .cross_attention import build_cross_kv, build_cross_scores
from .decoder import build_decoder
from .encoder import build_encoder


def build_module(dims: ModelDimensions, dtype: DType, device: DeviceRef) -> Module:
    """Build all graphs of one model size into one module.

    One module compiles faster than its graphs one by one, since they share kernels.
    """
    module = Module()
    for build in (build_encoder, build_cross_kv, build_decoder, build_cross_scores):
        build(module, dims, dtype, device)
    return module
