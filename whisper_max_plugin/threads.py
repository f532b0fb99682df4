"""Keeps torch's threads off the cores that graphs run on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_limited_decodes = 0
_threads_outside = 0  # torch.get_num_threads() when the first of them began


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Let torch compute on the calling thread alone, for loops that alternate torch and graphs.

    After a parallel region OpenMP's threads spin for milliseconds, waiting for the next one, on the cores that MAX's
    threads need: a step's few operations on one row of logits can more than double its time.
    """
    global _limited_decodes, _threads_outside
    with _lock:
        if _limited_decodes == 0:  # another thread's decode may have set it to 1 already
            _threads_outside = torch.get_num_threads()
        _limited_decodes += 1
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(_threads_outside)
        with _lock:
            _limited_decodes -= 1


@contextmanager
def all_torch_threads() -> Iterator[None]:
    """Lift `one_torch_thread`, for a forward pass that runs on torch after all."""
    if _limited_decodes == 0:
        yield
        return
    torch.set_num_threads(_threads_outside)
    try:
        yield
    finally:
        torch.set_num_threads(1)
