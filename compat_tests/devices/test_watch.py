"""A call of MAX that takes long wakes MAX's threads, since MAX may have missed to: the caller would wait for ever."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from max.engine import InferenceSession, Model
from torch import Tensor
from whisper.decoding import DecodingOptions
from whisper.model import Whisper

from whisper_max_plugin import graphs
from whisper_max_plugin.checkpoints.sizes import OFFICIAL_DIMS
from whisper_max_plugin.execution import artifacts, devices, watch
from whisper_max_plugin.execution.devices import HOST
from whisper_max_plugin.execution.session import session
from whisper_max_plugin.execution.watch import PATIENCE, Watch, wake
from whisper_max_plugin.inference.model import accelerate

from ..conftest import Pair
from ..seam.fixtures import mel, mels, no_grad
from ..waiting import wait_until
from .fixtures import ELSEWHERE, upstreams_nano

EOT = 50257

__all__ = ["mel", "mels", "no_grad"]  # fixtures, found by name


@pytest.fixture
def when_woken(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times at which somebody was woken, who is not."""
    times: list[float] = []
    monkeypatch.setattr(watch, "wake", lambda: times.append(time.monotonic()))
    return times


def test_a_long_call_wakes_until_it_ends(when_woken: list[float]) -> None:
    looking = Watch()
    for _ in range(2):  # also after a time without calls
        begin = time.monotonic()
        with looking.over():
            wait_until(lambda: len(when_woken) > 1)
        ended = len(when_woken)
        time.sleep(3 * PATIENCE)
        assert len(when_woken) <= ended + 1  # it may have been about to
        assert min(when_woken) >= begin + PATIENCE
        when_woken.clear()


def test_short_calls_wake_nobody(when_woken: list[float]) -> None:
    looking, end = Watch(), time.monotonic() + 10 * PATIENCE
    longest = 0.0  # which is short unless this process was kept from its core
    while (begin := time.monotonic()) < end:
        with looking.over():
            pass
        longest = max(longest, time.monotonic() - begin)
    assert longest >= PATIENCE or not when_woken


@pytest.mark.parametrize("ended", ["another thread's", "an inner one"])
def test_a_call_is_looked_after_while_others_end(when_woken: list[float], ended: str) -> None:
    looking = Watch()

    def call() -> None:
        with looking.over():
            pass

    with ThreadPoolExecutor(1) as pool, looking.over():
        call() if ended == "an inner one" else pool.submit(call).result()
        wait_until(lambda: len(when_woken) > 0)


def naps() -> int:
    """Return how often MAX's threads have fallen asleep."""
    counts = []
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # one of somebody else's that has ended
            if "🔥" in (thread / "comm").read_text():
                lines = dict(line.split(":", 1) for line in (thread / "status").read_text().splitlines())
                counts.append(int(lines["voluntary_ctxt_switches"]))
    assert counts
    return sum(counts)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what threads did")
def test_waking_wakes_a_thread_of_max() -> None:
    session(HOST)
    before = naps()
    for _ in range(10):
        time.sleep(0.01)  # MAX's threads stay awake for 0.2 ms
        wake()
    time.sleep(0.1)
    assert naps() > before


@pytest.mark.parametrize("n_threads", [1, 3])
def test_waking_changes_no_result(nano: Pair, mel: Tensor, monkeypatch: pytest.MonkeyPatch, n_threads: int) -> None:
    options = DecodingOptions(language="en", fp16=False, sample_len=40)
    expected = nano.max.decode(mel[0], options)
    woken: list[None] = []

    def noted() -> None:
        wake()
        woken.append(None)

    monkeypatch.setattr(watch, "PATIENCE", 0.0005)
    monkeypatch.setattr(watch, "wake", noted)
    deadline = time.monotonic() + 60
    with ThreadPoolExecutor(n_threads) as pool:
        while len(woken) < 2:  # the watch's thread may still be as patient as it was
            assert time.monotonic() < deadline
            results = [pool.submit(nano.max.decode, mel[0], options) for _ in range(3 * n_threads)]
            assert {tuple(each.result().tokens) for each in results} == {tuple(expected.tokens)}


def bind(_model: Whisper) -> None:
    accelerate(upstreams_nano(), HOST)


def run(model: Whisper) -> None:
    mel = torch.rand(80, 3000)  # which nobody has encoded yet
    model.decode(mel, DecodingOptions(language="en", fp16=False, sample_len=3, suppress_tokens=[EOT]))


def put(_model: Whisper) -> None:
    ELSEWHERE.put(torch.zeros(3))


def compile_graphs(_model: Whisper) -> None:
    artifacts.obtain(session(HOST), OFFICIAL_DIMS["tiny"], "float32", "cpu", Mock())


@pytest.mark.parametrize(
    ("call", "owner", "name"),
    [
        (bind, InferenceSession, "init_all"),
        (run, Model, "execute"),
        (put, devices, "batch_inplace_copy"),
        (compile_graphs, InferenceSession, "compile"),
    ],
)
def test_calls_are_watched(
    nano: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: Callable[[Whisper], None], owner: Any, name: str
) -> None:
    monkeypatch.setenv("MODULAR_MAX_CACHE_DIR", str(tmp_path))  # where nothing has been compiled
    monkeypatch.setattr(graphs, "kernel_library", Mock())
    original = Mock(return_value=Mock()) if name == "compile" else getattr(owner, name)
    woken = threading.Event()
    n_calls = 0

    def oversleep(*arguments: Any, **options: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        woken.clear()
        assert woken.wait(60), "nobody was woken"
        return original(*arguments, **options)

    monkeypatch.setattr(watch, "wake", woken.set)
    monkeypatch.setattr(owner, name, oversleep)
    call(nano.max)
    assert n_calls == {"execute": 6}.get(name, 1)  # encoder, cross_kv, prefill, search and two steps


def test_before_the_first_device_there_is_nobody_to_wake() -> None:
    code = "from whisper_max_plugin.execution.watch import wake; wake()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


ENDS_WHILE_IT_WAKES = """
import sys, threading, time
from whisper_max_plugin.execution.session import session
from whisper_max_plugin.execution.watch import wake
session()
sys.setswitchinterval(5e-4)
for _ in range(3):
    threading.Thread(target=lambda: [wake() for _ in iter(int, 1)], daemon=True).start()
time.sleep(0.1)
"""


def test_a_process_ends_well_while_it_wakes() -> None:
    command = [sys.executable, "-c", ENDS_WHILE_IT_WAKES]
    for _ in range(3):  # each would be aborted about every other time
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (ended.returncode, ended.stderr) == (0, "")
