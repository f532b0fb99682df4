"""What this machine's processor can do, and which one the host's part of graphs for GPUs is compiled for."""

from __future__ import annotations

import contextlib
import hashlib
import platform
from collections.abc import Iterator
from functools import cache
from pathlib import Path


def name() -> str:
    """Return what the processor is sold as, or else its architecture."""
    return _described("model name") or platform.processor() or platform.machine()


def features() -> list[str]:
    """Return what the processor can do, as Linux names it; nothing elsewhere."""
    return _described("flags", "features").split()


def _described(*keys: str) -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip().lower() in keys:
                return value.strip()
    return ""


@cache
def digest() -> str:
    """Digest of the processor's features: graphs are compiled for them, and homes are shared by machines."""
    described = [platform.machine(), platform.processor(), *features()]
    return hashlib.sha256(" ".join(described).encode()).hexdigest()[:16]


def multiplies_pairs() -> bool:
    """Tell whether the processor multiplies bfloat16 twice as fast as float32, see ``kernels/pairs.mojo``.

    AMD's do from Zen 4 on. Intel's with the same instruction are said to be slower by it, since they are made for AMX.
    """
    return _described("vendor_id") == "AuthenticAMD" and "avx512_bf16" in features()


def host_code() -> str:
    """Return which processor the host's part of graphs for GPUs is compiled for.

    It is small and copies a few numbers, so it need not be this machine's: what one machine compiles, others run.
    """
    if platform.machine() not in ("x86_64", "AMD64") or "avx2" not in features():
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
