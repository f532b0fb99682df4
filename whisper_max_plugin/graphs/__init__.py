"""Whisper as MAX graphs: pure functions of the model's dimensions, types and device."""

from __future__ import annotations

from max.graph import DeviceRef, KernelLibrary, Module
from whisper.model import ModelDimensions

from whisper_max_plugin.graphs.alignment import build_alignment, build_token_probs
from whisper_max_plugin.graphs.cross_attention import build_cross_kv, build_cross_scores
from whisper_max_plugin.graphs.decoder import build_decoder
from whisper_max_plugin.graphs.encoder import build_encoder
from whisper_max_plugin.graphs.kernel_layers import has_kernels
from whisper_max_plugin.graphs.kernels import KERNELS, LARGEST_VECTOR, kernel_library
from whisper_max_plugin.graphs.log_mel import build_log_mel
from whisper_max_plugin.graphs.search import build_search
from whisper_max_plugin.graphs.step import build_step
from whisper_max_plugin.graphs.types import Types

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
    build_alignment(module, dims, device, library)
    build_token_probs(module, dims, device, library)
    build_search(module, dims, device, library)
    build_log_mel(module, dims, library)
    if has_kernels(dims):
        build_step(module, dims, types, device, library)
    return module
