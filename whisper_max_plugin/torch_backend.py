"""The built-in backend "torch": upstream's own model, unchanged."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from typing import TYPE_CHECKING, Literal

from whisper_max_plugin.hookspecs import Backend, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from whisper.model import Whisper


class TorchBackend:
    """Runs upstream's `load_model` as if this plugin were not there."""

    name = "torch"

    def version(self) -> str | None:
        """Return the installed version of torch, None without it."""
        try:
            return metadata.version("torch")
        except metadata.PackageNotFoundError:
            return None

    def devices(self) -> list[str]:
        """Return torch's names of the devices it can use; imports torch."""
        if self.can_run() is not True:
            return []
        import torch

        gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        return ["cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]

    def can_run(self) -> Literal[True] | str:
        """Return True, or what is missing and how to install it."""
        for module, distribution in (("torch", "torch"), ("whisper", "openai-whisper")):
            if importlib.util.find_spec(module) is None:
                return f"{distribution} is not installed: pip install {distribution}"
        return True

    def load_model(
        self,
        name: str,
        device: str | torch.device | None,
        download_root: str | None,
        in_memory: bool,
        *,
        upstream_load_model: Callable[..., Whisper],
    ) -> Whisper:
        """Return what upstream's `load_model` returns."""
        return upstream_load_model(name, device=device, download_root=download_root, in_memory=in_memory)


@hookimpl
def whisper_backends() -> list[Backend]:
    """Register the backend "torch"."""
    return [TorchBackend()]
