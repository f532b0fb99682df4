"""A Ray of this machine that all tests share, samples to transcribe there, and what upstream makes of them."""

from __future__ import annotations

import functools
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import whisper

from whisper_max_plugin.ray.output import open_output

from ..compare import assert_same_result
from ..conftest import Pair
from ..data import SAMPLE, SAMPLE_DE, SAMPLE_ES

SHORT_SAMPLES = (SAMPLE, SAMPLE_DE, SAMPLE_ES)
OPTIONS: dict[str, Any] = {"temperature": 0.0}
HELD = "by an earlier run"


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """Start Ray on two cores, once, and return its address."""
    pytest.importorskip("pyarrow", reason="Ray Data is not installed, the extra ray")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}.items():
            patch.setenv(name, value)
        ray = pytest.importorskip("ray", reason="Ray is not installed, the extra ray")
        started = not ray.is_initialized()
        if started:
            ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
            import ray.data

            logging.getLogger("ray.data").setLevel(logging.CRITICAL)
            ray.data.DataContext.get_current().enable_progress_bars = False
        yield ray.get_runtime_context().gcs_address
        if started:
            ray.shutdown()


def copies(folder: Path, number: int) -> list[str]:
    """Return paths of so many recordings, of three languages."""
    folder.mkdir()
    paths = [str(folder / f"{index}.flac") for index in range(number)]
    for index, path in enumerate(paths):
        shutil.copyfile(SHORT_SAMPLES[index % len(SHORT_SAMPLES)], path)
    return paths


def hold_results(output: Path, paths: Sequence[str]) -> None:
    """Let `output` hold results already, of which the text is `HELD`."""
    written = open_output(output)
    written.add([{"path": path, "duration": 1.0, "language": "en", "text": HELD, "segments": []} for path in paths])
    written.close()


def assert_upstreams(nano: Pair, rows: Sequence[dict[str, Any]], paths: Sequence[str]) -> None:
    """There is one row for each recording, with upstream's result."""
    assert sorted(row["path"] for row in rows) == sorted(paths)
    for row in rows:
        result = {name: row[name] for name in ("text", "segments", "language")}
        assert_same_result(result, upstreams(nano, Path(row["path"]).read_bytes()))


def upstreams(nano: Pair, content: bytes) -> dict[str, Any]:
    """Return upstream's result for a copy of a sample."""
    (sample,) = [sample for sample in SHORT_SAMPLES if sample.read_bytes() == content]
    return _transcribe(nano, sample)


@functools.cache
def _transcribe(nano: Pair, sample: Path) -> dict[str, Any]:
    return whisper.transcribe(nano.torch, str(sample), fp16=False, **OPTIONS)


def lines(path: Path) -> list[dict[str, Any]]:
    """Return what a file of JSON lines holds."""
    return [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]


def table(folder: Path) -> list[dict[str, Any]]:
    """Return what a folder of Parquet files holds."""
    import pyarrow.dataset

    rows = pyarrow.dataset.dataset(folder).to_table().to_pylist()
    return [{**row, "segments": json.loads(row["segments"])} for row in rows]


def transcribing() -> list[int]:
    """Return the processes of Ray that transcribe."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            title = (process / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        if title.startswith(b"ray::") and b"Transcriber" in title and os.getuid() == process.stat().st_uid:
            found.append(int(process.name))
    return found
