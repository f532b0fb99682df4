"""Kernels that begin before the one before them has ended: what they may do until they have waited for it.

By the rule of `gpu_overlap.mojo`, which is stricter than PTX: a thread waits before it writes anything, before it reads
what the launch before may still write, before it lets the next launch begin, and before it ends.
"""

from __future__ import annotations

import numpy as np

from .errors import RaceError
from .races import Threads


class Overlap:
    """Which threads of a launch have waited for the launch before.

    Parameters
    ----------
    n_threads
        Threads that run at a time.
    """

    def __init__(self, n_threads: int) -> None:
        self.waited = np.zeros(n_threads, bool)

    def check(self, does: str, threads: Threads) -> None:
        """Raise if a thread that has not waited does what it has to wait for."""
        if (bad := ~self.waited[threads.numbers]).any():
            raise threads.error(RaceError, f"{does} before it has waited for the launch before", int(bad.argmax()))
