"""The values of `precision`, what a model is loaded for, and which one a call gets."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from whisper_max_plugin.errors import PrecisionError

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT = "float32"
PRECISIONS = (DEFAULT, "float16", "bfloat16", "int8")
"""What the weights are that a step reads; all products are summed up in float32.

With the default they are the checkpoint's own, in float16 where all of them are exact in it. The others round them, and
all but float16 what is multiplied in a window's other passes, where the CPU multiplies pairs of bfloat16.
"""
VARIABLE = "WHISPER_MAX_PRECISION"


def resolve(keyword: str | None, *, command_line: str | None, installed: str | None) -> str | None:
    """Return the first of these that is given, else what `WHISPER_MAX_PRECISION` says now; None if nothing does.

    Parameters
    ----------
    keyword : str | None
        the argument `precision=` of the call
    command_line : str | None
        the value of `--precision`
    installed : str | None
        the argument of `install(precision=)`
    """
    for name in (keyword, command_line, installed):
        if name is not None:
            return name
    return os.environ.get(VARIABLE, "").strip() or None


def of_command(name: str | None) -> str | None:
    """Return what a command computes with that was given `name`, or nothing; None leaves it to the device.

    Raises
    ------
    PrecisionError
        when there is no such precision
    """
    chosen = resolve(name, command_line=None, installed=None)
    return None if chosen is None else checked(chosen)


def checked(name: str, known: Sequence[str] = PRECISIONS) -> str:
    """Return the precision of this name; upper and lower case are the same.

    Raises
    ------
    PrecisionError
        when there is none; the message lists the known ones
    """
    found = name.strip().lower() if isinstance(name, str) else name
    if found not in known:
        raise PrecisionError(f"unknown precision {name!r}: give one of {', '.join(known)}")
    return found
