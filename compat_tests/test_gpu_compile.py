"""The graphs compile for NVIDIA GPUs that are not there, by MAX's virtual devices, to the kernels that they should."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# In a process of its own: virtual devices are set for a whole process, and it may abort at exit.
COMPILE = """
import os, sys
from max.driver import Accelerator, set_virtual_device_api, set_virtual_device_count, set_virtual_device_target_arch
set_virtual_device_api("cuda")
set_virtual_device_target_arch(sys.argv[1])
set_virtual_device_count(1)

from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef
from whisper.model import ModelDimensions
from whisper_max_plugin.graphs import KERNELS, build_module

dims = ModelDimensions(80, 1500, 128, 2, 2, 51865, 448, 128, 2, 2)
module = build_module(dims, DType.float32, DeviceRef.GPU(0), DType.float16)
compiled = InferenceSession(devices=[Accelerator(0)]).compile(module, custom_extensions=[KERNELS])
compiled.export_mef(sys.argv[2])
os._exit(0)
"""

CI_COMPILES = "sm_90a"
OTHERS = ["sm_80", "sm_86", "sm_89", "sm_100a"]


@pytest.mark.parametrize(
    "architecture", [CI_COMPILES, *(pytest.param(other, marks=pytest.mark.large) for other in OTHERS)]
)
def test_all_graphs_compile_for_a_gpu(architecture: str, tmp_path: Path) -> None:
    artifact = tmp_path / "graphs.mef"
    # empty caches: MAX leaves kernels of other graphs in an artifact where it finds them
    caches = {"MODULAR_CACHE_DIR": str(tmp_path), "MODULAR_MAX_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPILE, architecture, str(artifact)]
    subprocess.run(command, env={**os.environ, **caches}, check=True)

    content = artifact.read_bytes()
    assert f"-arch {architecture}".encode() in content  # what the GPU code was assembled for
    names = {name.decode() for name in re.findall(rb"\.text\.(\w+)", content)}
    ours = {name for name in names if name.startswith("mojo_pkg_")}
    assert len(ours) > 20, "few kernels of our own are in the artifact"
    # MAX's float32 products round to the 10 bits of tensor cores, or are naive, or look for cuBLAS
    theirs = [name for name in names - ours if re.search("gemm|gemv|matmul|conv|mha|attention", name)]
    assert theirs == []
    assert b"cublas" not in content
