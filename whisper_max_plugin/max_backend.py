"""The built-in backend "max": encoder and decoder run as compiled MAX graphs."""

from __future__ import annotations

import importlib.util
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Literal

from whisper_max_plugin.hookspecs import Backend, hookimpl
from whisper_max_plugin.precision import PRECISIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from whisper.model import Whisper

OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 14)  # the releases that MAX publishes wheels for
TESTED_MAX = "26.7"  # minor release: the Graph API moves between minor releases
INSTALL_MAX = "pip install 'max>=26.7,<26.8'"


class MaxBackend:
    """Loads checkpoints into `whisper_max_plugin.inference.model.MaxWhisper`."""

    name = "max"
    precisions = PRECISIONS

    def version(self) -> str | None:
        """Return the installed version of MAX, None without it."""
        try:
            return metadata.version("max")
        except metadata.PackageNotFoundError:
            return None

    def devices(self) -> list[str]:
        """Return the devices that MAX can use, named as torch names them; imports MAX's driver."""
        if self.can_run() is not True:
            return []
        from max.driver import accelerator_count

        return ["cpu", *(f"cuda:{index}" for index in range(accelerator_count()))]

    def can_run(self) -> Literal[True] | str:
        """Return True, or what is missing and how to mend it; imports neither torch nor MAX's libraries."""
        if not OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON:
            oldest, newest = (".".join(map(str, version)) for version in (OLDEST_PYTHON, NEWEST_PYTHON))
            running = ".".join(map(str, sys.version_info[:2]))
            return f"MAX runs on Python {oldest} to {newest} and this is {running}: use one of those"
        version = self.version()
        if version is None or not _engine_is_importable():
            return f"MAX is not installed: {INSTALL_MAX}"
        if version.split(".")[:2] != TESTED_MAX.split("."):
            return f"MAX {version} is installed and this plugin needs {TESTED_MAX}: {INSTALL_MAX}"
        return True

    def load_model(
        self,
        name: str,
        device: str | torch.device | None,
        download_root: str | None,
        in_memory: bool,
        *,
        upstream_load_model: Callable[..., Whisper],
        precision: str | None = None,
    ) -> Whisper:
        """Return upstream's model with its encoder and decoder as MAX graphs.

        `precision` is one of `precisions`; without it, graphs of the CPU compute in float32, and those of a GPU in what
        upstream's option ``fp16`` says.
        """
        from whisper_max_plugin import loading

        return loading.load(
            name,
            device=device,
            download_root=download_root,
            in_memory=in_memory,
            upstream_load_model=upstream_load_model,
            precision=precision,
        )


def _engine_is_importable() -> bool:
    # `max` alone proves nothing: it is a namespace package, as is a folder that an uninstall left behind.
    return importlib.util.find_spec("max") is not None and importlib.util.find_spec("max.engine") is not None


@hookimpl
def whisper_backends() -> list[Backend]:
    """Register the backend "max"."""
    return [MaxBackend()]
