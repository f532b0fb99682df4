"""What a model may be asked for by: an official name, or a path."""

from __future__ import annotations

import os

import whisper

from whisper_max_plugin.errors import UnknownModelError


def check_name(name: str, machine: str | None = None) -> None:
    """Refuse what upstream's `load_model` would not find.

    Parameters
    ----------
    name : str
    machine : str | None
        the one of many that looks for it, to be named

    Raises
    ------
    UnknownModelError
        if `name` is neither an official model's nor a path
    """
    official = whisper.available_models()
    if name not in official and not os.path.exists(name):
        raise UnknownModelError.of(name, official, machine)
