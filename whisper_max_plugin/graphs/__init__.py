"""Whisper as MAX graphs: pure functions of the model's dimensions, types and device."""

from __future__ import annotations

from max.graph import DeviceRef, KernelLibrary, Module
from whisper.model import ModelDimensions

from .cross_attention import build_cross_kv, build_cross_scores
from .decoder import build_decoder
from .encoder import build_encoder
from .kernel_layers import has_kernels
from .kernels import KERNELS, LARGEST_VECTOR, kernel_library
from .log_mel import build_log_mel
from .search import build_search
from .step import build_step
from .types import Types

__all__ = ["KERNELS", "LARGEST_VECTOR", "Types", "build_module", "has_kernels", "kernel_library"]


def build_module(dims: ModelDimensions, types: Types, device: DeviceRef, library: KernelLibrary) -> Module:
    """Build all graphs of one model size into one module.

    One module compiles faster than its graphs one by one, since they share kernels. The graph ``step`` is left out for
    models that kernels cannot serve.
    """
    module = Module()
    build_encoder(module, dims, types, device, library)
    build_cross_kv(module, dims, types, device, library)
    build_decoder(module, dims, types, device, library)
    build_cross_scores(module, dims, types, device, library)
    build_search(module, dims, device, library)
    build_log_mel(module, dims, library)
    if has_kernels(dims):
        build_step(module, dims, types, device, library)
    return module
