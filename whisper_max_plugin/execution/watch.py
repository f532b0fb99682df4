"""Wakes a thread of MAX that has slept through a call, which would else wait for ever.

What MAX is asked for, a run of a graph or a compilation, is handed to a thread of its own: MAX puts it into a queue and
then looks whether a thread sleeps. A thread that is about to sleep says so and then looks into the queue. MAX 26.7 lets
the processor exchange the two steps of the first, so that either may miss the other, seldom, but it does. Caller and
thread then wait for each other, until somebody hands over anything else.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

PATIENCE = 0.1  # seconds that a call may take before the threads are woken, whether they sleep or have much to do


class Watch:
    """Looks at the calls of MAX from a thread of its own, which sleeps while there are none."""

    def __init__(self) -> None:
        self._calls: dict[int, float] = {}  # when they began, by the thread that waits
        self._there_are_calls = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    @contextmanager
    def over(self) -> Iterator[None]:
        """Wake MAX's threads again and again as long as the block lasts, from `PATIENCE` on."""
        if self._thread is None:
            self._start()
        thread = threading.get_ident()
        outer = self._calls.get(thread)
        self._calls[thread] = time.monotonic()
        if not self._there_are_calls.is_set():
            self._there_are_calls.set()
        try:
            yield
        finally:
            if outer is None:
                del self._calls[thread]
            else:
                self._calls[thread] = outer

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, name="whisper_max watch", daemon=True)
                self._thread.start()

    def _look(self) -> None:
        while True:
            self._there_are_calls.wait()
            time.sleep(PATIENCE)
            latest = time.monotonic() - PATIENCE
            began = min(self._calls.copy().values(), default=None)
            if began is None:
                self._there_are_calls.clear()
                if self._calls:  # begun in between
                    self._there_are_calls.set()
            elif began <= latest:
                logger.debug("a call of MAX takes %.2f s: waking its threads", time.monotonic() - began)
                wake()


WATCH = Watch()

_ending = False
_waking = threading.Lock()


def wake() -> None:
    """Hand MAX's threads a task that does nothing, and wait until it is done; there may be no threads yet."""
    from max.engine.mlrt import AsyncValue

    done = threading.Event()
    with _waking:
        while not (_ending or done.is_set()):
            try:
                nothing: AsyncValue[object] = AsyncValue()
            except ValueError:  # while MAX opens its first device
                return
            nothing.add_done_callback(lambda _: done.set())  # by a thread of MAX
            nothing.set_result(0)
            done.wait(1)  # as this may be missed as well


@atexit.register
def _end() -> None:
    """Wake nobody any more: a thread of MAX that comes back to Python while it ends would abort the process."""
    global _ending
    _ending = True
    if _waking.acquire(timeout=1):
        _waking.release()
