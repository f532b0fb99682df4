"""The pluggy hook through which a package registers its backends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from whisper_max_plugin.backends import Backend

PROJECT = "whisper_max_plugin"  # pluggy's project name and the entry point group of third parties

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def whisper_backends() -> list[Backend]:  # type: ignore[empty-body]
    """Return the backends that this plugin adds to `whisper.load_model(..., backend=NAME)`."""
