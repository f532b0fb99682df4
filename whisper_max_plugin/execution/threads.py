"""How many threads compute: MAX gets as many as torch has, and torch's are kept off the cores that graphs run on."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class _Limit:
    """The limit of one thread: OpenMP keeps a thread count for each thread.

    Wherever Ctrl-C comes, what was set is remembered before, and forgotten after it was taken back.
    """

    def __init__(self) -> None:
        self._holders: set[object] = set()
        self._is_set = False
        self.outside = 0  # torch.get_num_threads() when it was set

    @property
    def is_on(self) -> bool:
        """Whether torch has one thread because of it, and not what somebody has set meanwhile."""
        return self._is_set and torch.get_num_threads() == 1

    def begin(self, holder: object) -> None:
        if not self.is_on:
            self.outside = torch.get_num_threads()
        self._is_set = True
        self._holders.add(holder)
        _limit_this_thread(self.outside)

    def end(self, holder: object) -> None:
        self._holders.discard(holder)
        # From another thread nothing reaches this one, and its next limit finds what is left.
        if not self._holders and _here.limit is self:
            if self.is_on:
                torch.set_num_threads(self.outside)
            self._is_set = False


class _Here(threading.local):
    def __init__(self) -> None:
        self.limit = _Limit()


_here = _Here()


class OneTorchThread:
    """Lets torch compute on the calling thread alone, from now until `remove`.

    It is for loops that alternate torch and graphs: after a parallel region OpenMP's threads spin for milliseconds,
    waiting for the next one, on the cores that MAX's threads need, and a step's few operations on one row of logits
    can more than double its time. To callers of `install_kv_cache_hooks` it is the hook to remove after decoding.
    """

    def __init__(self) -> None:
        limit, holder = _here.limit, object()
        self._end = weakref.finalize(self, limit.end, holder)  # also if a caller forgets to remove it
        limit.begin(holder)

    def remove(self) -> None:
        """Give torch its threads back, or leave it those that somebody has given it meanwhile."""
        self._end()

    def __enter__(self) -> OneTorchThread:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def _limit_this_thread(outside: int) -> None:
    # torch sets two numbers: the calling thread's, and the one that later threads start with and keep. For those
    # nothing is to change, which takes another thread to say.
    torch.set_num_threads(1)
    other = threading.Thread(target=torch.set_num_threads, args=(outside,))
    other.start()
    other.join()


def torch_threads() -> int:
    """Return torch's number of threads on this thread, limited or not."""
    return _here.limit.outside if _here.limit.is_on else torch.get_num_threads()


def copied(x: Tensor) -> Tensor:
    """Return a copy of a tensor on the CPU, which this thread alone makes.

    Torch's threads would wait for MAX's, which hold the cores for milliseconds after a graph, and then hold them
    themselves while the next one runs.
    """
    raw = x.view(torch.int16) if x.dtype == torch.bfloat16 else x  # NumPy knows no bfloat16
    return torch.from_numpy(raw.numpy().copy()).view(x.dtype)


@contextmanager
def all_torch_threads() -> Iterator[None]:
    """Lift the limit of `OneTorchThread`, for a forward pass that runs on torch after all."""
    limit = _here.limit
    if not limit.is_on:
        yield
        return
    torch.set_num_threads(limit.outside)
    try:
        yield
    finally:
        _limit_this_thread(limit.outside)


@contextmanager
def processors(n: int) -> Iterator[None]:
    """Let threads that begin inside believe in `n` processors; once they run, they may use all of this process's.

    MAX makes as many threads as there are processors when its first device is opened, once for a process, and
    ``InferenceSession(num_threads=n)`` aborts the process then.
    """
    if not hasattr(os, "sched_setaffinity") or n >= len(os.sched_getaffinity(0)):
        yield
        return
    all_processors = os.sched_getaffinity(0)
    before = set(os.listdir("/proc/self/task"))
    os.sched_setaffinity(0, sorted(all_processors)[:n])
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_processors)
        # A new thread may have begun another one, which believes what it believed then.
        while new := set(os.listdir("/proc/self/task")) - before:
            before |= new
            for thread in new:
                with contextlib.suppress(ProcessLookupError):  # it has ended
                    os.sched_setaffinity(int(thread), all_processors)
