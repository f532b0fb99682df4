"""A stand-in for a GPU in whole processes and their children: "cuda" is the CPU, with everything copied there and back.

It is put into processes by the file ``sitecustomize.py`` that Python imports when it starts.
"""

from __future__ import annotations

import os

import pytest

SITECUSTOMIZE = """
import os
import time

from whisper_max_plugin.import_hook import when_imported


def replace_find(devices):
    class Pretended(devices.Device):
        index = None  # for MAX it is the CPU
        computes_in_half = True

        def get(self, buffer):
            fault = os.environ.get("FAULT_OF_CUDA")
            if fault == "dies":
                os.abort()
            if fault == "full":
                with self.at_work():
                    raise ValueError("CUDA call failed: CUDA_ERROR_OUT_OF_MEMORY (out of memory)")
            if fault == "hangs":
                time.sleep(600)
            got = super().get(buffer)
            return got * 1.01 if fault == "wrong" else got

    def find(name):
        return Pretended("cuda:0", shares_memory=False) if str(name).startswith("cuda") else original(name)

    original, devices.find = devices.find, find


def gpu_facts(name):
    return {"gpu": "a GPU", "architecture": "sm_00", "driver": None, "memory": 8_000_000_000}


when_imported("whisper_max_plugin.execution.devices", replace_find)
when_imported("whisper_max_plugin.bench.machine", lambda machine: setattr(machine, "gpu_facts", gpu_facts))
"""


@pytest.fixture(scope="session")
def with_cuda(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of processes that see the stand-in, which can have a FAULT_OF_CUDA."""
    folder = tmp_path_factory.mktemp("cuda")
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
