"""Runs a graph again and again on the same memory; a GPU records what it launches, and repeats that as a whole."""

from __future__ import annotations

import itertools
import logging
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

from max.driver import Buffer

from whisper_max_plugin.execution.devices import Mirrors, push_all

if TYPE_CHECKING:
    from max.engine import Model

logger = logging.getLogger(__name__)

_keys = itertools.count(1)


class Replay:
    """Runs a graph on some buffers: the first time as any graph, then from a recording, where the device takes one.

    A recorded ("captured") graph starts with one call, where otherwise the host starts each of its kernels, which for a
    step takes longer than the kernels themselves. Buffers keep their places, and what they hold may change.

    Parameters
    ----------
    model : max.engine.Model
    buffers : what the graph takes; all of them on the device, since a replay runs nothing on the host
    changing : what a run changes and the next one reads: nothing tells whether recording runs the graph
    """

    def __init__(self, model: Model, buffers: Sequence[Buffer], changing: Sequence[Mirrors]) -> None:
        self._model = model
        self._buffers = buffers
        self._changing = changing
        self._key: int | None = None  # of the recording
        self._n_runs = 0

    def run(self) -> None:
        """Run the graph, which has no outputs of its own."""
        self._n_runs += 1
        if self._n_runs == 2:  # whatever a first launch has to set up has been set up
            self._record()
        if self._key is None:
            self._model.execute(*self._buffers)
        else:
            self._model.replay(self._key, *self._buffers)

    @property
    def is_recorded(self) -> bool:
        """Whether runs come from a recording."""
        return self._key is not None

    def _record(self) -> None:
        key = next(_keys)
        for mirrors in self._changing:
            mirrors.pull()
        try:
            self._model.capture(key, *self._buffers)
            self._model._await_device_graphs()  # it is made ready on another thread, whose errors are told here
        except (RuntimeError, ValueError) as refusal:  # as MAX's calls to a device may raise either
            logger.warning("the device records no graphs (%s): each step's kernels are started one by one", refusal)
            return
        finally:
            push_all(self._changing)
        self._key = key
        release = weakref.finalize(self, self._model.release_captured_graph, key)  # before the buffers are let go
        release.atexit = False  # MAX may be gone by then
