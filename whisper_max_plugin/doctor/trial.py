"""Tries a GPU with a model in a process of its own, which may hang or die where kernels and driver first meet."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

MODULE = "whisper_max_plugin.doctor.trial"
PATIENCE = 600  # seconds, of which loading and torch's part of a large model take most


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
    if result["problem"] is not None:
        return str(result["problem"])
    wrong = [row for row in result["rows"] if not row["ok"]]
    return "; ".join(f"{row['name']} {row['note'] or _how_far(row['error'])}" for row in wrong) or None


def _how_far(error: float) -> str:
    return f"is off by {error:.0e} of the largest"


def main(path: str, device: str, precision: str) -> None:
    """Compare with torch, and print what was found as a line of JSON."""
    from . import parity
    from .parity_checks import synthetic_audio

    result = parity.check_model(path, synthetic_audio(), device, precision)
    sys.stdout.write(json.dumps(dataclasses.asdict(result)) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
