"""Keeps torch's threads off the cores that graphs run on."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class _Limit(threading.local):
    """The limit of one thread: OpenMP keeps a thread count for each thread."""

    holders = 0
    outside = 0  # torch.get_num_threads() when the first of them began


_limit = _Limit()


class OneTorchThread:
    """Lets torch compute on the calling thread alone, from now until `remove`.

    It is for loops that alternate torch and graphs: after a parallel region OpenMP's threads spin for milliseconds,
    waiting for the next one, on the cores that MAX's threads need, and a step's few operations on one row of logits
    can more than double its time. To callers of `install_kv_cache_hooks` it is the hook to remove after decoding.
    """

    def __init__(self) -> None:
        if _limit.holders == 0:
            _limit.outside = torch.get_num_threads()
        _limit.holders += 1
        _limit_this_thread(_limit.outside)
        self._lift = weakref.finalize(self, _lift_limit, threading.get_ident())  # also if a caller forgets to remove it

    def remove(self) -> None:
        """Give torch its threads back."""
        self._lift()


def _limit_this_thread(outside: int) -> None:
    # torch sets two numbers: the calling thread's, and the one that later threads start with and keep. For those
    # nothing is to change, which takes another thread to say.
    torch.set_num_threads(1)
    other = threading.Thread(target=torch.set_num_threads, args=(outside,))
    other.start()
    other.join()


def _lift_limit(limited: int) -> None:
    if threading.get_ident() == limited:  # from another thread, or its garbage collector, nothing reaches this one
        torch.set_num_threads(_limit.outside)
        _limit.holders -= 1


def torch_threads() -> int:
    """Return torch's number of threads on this thread, limited or not."""
    return _limit.outside if _limit.holders else torch.get_num_threads()


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
    if _limit.holders == 0:
        yield
        return
    torch.set_num_threads(_limit.outside)
    try:
        yield
    finally:
        _limit_this_thread(_limit.outside)
