"""Runs a subject in a process of its own, driven over a pipe, so that thread pools and peak memory are apart."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import resource
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from whisper_max_plugin.bench.errors import SubjectError
from whisper_max_plugin.bench.protocol import Decoded, Kind, Loaded, Setup, Subject, Transcription

TURN_SECONDS = 0.25  # a turn repeats short calls for so long
TURN_CALLS = 20  # and so often at most


class Worker:
    """The parent's end: each method is one request; it returns when the subject has answered and is idle again."""

    def __init__(self, kind: Kind, setup: Setup, environment: Mapping[str, str] | None = None) -> None:
        self._title = kind.title
        context = multiprocessing.get_context("spawn")
        self._connection, childs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(childs, kind, setup, dict(environment or {})), name=kind.name, daemon=True
        )
        self._process.start()
        childs.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, exception: type[BaseException] | None, *_details: object) -> None:
        self.close(at_once=exception is not None)

    def prepare(self) -> float | None:
        """See `Subject.prepare`."""
        compile_seconds: float | None = self._ask("prepare")
        return compile_seconds

    def load(self) -> Loaded:
        """See `Subject.load`."""
        loaded: Loaded = self._ask("load")
        return loaded

    def stages(self) -> list[str]:
        """See `Subject.stages`."""
        return list(self._ask("stages"))

    def turn(self, stage: str, n_tokens: int) -> float:
        """Return the median of some calls of `stage`, behind one that is not counted."""
        seconds: float = self._ask("turn", stage, n_tokens)
        return seconds

    def device_seconds(self, stage: str, n_tokens: int) -> float | None:
        """See `Subject.device_seconds`."""
        seconds: float | None = self._ask("device_seconds", stage, n_tokens)
        return seconds

    def transcribe(self, transcription: Transcription) -> Decoded:
        """See `Subject.transcribe`."""
        decoded: Decoded = self._ask("transcribe", transcription)
        return decoded

    def peak_bytes(self) -> int:
        """Return the most memory that the process has held so far."""
        n_bytes: int = self._ask("peak_bytes")
        return n_bytes

    def close(self, *, at_once: bool = False) -> None:
        """End the process; `at_once` in the middle of its work."""
        self._connection.close()  # which it takes as the end
        self._process.join(timeout=0 if at_once else 5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _ask(self, request: str, *arguments: object) -> Any:
        with contextlib.suppress(OSError):  # a process that has died is found when its answer is awaited
            self._connection.send((request, arguments))
        return _received(self._connection, self._process, self._title)


def _ending(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        return f"was ended by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")
    return f"ended with exit status {exitcode}"


def in_child(function: Callable[..., Any], *arguments: object) -> Any:
    """Return what `function`, of a module's top level, returns in a process that is thrown away.

    Raises
    ------
    SubjectError
        if it fails
    """
    context = multiprocessing.get_context("spawn")
    connection, childs = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(childs, function, arguments), daemon=True)
    process.start()
    childs.close()
    try:
        return _received(connection, process, function.__name__)
    finally:
        process.kill()
        process.join()


def _received(connection: Connection, process: BaseProcess, title: str) -> Any:
    """Return the child's answer, or raise what went wrong there."""
    try:
        failure, answer = connection.recv()
    except (EOFError, OSError) as error:
        process.join(timeout=5)
        raise SubjectError(f"the process of {title} {_ending(process.exitcode)}") from error
    if failure is not None:
        raise SubjectError(f"{title} failed: {failure}")
    return answer


def _call(connection: Connection, function: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection.send(_answer(function, arguments))


def _answer(function: Callable[..., Any], arguments: tuple[object, ...]) -> tuple[str | None, object]:
    """Return why `function` failed, and what it returned."""
    try:
        return None, function(*arguments)
    except Exception as error:  # noqa: BLE001  whatever a peer raises is told to the parent
        return f"{type(error).__name__}: {error}", None


def _serve(connection: Connection, kind: Kind, setup: Setup, environment: Mapping[str, str]) -> None:
    """The child's end: answer requests until the parent closes the pipe, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent ends its children
    os.environ.update(environment)
    server = _Server(kind, setup)
    with contextlib.suppress(EOFError, OSError):
        while True:
            request, arguments = connection.recv()
            answer = _answer(getattr(server, request), arguments)
            _wait_until_idle()
            connection.send(answer)


class _Server:
    """Answers the parent's requests, one method each."""

    def __init__(self, kind: Kind, setup: Setup) -> None:
        self._setup = setup
        self._subject: Subject = getattr(importlib.import_module(kind.module), kind.cls)(**kind.options)

    def prepare(self) -> float | None:
        return self._subject.prepare(self._setup)

    def load(self) -> Loaded:
        return self._subject.load(self._setup)

    def stages(self) -> list[str]:
        return list(self._subject.stages())

    def turn(self, stage: str, n_tokens: int) -> float:
        self._subject.stage_seconds(stage, min(n_tokens, 2))  # caches hold the data of the subject before
        seconds: list[float] = []
        started = time.perf_counter()
        while not seconds or (time.perf_counter() - started < TURN_SECONDS and len(seconds) < TURN_CALLS):
            seconds.append(self._subject.stage_seconds(stage, n_tokens))
        return statistics.median(seconds)

    def device_seconds(self, stage: str, n_tokens: int) -> float | None:
        return self._subject.device_seconds(stage, n_tokens)

    def transcribe(self, transcription: Transcription) -> Decoded:
        return self._subject.transcribe(transcription)

    def peak_bytes(self) -> int:
        return _peak_bytes()


def _wait_until_idle() -> None:
    """Wait until this process's threads sleep, at most a second: some spin for a while behind their last work."""
    for _ in range(50):
        before = time.process_time()
        time.sleep(0.02)
        if time.process_time() - before < 0.002:
            return


def _peak_bytes() -> int:
    # Linux's ru_maxrss starts with what the parent held when it made this process; VmHWM does not.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
