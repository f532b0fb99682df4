"""An interpreter of NVIDIA's PTX, so that GPU kernels can be compared with torch where there is no GPU.

It is for what LLVM writes for kernels of numbers, also on tensor cores as of sm_80: products of float16 and bfloat16,
and asynchronous copies that threads wait for themselves. There are no textures, calls, clusters or tensor maps.
All threads run in step: always the instruction with the lowest number at which a thread stands, for all threads there.
"""

from __future__ import annotations

from .errors import AccessError, KernelError, RaceError
from .kernel import Kernel, Table

__all__ = ["AccessError", "Kernel", "KernelError", "RaceError", "Table"]
