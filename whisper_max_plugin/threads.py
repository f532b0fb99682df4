"""Keeps torch's threads off the cores that graphs run on."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.RLock()  # a limit may be lifted by the garbage collector, anywhere
_limited_decodes = 0
_threads_outside = 0  # torch.get_num_threads() when the first of them began


class OneTorchThread:
    """Lets torch compute on the calling thread alone, from now until `remove`.

    It is for loops that alternate torch and graphs: after a parallel region OpenMP's threads spin for milliseconds,
    waiting for the next one, on the cores that MAX's threads need, and a step's few operations on one row of logits
    can more than double its time. To callers of `install_kv_cache_hooks` it is the hook to remove after decoding.
    """

    def __init__(self) -> None:
        global _limited_decodes, _threads_outside
        with _lock:
            if _limited_decodes == 0:  # another thread's decode may have set it to 1 already
                _threads_outside = torch.get_num_threads()
            _limited_decodes += 1
        torch.set_num_threads(1)
        self._lift = weakref.finalize(self, _lift_limit)  # also if a caller forgets to remove it

    def remove(self) -> None:
        """Give torch its threads back."""
        self._lift()


def _lift_limit() -> None:
    global _limited_decodes
    torch.set_num_threads(_threads_outside)
    with _lock:
        _limited_decodes -= 1


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Limit torch to one thread inside, see `OneTorchThread`."""
    limit = OneTorchThread()
    try:
        yield
    finally:
        limit.remove()


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
