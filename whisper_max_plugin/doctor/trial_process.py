"""The other process of `whisper_max_plugin.trial`: compares a GPU with torch, and prints what it found."""

from __future__ import annotations

import dataclasses
import json
import sys

from whisper_max_plugin.doctor import parity
from whisper_max_plugin.doctor.parity_checks import synthetic_audio
from whisper_max_plugin.errors import MemoryFullError


def main(path: str, device: str, precision: str) -> None:
    """Compare with torch, and print what was found as a line of JSON."""
    try:
        result = dataclasses.asdict(parity.check_model(path, synthetic_audio(), device, precision))
    except MemoryFullError as error:
        result = {"memory": str(error)}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
