"""Measures where the first compile of a model size goes: `python docs/compile_times.py tiny`.

Each line is compiled in a process of its own with empty caches: one elementwise operation, which shows what every
compile costs, one matrix product, each graph alone, and the module of all graphs, which is what the plugin compiles.
Times are wall seconds and the CPU seconds of the compiler.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial

from max.driver import CPU
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef, Graph, Module, TensorType

from whisper_max_plugin.graphs import KERNELS, build_module
from whisper_max_plugin.graphs.cross_attention import build_cross_kv, build_cross_scores
from whisper_max_plugin.graphs.decoder import build_decoder
from whisper_max_plugin.graphs.encoder import build_encoder
from whisper_max_plugin.graphs.step import build_step
from whisper_max_plugin.sizes import OFFICIAL_DIMS

STORED = DType.float16  # the weights of OpenAI's checkpoints
GRAPHS = {
    "encoder": build_encoder,
    "cross_kv": build_cross_kv,
    "decoder": partial(build_decoder, stored=STORED),
    "cross_scores": build_cross_scores,
    "step": partial(build_step, stored=STORED),
}
PRIMITIVES = {"x + x": lambda x: x + x, "x @ x": lambda x: x @ x}


def module_of(name: str, size: str) -> Module:
    """Build what the line `name` compiles."""
    dims, device = OFFICIAL_DIMS[size], DeviceRef.CPU()
    if name == "all graphs":
        return build_module(dims, DType.float32, device, STORED)
    module = Module()
    if name in GRAPHS:
        GRAPHS[name](module, dims, DType.float32, device)
    else:
        x_type = TensorType(DType.float32, [dims.n_text_state, dims.n_text_state], device)
        with Graph("primitive", input_types=[x_type], module=module) as graph:
            graph.output(PRIMITIVES[name](graph.inputs[0].tensor))
    return module


def compile_alone(name: str, size: str) -> None:
    """Compile `name` in this process and print how long it took."""
    session, module = InferenceSession(devices=[CPU()]), module_of(name, size)
    started, cpu = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_utime
    session.compile(module, custom_extensions=[KERNELS])
    wall, cpu = time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF).ru_utime - cpu
    print(f"{size} {name:14} {wall:6.1f} s wall {cpu:6.1f} s cpu", flush=True)


def main() -> None:
    """Run every line for the model size named on the command line."""
    size = sys.argv[1] if len(sys.argv) > 1 else "tiny"
    for name in (*PRIMITIVES, *GRAPHS, "all graphs"):
        with tempfile.TemporaryDirectory() as caches:
            environment = {**os.environ, "MODULAR_CACHE_DIR": caches, "MODULAR_MAX_CACHE_DIR": caches}
            subprocess.run([sys.executable, __file__, size, name], env=environment, check=True)


if __name__ == "__main__":
    compile_alone(sys.argv[2], sys.argv[1]) if len(sys.argv) > 2 else main()
