"""Whether anybody is left who could ask for what threads of this package compute in advance."""

from __future__ import annotations

import threading


class Consumer:
    """The thread that asks for results, as the threads that work for it see it.

    The interpreter waits for those that work before it exits, so they have to find out themselves that it wants to.
    """

    def __init__(self) -> None:
        self._thread = threading.current_thread()

    def asks(self) -> None:
        """Note that the calling thread asks."""
        self._thread = threading.current_thread()

    @property
    def is_gone(self) -> bool:
        """Whether the program has ended, and with it the thread that asked last.

        While the main thread runs, another one may ask next: those of a server's pool come and go. Behind its end the
        interpreter waits for other threads, but for no daemon.
        """
        return not threading.main_thread().is_alive() and (self._thread.daemon or not self._thread.is_alive())
