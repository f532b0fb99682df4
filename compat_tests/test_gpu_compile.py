"""The graphs compile for an NVIDIA GPU that is not there, by MAX's virtual devices; nothing runs on one here."""

from __future__ import annotations

import os
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
from whisper_max_plugin.graphs import build_module

dims = ModelDimensions(80, 1500, 128, 2, 2, 51865, 448, 128, 2, 2)
compiled = InferenceSession(devices=[Accelerator(0)]).compile(build_module(dims, DType.float32, DeviceRef.GPU(0)))
compiled.export_mef(sys.argv[2])
os._exit(0)
"""


@pytest.mark.large
@pytest.mark.parametrize("architecture", ["sm_90a"])
def test_all_graphs_compile_for_a_gpu(architecture: str, tmp_path: Path) -> None:
    artifact = tmp_path / "graphs.mef"
    caches = {"MODULAR_CACHE_DIR": str(tmp_path), "MODULAR_MAX_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPILE, architecture, str(artifact)]
    subprocess.run(command, env={**os.environ, **caches}, check=True)
    assert f"-arch {architecture}".encode() in artifact.read_bytes()  # what the GPU code was assembled for
