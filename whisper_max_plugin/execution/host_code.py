"""Which processor the host's part of graphs for GPUs is compiled for."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator
from pathlib import Path


def host_code() -> str:
    """Return which processor the host's part of graphs for GPUs is compiled for.

    It is small and copies a few numbers, so it need not be this machine's: what one machine compiles, others run.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return "generic"
    with contextlib.suppress(OSError):
        if "avx2" not in Path("/proc/cpuinfo").read_text().split():
            return "generic"
    return "x86-64-v3"


@contextlib.contextmanager
def portable_host_code() -> Iterator[None]:
    """Compile host code for `host_code` inside, and for this machine again afterwards."""
    from max.driver import get_virtual_cpu_target, set_virtual_cpu_target

    before = get_virtual_cpu_target()
    set_virtual_cpu_target(host_code())
    try:
        yield
    finally:
        set_virtual_cpu_target(before)
