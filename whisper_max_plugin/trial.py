"""Tries a GPU with a model in a process of its own, which may hang or die where kernels and driver first meet."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys

from whisper.model import ModelDimensions

from whisper_max_plugin.errors import DeviceError, MemoryFullError
from whisper_max_plugin.execution import artifacts
from whisper_max_plugin.execution.compiled import compile_graphs
from whisper_max_plugin.execution.devices import Device
from whisper_max_plugin.graphs import Types

logger = logging.getLogger(__name__)

MODULE = "whisper_max_plugin.doctor.trial_process"  # what the process runs, with the arguments of `run`
PATIENCE = 600  # seconds, of which loading and torch's part of a large model take most


def verify(path: str, dims: ModelDimensions, device: Device, types: Types) -> None:
    """Compare what a GPU computes with torch, once for its architecture, a model's size and types, in another process.

    The kernels, MAX's and the driver meet on the user's machine for the first time, so nothing else can tell; and
    whatever they do to each other, they do not do it to this process.

    Raises
    ------
    DeviceError
        if graphs and torch differ by more than rounding explains, or the other process hangs or dies
    MemoryFullError
        if it has no room
    """
    record = artifacts.path_of(dims, str(types), device.kind).with_suffix(".checked")
    if record.exists():
        return
    compile_graphs(dims, types, device)  # so that the other process finds them
    logger.warning("comparing what %s computes in %s with torch, once for this size", device.name, types.operands.name)
    if (problem := run(path, device.name, types.operands.name)) is not None:
        raise DeviceError(
            f"what {device.name} computes is not what torch computes ({problem}): load the model with "
            'device="cpu" (on the command line --device cpu), and report this with the output of `whisper-max doctor`'
        )
    with contextlib.suppress(OSError):  # a cache that cannot be written: the next load compares again
        record.touch()


def run(path: str, device: str, precision: str) -> str | None:
    """Return how what `device` computes with the model at `path` differs from torch's results, None if it does not.

    Parameters
    ----------
    path : str
        a checkpoint or a folder of Hugging Face
    device : str
        as `whisper.load_model` takes it
    precision : str
        one of `precision.PRECISIONS`

    Raises
    ------
    MemoryFullError
        if the memory of `device` is full, beside what this process has there
    """
    command = [sys.executable, "-m", MODULE, path, device, precision]
    environment = {**os.environ, "WHISPER_MAX_NO_HOOK": "1"}
    try:
        child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return f"a process that tried it did not end within {PATIENCE // 60} minutes"
    except OSError as error:
        return f"no process could be started that tries it: {error.strerror}"
    if child.returncode != 0:
        said = child.stderr.strip().splitlines()
        last = f", after {said[-1]!r}" if said else ""
        return f"a process that tried it ended with exit status {child.returncode}{last}"
    result = json.loads(child.stdout.splitlines()[-1])
    if (full := result.get("memory")) is not None:
        raise MemoryFullError(f"{device} could not be compared with torch, as {full}")
    if result["problem"] is not None:
        return str(result["problem"])
    wrong = [row for row in result["rows"] if not row["ok"]]
    return "; ".join(f"{row['name']} {row['note'] or _how_far(row['error'])}" for row in wrong) or None


def _how_far(error: float) -> str:
    return f"is off by {error:.0e} of the largest"
