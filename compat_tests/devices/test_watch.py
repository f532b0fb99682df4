"""A run that takes long wakes MAX's threads, since MAX may have missed to: the caller would wait for ever."""

from __future__ import annotations

import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from max.engine import InferenceSession, Model
from torch import Tensor
from whisper.decoding import DecodingOptions

from whisper_max_plugin.execution import watch
from whisper_max_plugin.execution.devices import HOST
from whisper_max_plugin.execution.engine import Engine
from whisper_max_plugin.execution.watch import PATIENCE, Watch
from whisper_max_plugin.inference.model import accelerate

from ..conftest import Pair
from ..seam.fixtures import mel, mels, no_grad
from .fixtures import upstreams_nano

__all__ = ["mel", "mels", "no_grad"]  # fixtures, found by name


def test_a_long_run_wakes_until_it_ends() -> None:
    woken: list[float] = []
    looking = Watch()
    for _ in range(2):  # also after a time in which nothing ran
        begin = time.monotonic()
        again = threading.Event()

        def wake(begin: float = begin, again: threading.Event = again) -> None:
            woken.append(time.monotonic() - begin)
            if len(woken) > 1:
                again.set()

        with looking.over(wake):
            assert again.wait(60)
        ended = len(woken)
        time.sleep(3 * PATIENCE)
        assert len(woken) <= ended + 1  # it may have been about to
        assert min(woken) >= PATIENCE
        woken.clear()


def test_short_runs_wake_nobody() -> None:
    woken: list[float] = []  # after what time, which is short unless this process was kept from its core
    looking, end = Watch(), time.monotonic() + 4 * PATIENCE
    while (begin := time.monotonic()) < end:
        with looking.over(lambda begin=begin: woken.append(time.monotonic() - begin)):
            pass
    assert all(seconds >= PATIENCE for seconds in woken)


def test_each_thread_is_looked_after() -> None:
    woken = threading.Event()
    looking = Watch()
    with ThreadPoolExecutor(1) as pool, looking.over(woken.set):
        pool.submit(lambda: looking.over(lambda: None).__enter__()).result()
        assert woken.wait(60)


def test_what_ran_is_let_go() -> None:
    class Model:
        def __init__(self) -> None:
            self.woken = threading.Event()

        def wake(self) -> None:
            self.woken.set()

    model, looking = Model(), Watch()
    with looking.over(model.wake):
        assert model.woken.wait(60)
    kept = weakref.ref(model)
    del model
    for _ in range(20):  # while the watch ends its last look
        time.sleep(PATIENCE / 2)
        if kept() is None:
            break
    assert kept() is None


@pytest.mark.parametrize("n_threads", [1, 3])
def test_waking_changes_no_result_and_waits_for_no_run(
    nano: Pair, mel: Tensor, monkeypatch: pytest.MonkeyPatch, n_threads: int
) -> None:
    """Whoever wakes runs a graph beside the one that runs."""
    options = DecodingOptions(language="en", fp16=False, sample_len=40)
    expected = nano.max.decode(mel[0], options)
    woken: list[Engine] = []
    wake = Engine._wake

    def noted(engine: Engine) -> None:
        wake(engine)
        woken.append(engine)

    monkeypatch.setattr(watch, "PATIENCE", 0.0005)
    monkeypatch.setattr(Engine, "_wake", noted)
    deadline = time.monotonic() + 60
    with ThreadPoolExecutor(n_threads) as pool:
        while len(woken) < 2:  # the watch's thread may still be as patient as it was
            assert time.monotonic() < deadline
            results = [pool.submit(nano.max.decode, mel[0], options) for _ in range(3 * n_threads)]
            assert {tuple(each.result().tokens) for each in results} == {tuple(expected.tokens)}
    with nano.max.decoder.runtime.engine()._lock:  # as while a run takes long
        nano.max.decoder.runtime.engine()._wake()
    assert torch.isfinite(nano.max.embed_audio(mel)).all()


def test_binding_weights_is_watched_as_well(nano: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    woken = threading.Event()
    bind = InferenceSession.init_all

    def oversleep(session: InferenceSession, *arguments: Any, **options: Any) -> dict[str, Model]:
        assert woken.wait(60)
        return bind(session, *arguments, **options)

    monkeypatch.setattr(InferenceSession, "init_all", oversleep)
    monkeypatch.setattr(Engine, "_wake", lambda engine: woken.set())
    assert nano.max.decoder.runtime.engine() is not None  # which can be run
    accelerate(upstreams_nano(), HOST)
