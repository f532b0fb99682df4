"""What was asked for in this process: by `install()`, and on the command line of `whisper`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Choice:
    """A backend and a precision by their names, each None where it was left open."""

    backend: str | None = None
    precision: str | None = None


installed = Choice()
command_line = Choice()
"""`--backend` and `--precision`, once upstream's command line has been parsed."""
