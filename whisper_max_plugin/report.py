"""Counts what ran where: graph runs, encoder runs saved, declared fallbacks to torch, compile time."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from typing import Any

from whisper_max_plugin.errors import FallbackError

logger = logging.getLogger(__name__)


class Report:
    """Thread-safe counters of one process; `snapshot` is what ``whisper_max_plugin.status()`` shows."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget everything counted so far."""
        with self._lock:
            self._graph_runs: Counter[str] = Counter()
            self._fallbacks: Counter[str] = Counter()
            self._encoder_runs_saved = 0
            self._steps_replayed = 0
            self._compile_seconds = 0.0
            self._device: str | None = None
            self._precision: str | None = None

    def graph_run(self, kind: str, n_runs: int = 1) -> None:
        """Count executions of the graph `kind`."""
        with self._lock:
            self._graph_runs[kind] += n_runs

    def step_replayed(self) -> None:
        """Count one step that the device ran from a recording, beside `graph_run`."""
        with self._lock:
            self._steps_replayed += 1

    def encoder_run_saved(self) -> None:
        """Count one encoder call that was answered with the features of the same window."""
        with self._lock:
            self._encoder_runs_saved += 1

    def fallback(self, reason: str) -> None:
        """Declare that one call runs on torch, and why.

        Raises
        ------
        FallbackError
            if the environment sets ``WHISPER_MAX_STRICT=1``
        """
        if os.environ.get("WHISPER_MAX_STRICT", "") not in ("", "0"):
            raise FallbackError(f"{reason}; unset WHISPER_MAX_STRICT to let this call run on torch")
        with self._lock:
            self._fallbacks[reason] += 1
            first = self._fallbacks[reason] == 1
        if first:
            logger.warning("falling back to torch: %s", reason)

    def compiled(self, seconds: float) -> None:
        """Add the time that a compilation took."""
        with self._lock:
            self._compile_seconds += seconds

    def engine_ready(self, device: str, precision: str) -> None:
        """Note the device and the precision that graphs run with."""
        with self._lock:
            self._device, self._precision = device, precision

    def snapshot(self) -> dict[str, Any]:
        """Return the counters as a JSON-serialisable dict."""
        with self._lock:
            return {
                "graph_runs": dict(self._graph_runs),
                "encoder_runs_saved": self._encoder_runs_saved,
                "steps_replayed": self._steps_replayed,
                "fallbacks": dict(self._fallbacks),
                "compile_seconds": round(self._compile_seconds, 3),
                "device": self._device,
                "precision": self._precision,
            }


REPORT = Report()
