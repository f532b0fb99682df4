"""Wakes a thread of MAX that has slept through a call, which would else wait for ever.

A run of a graph is handed to a thread of MAX, which MAX 26.7 may miss to wake: twice in some hundred thousand
runs, while another process took the cores. Caller and thread then wait for each other. Any further run wakes the
thread, which does both. Binding weights is handed over in the same way. MAX's copies between buffers of the CPU can be
slept through as well, and wake nobody; there are none where memory is shared.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

PATIENCE = 0.25  # seconds that a run may take before the threads are woken, whether they sleep or have much to do


class Watch:
    """Looks at what runs from a thread of its own, which sleeps while nothing does."""

    def __init__(self) -> None:
        self._runs: dict[int, tuple[float, Callable[[], None]]] = {}  # by the thread that waits: since when, what wakes
        self._something_runs = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    @contextmanager
    def over(self, wake: Callable[[], None]) -> Iterator[None]:
        """Call `wake`, on another thread, as long as the block lasts, from `PATIENCE` on."""
        if self._thread is None:
            self._start()
        self._runs[threading.get_ident()] = time.monotonic(), wake
        if not self._something_runs.is_set():
            self._something_runs.set()
        try:
            yield
        finally:
            del self._runs[threading.get_ident()]

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, name="whisper_max watch", daemon=True)
                self._thread.start()

    def _look(self) -> None:
        while True:
            self._something_runs.wait()
            time.sleep(PATIENCE)
            self._look_once()  # with names of its own, which would else keep the latest run's model while nothing runs

    def _look_once(self) -> None:
        latest = time.monotonic() - PATIENCE
        runs = list(self._runs.values())
        for began, wake in runs:
            if began <= latest:
                logger.debug("a graph runs for %.2f s: waking MAX's threads", time.monotonic() - began)
                wake()
                break  # threads are the process's, whoever waits for them
        if not runs:
            self._something_runs.clear()
            if self._runs:  # begun in between
                self._something_runs.set()


WATCH = Watch()
