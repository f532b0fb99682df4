"""What this machine, or its GPU, can do at best: memory bandwidth and matrix products."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from whisper_max_plugin.execution.devices import Device

MEMORY_BYTES = 512 * 2**20  # of each array; much more than any cache
MATRIX_ROWS = 3072
ROUNDS = 4
GPU_CALLS = 20  # enqueued together, so that their launches do not count
GPU_MATRIX_ROWS = 8192


@dataclass(frozen=True)
class Limits:
    """The best of some rounds each.

    Attributes
    ----------
    read_bytes_per_second : float
        of a long array, read once
    copy_bytes_per_second : float
        of copying one, read and written bytes together
    flops_per_second : float | None
        of a product of float32 matrices; None where nothing at hand computes one at full speed
    half_flops_per_second : float | None
        of float16 matrices, on a GPU
    """

    read_bytes_per_second: float
    copy_bytes_per_second: float
    flops_per_second: float | None
    half_flops_per_second: float | None = None

    def better_of(self, other: Limits) -> Limits:
        """Return the higher ones of both."""
        return Limits(
            max(self.read_bytes_per_second, other.read_bytes_per_second),
            max(self.copy_bytes_per_second, other.copy_bytes_per_second),
            _higher(self.flops_per_second, other.flops_per_second),
            _higher(self.half_flops_per_second, other.half_flops_per_second),
        )

    def products(self, *, half: bool) -> float | None:
        """Return the speed of products of float16 or float32 matrices."""
        return self.half_flops_per_second if half else self.flops_per_second


def _higher(one: float | None, other: float | None) -> float | None:
    return max((speed for speed in (one, other) if speed is not None), default=None)


def measure_limits(name: str) -> Limits:
    """Measure the device that torch calls `name`, for some seconds; the arrays take 1 GB meanwhile."""
    import torch

    torch.set_grad_enabled(False)
    if name == "cpu":
        torch.set_num_threads(n_processors())
        return _of_processors()
    device = torch.device(name)
    if device.index < torch.cuda.device_count():
        return limits_by_torch(device, lambda: torch.cuda.synchronize(device))
    from whisper_max_plugin.execution import devices

    return limits_by_max(devices.find(name))


def _of_processors() -> Limits:
    import torch

    source = torch.ones(MEMORY_BYTES // 4)
    target = torch.zeros_like(source)
    rows = source.view(-1, 4096)
    column = torch.ones(4096)
    a = torch.ones(MATRIX_ROWS, MATRIX_ROWS)
    image, filters = a.view(1, MATRIX_ROWS, MATRIX_ROWS, 1), a.view(MATRIX_ROWS, MATRIX_ROWS, 1, 1)
    read = min(_seconds(lambda: source.sum()), _seconds(lambda: rows @ column))
    copy = _seconds(lambda: target.copy_(source))
    # by both of torch's libraries, of which either may be far behind the other: MKL, and oneDNN
    product = min(_seconds(lambda: a @ a), _seconds(lambda: torch.nn.functional.conv2d(image, filters)))
    return Limits(MEMORY_BYTES / read, 2 * MEMORY_BYTES / copy, 2 * MATRIX_ROWS**3 / product)


def limits_by_torch(
    device: torch.device,
    synchronize: Callable[[], object],
    n_bytes: int = MEMORY_BYTES,
    n_rows: int = GPU_MATRIX_ROWS,
) -> Limits:
    """Measure a GPU by torch, whose float32 products are computed in float32 unless someone sets them to TF32."""
    import torch

    source = torch.ones(n_bytes // 4, device=device)
    target = torch.zeros_like(source)
    read = _enqueued_seconds(lambda: source.sum(), synchronize)
    copy = _enqueued_seconds(lambda: target.copy_(source), synchronize)
    full, half = (torch.ones(n_rows, n_rows, device=device, dtype=dtype) for dtype in (torch.float32, torch.float16))
    seconds = [_enqueued_seconds(partial(torch.mm, a, a), synchronize) for a in (full, half)]
    return Limits(n_bytes / read, 2 * n_bytes / copy, *(2 * n_rows**3 / each for each in seconds))


def limits_by_max(device: Device, n_bytes: int = MEMORY_BYTES) -> Limits:
    """Measure a GPU without torch's CUDA: the bandwidth of copies stands for that of reading too."""
    source, target = device.empty([n_bytes // 4]), device.empty([n_bytes // 4])
    copy = _enqueued_seconds(lambda: target.inplace_copy_from(source), device.driver.synchronize)
    return Limits(2 * n_bytes / copy, 2 * n_bytes / copy, None)


def _seconds(call: Callable[[], object]) -> float:
    """Return the best time of some calls."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def _enqueued_seconds(call: Callable[[], object], synchronize: Callable[[], object]) -> float:
    """Return the best time of a call that others of its kind follow on the device."""

    def calls() -> None:
        for _ in range(GPU_CALLS):
            call()
        synchronize()

    call()
    synchronize()
    return _seconds(calls) / GPU_CALLS


def n_processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def facts() -> dict[str, object]:
    """Return the processor, its number, and the versions of the libraries."""
    from whisper_max_plugin.doctor import parity

    return {**parity.machine(), "processors": n_processors()}


def gpu_facts(name: str) -> dict[str, object]:
    """Return what MAX and the system say of the GPU that torch calls `name`."""
    from whisper_max_plugin import environment
    from whisper_max_plugin.execution import devices

    driver = devices.find(name).driver
    return {
        "gpu": driver.model_name,
        "architecture": driver.architecture_name,
        "driver": environment.nvidia_driver_version(),
        "memory": driver.stats["total_memory"],
    }
