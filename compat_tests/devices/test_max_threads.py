"""MAX has as many threads as torch had when the first model was loaded."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ..data import NANO

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs Linux and two processors"
)

SCRIPT = """
import os, time, torch
tasks = lambda: set(os.listdir("/proc/self/task"))
name = lambda task: open(f"/proc/self/task/{{task}}/comm").read()
torch.set_num_threads(torch.get_num_threads() if {threads} is None else {threads})
import whisper, whisper_max_plugin.auto
before, processors = tasks(), os.sched_getaffinity(0)
model = whisper.load_model({model!r}, device="cpu", backend="max")
model.embed_audio(torch.zeros(1, 80, 3000))
time.sleep(0.2)  # until new threads have their names
new = tasks() - before
assert os.sched_getaffinity(0) == processors, "the calling thread has lost processors"
assert all(os.sched_getaffinity(int(task)) == processors for task in new), "a thread of MAX has lost processors"
print(sum("Thread" in name(task) for task in new))
"""


def threads_of_max(threads: int | None = None, **environment: str) -> int:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(threads=threads, model=str(NANO))],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


def test_torchs_number_of_threads_is_respected() -> None:
    processors = len(os.sched_getaffinity(0))
    assert threads_of_max(1) == 1
    assert threads_of_max(processors) == processors
    assert threads_of_max(processors + 5) == processors, "there are no more than processors"


def test_omp_num_threads_is_respected() -> None:
    assert threads_of_max(OMP_NUM_THREADS="1") == 1
