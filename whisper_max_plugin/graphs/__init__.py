"""Whisper as MAX graphs: pure functions of the model's dimensions, precision and device."""

from __future__ import annotations

from max.dtype import DType
from max.graph import DeviceRef, Module
from whisper.model import ModelDimensions

from .cross_attention import build_cross_kv, build_cross_scores
from .decoder import build_decoder
from .encoder import build_encoder
from .kernel_layers import has_kernels
from .kernels import KERNELS, LARGEST_VECTOR
from .search import build_search
from .step import build_step

__all__ = ["KERNELS", "LARGEST_VECTOR", "build_module", "has_kernels"]


def build_module(dims: ModelDimensions, dtype: DType, device: DeviceRef, stored: DType) -> Module:
    """Build all graphs of one model size into one module.

    One module compiles faster than its graphs one by one, since they share kernels. `stored` is the type of the
    weights that the step reads and, unless that is int8, the decoder's other graphs too. The graph ``step`` is left
    out for models that kernels cannot serve.
    """
    module = Module()
    build_encoder(module, dims, dtype, device, stored)
    build_cross_kv(module, dims, dtype, device, stored)
    build_decoder(module, dims, dtype, device, stored)
    build_cross_scores(module, dims, dtype, device, stored)
    build_search(module, dims, dtype, device)
    if has_kernels(dims):
        build_step(module, dims, dtype, device, stored)
    return module
