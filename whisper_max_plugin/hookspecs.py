"""What a backend is, and the pluggy hook through which a package registers its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

import pluggy

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from whisper.model import Whisper

PROJECT = "whisper_max_plugin"  # pluggy's project name and the entry point group of third parties

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Backend(Protocol):
    """One way to run a Whisper model.

    Attributes
    ----------
    name : str
        what users write in `backend=`, `--backend` and `WHISPER_BACKEND`, in lower case
    """

    name: str

    def version(self) -> str | None:
        """Return the version of the library it runs on, None when that is not installed."""

    def devices(self) -> list[str]:
        """Return the devices it can use, e.g. `["cpu", "cuda:0"]`; `[]` when it cannot run."""

    def can_run(self) -> Literal[True] | str:
        """Return True, or one sentence: why not, and what to do about it."""

    def load_model(
        self,
        name: str,
        device: str | torch.device | None,
        download_root: str | None,
        in_memory: bool,
        *,
        upstream_load_model: Callable[..., Whisper],
    ) -> Whisper:
        """Load a model; the arguments are those of `whisper.load_model`, and so is `upstream_load_model`.

        A backend with the attribute `precisions`, a sequence of names, gets the one that was asked for, if one was,
        as a keyword `precision`.
        """


@hookspec
def whisper_backends() -> list[Backend]:  # type: ignore[empty-body]
    """Return the backends that this plugin adds to `whisper.load_model(..., backend=NAME)`."""
