"""`transcribe_many`: how the work ends when nobody asks for results any more."""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
import whisper

from whisper_max_plugin import transcribe_many

from ..compare import assert_same_result
from ..conftest import Pair
from ..data import NANO, SAMPLE_LONG
from .many_fixtures import OPTIONS, recordings, running, steps

__all__ = ["recordings"]  # fixtures, found by name


def test_leaving_the_loop_ends_the_work(nano: Pair, recordings: list[np.ndarray]) -> None:
    many = transcribe_many(nano.max, [*recordings, *recordings], batch_size=3, **OPTIONS)
    next(many)
    assert running()
    before = steps()
    many.close()
    assert not running()
    assert steps() - before < 20
    assert_same_result(  # and the model is as good as before
        whisper.transcribe(nano.max, recordings[0], **OPTIONS), whisper.transcribe(nano.torch, recordings[0], **OPTIONS)
    )


def test_whichever_thread_collects_what_nobody_holds_the_work_ends(nano: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the work's own, too, which then holds whatever locks it held when the collection began."""
    forgotten = threading.Event()
    unraisable: list[Any] = []

    def transcribe(*_: object, **_options: object) -> dict[str, Any]:
        if forgotten.is_set():
            gc.collect()
        return {}

    monkeypatch.setattr(whisper, "transcribe", transcribe)
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    gc.disable()
    try:
        holder: dict[str, Any] = {"many": transcribe_many(nano.max, itertools.repeat(np.zeros(16000)), batch_size=2)}
        holder["holder"] = holder
        next(holder["many"])
        del holder
        forgotten.set()
        for thread in running():
            thread.join(30)
    finally:
        gc.enable()
    assert not running()
    assert unraisable == []


PROGRAM = f"""
import itertools, sys, threading, numpy, whisper, whisper_max_plugin.auto
model = whisper.load_model({str(NANO)!r})
audio = whisper.load_audio({str(SAMPLE_LONG)!r})
def transcribe(*arguments, original=whisper.transcribe, **options):
    result = original(*arguments, **options)
    print("one is done")
    return result
whisper.transcribe = transcribe
options = dict(batch_size=2, language="en", fp16=False)
"""


def run_program(end: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM + end]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def test_a_program_ends_that_keeps_what_it_did_not_read_to_the_end() -> None:
    """Where it is: in the middle of recordings of an hour."""
    done = run_program("""
hours = itertools.repeat(numpy.tile(audio, 20))
many = whisper_max_plugin.transcribe_many(model, itertools.chain([audio[:160000]], hours), **options)
next(many)
sys.exit("enough")
""")
    assert (done.returncode, done.stdout, done.stderr) == (1, "one is done\n", "enough\n")


def test_a_thread_that_outlives_the_main_one_gets_all_results() -> None:
    done = run_program("""
def work():
    threading.main_thread().join()
    found = list(whisper_max_plugin.transcribe_many(model, [audio] * 3, **options))
    print(len({done.result["text"] for done in found}), len(found))
threading.Thread(target=work).start()
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "one is done\n" * 3 + "1 3\n", "")
