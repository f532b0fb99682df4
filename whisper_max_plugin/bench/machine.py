"""What this machine can do at best: memory bandwidth and float32 matrix products, on all cores, measured by torch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass

MEMORY_BYTES = 512 * 2**20  # of each array; much more than any cache
MATRIX_ROWS = 3072
ROUNDS = 4


@dataclass(frozen=True)
class Limits:
    """The best of some rounds each.

    Attributes
    ----------
    read_bytes_per_second : float
        of a long array, read once
    copy_bytes_per_second : float
        of copying one, read and written bytes together
    flops_per_second : float
        of a product of float32 matrices
    """

    read_bytes_per_second: float
    copy_bytes_per_second: float
    flops_per_second: float

    def better_of(self, other: Limits) -> Limits:
        """Return the higher ones of both."""
        return Limits(*(max(pair) for pair in zip(astuple(self), astuple(other), strict=True)))


def measure_limits() -> Limits:
    """Measure this machine for some seconds; the arrays take 1 GB meanwhile."""
    import torch

    torch.set_num_threads(n_processors())
    torch.set_grad_enabled(False)
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


def _seconds(call: Callable[[], object]) -> float:
    """Return the best time of some calls."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def n_processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def facts() -> dict[str, object]:
    """Return the processor, its number, and the versions of the libraries."""
    from whisper_max_plugin import parity

    return {**parity.machine(), "processors": n_processors()}
