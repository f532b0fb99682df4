"""An interpreter of NVIDIA's PTX, so that GPU kernels can be compared with torch where there is no GPU.

It is for what LLVM writes for kernels of numbers: no tensor cores, asynchronous copies, textures, calls or clusters.
All threads run in step: always the instruction with the lowest number at which a thread stands, for all threads there.
"""

from __future__ import annotations

from .kernel import Kernel, Table
from .memory import AccessError, KernelError, RaceError

__all__ = ["AccessError", "Kernel", "KernelError", "RaceError", "Table"]
