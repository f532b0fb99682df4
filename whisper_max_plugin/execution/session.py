"""The MAX sessions of a process, one for each device, which do not survive a fork."""

from __future__ import annotations

import contextlib
import os
from functools import cache

import torch
from max.engine import InferenceSession

from whisper_max_plugin.errors import ForkedProcessError
from whisper_max_plugin.execution.devices import HOST, Device


def session(device: Device = HOST) -> InferenceSession:
    """Return the session of a device, made at the first call."""
    refuse_after_fork()
    return _session(device)


@cache
def _session(device: Device) -> InferenceSession:
    _load_arrow()
    return InferenceSession(devices=[device.driver])


def _load_arrow() -> None:
    """Load pyarrow, where it is installed, before MAX loads a model, or it crashes when it computes.

    MAX makes the symbols of its OpenTelemetry global then, and Arrow, loaded later, takes them for its own.
    """
    with contextlib.suppress(ImportError):
        import pyarrow  # noqa: F401


_forked_while_running = False


def refuse_after_fork() -> None:
    """Fail in a process in which MAX would wait forever.

    Raises
    ------
    ForkedProcessError
        if this process was forked from one in which MAX had started: its threads did not come along
    """
    if _forked_while_running:
        raise ForkedProcessError(
            "this process was forked from one that runs graphs, and MAX's threads do not survive a fork: start the "
            'worker processes with multiprocessing.get_context("spawn"), or load the first model in the workers'
        )


def _after_fork() -> None:
    global _forked_while_running
    if _session.cache_info().currsize > 0:
        _forked_while_running = True
        _session.cache_clear()
        # OpenMP's threads did not come along either: without this, torch waits for them in the mel spectrogram already
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
