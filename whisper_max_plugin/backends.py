"""Which backends are registered, and which one a call gets."""

from __future__ import annotations

import functools
import logging
import os
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal

import pluggy

from whisper_max_plugin import hookspecs, max_backend, precision, torch_backend
from whisper_max_plugin.errors import BackendUnavailableError, PrecisionError, UnknownBackendError
from whisper_max_plugin.hookspecs import Backend

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from whisper.model import Whisper

logger = logging.getLogger(__name__)

DEFAULT = "torch"
VARIABLE = "WHISPER_BACKEND"


class BrokenBackend:
    """Stands for an installed plugin that could not be loaded, so that it is listed with its reason."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason

    def version(self) -> str | None:
        """Return None."""
        return None

    def devices(self) -> list[str]:
        """Return no devices."""
        return []

    def can_run(self) -> Literal[True] | str:
        """Return why the plugin could not be loaded."""
        return self.reason

    def load_model(
        self,
        name: str,
        device: str | torch.device | None,
        download_root: str | None,
        in_memory: bool,
        *,
        upstream_load_model: Callable[..., Whisper],
    ) -> Whisper:
        """Raise BackendUnavailableError."""
        raise BackendUnavailableError(self.reason)


@functools.cache
def plugin_manager() -> pluggy.PluginManager:
    """Return the manager that knows the built-ins and the entry points of the group "whisper_max_plugin".

    An entry point that cannot be loaded is registered as the backend of its name that says why.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(max_backend, name="max")
    manager.register(torch_backend, name="torch")
    for entry_point in metadata.entry_points(group=hookspecs.PROJECT):
        if manager.has_plugin(entry_point.name):
            logger.warning("ignored %s: a plugin named %r is registered", entry_point.value, entry_point.name)
            continue
        try:
            plugin = entry_point.load()
            manager.register(plugin, name=entry_point.name)
        # Foreign code: whatever its import raises is reported, and does not take the other backends down.
        except Exception as error:  # noqa: BLE001
            manager.register(_broken(entry_point, f"{type(error).__name__}: {error}"), name=entry_point.name)
        else:
            if not manager.get_hookcallers(plugin):
                manager.unregister(plugin)
                reason = "it implements no whisper_backends() hook"
                manager.register(_broken(entry_point, reason), name=entry_point.name)
    return manager


class _BrokenPlugin:
    """A pluggy plugin whose one backend is a `BrokenBackend`."""

    def __init__(self, backend: BrokenBackend) -> None:
        self.backend = backend

    @hookspecs.hookimpl
    def whisper_backends(self) -> list[Backend]:
        return [self.backend]


def _broken(entry_point: metadata.EntryPoint, problem: str) -> _BrokenPlugin:
    package = entry_point.dist.name if entry_point.dist is not None else entry_point.value
    reason = f"the plugin {entry_point.value} cannot be loaded ({problem}): update or uninstall {package}"
    return _BrokenPlugin(BrokenBackend(_normalised(entry_point.name), reason))


def all_backends() -> list[Backend]:
    """Return every registered backend, sorted by name; where two share a name, the first one registered."""
    found: dict[str, Backend] = {}
    for plugin_name, plugin in plugin_manager().list_name_plugin():
        for name, backend in _backends_of(plugin_name, plugin):
            if name in found:
                logger.warning("ignored a second backend named %r, of the plugin %r", name, plugin_name)
                continue
            found[name] = backend
    return [found[name] for name in sorted(found)]


_REQUIRED = ("name", "version", "devices", "can_run", "load_model")


def _backends_of(plugin_name: str, plugin: Any) -> list[tuple[str, Backend]]:
    """Return the backends of a plugin with their names; one that cannot be used where the plugin's hook fails."""
    hook: Any = plugin_manager().hook.whisper_backends
    try:
        return [
            _checked(backend, plugin_name)
            for implementation in hook.get_hookimpls()
            if implementation.plugin is plugin
            for backend in implementation.function()
        ]
    except Exception as error:  # noqa: BLE001 - foreign code, as above
        problem = f"{type(error).__name__}: {error}"
        reason = f"whisper_backends() of the plugin {plugin_name} failed ({problem}): update or uninstall it"
        name = _normalised(plugin_name)
        return [(name, BrokenBackend(name, reason))]


def _checked(backend: Any, plugin_name: str) -> tuple[str, Backend]:
    """Return a plugin's backend with its name, or one that cannot be used if it lacks a member."""
    name = _normalised(getattr(backend, "name", plugin_name))
    lacking = [attribute for attribute in _REQUIRED if not hasattr(backend, attribute)]
    if lacking:
        return name, BrokenBackend(
            name, f"the backend of the plugin {plugin_name} lacks {', '.join(lacking)}: update it"
        )
    return name, backend


@dataclass(frozen=True)
class State:
    """What a backend says of itself: `reason` is why it cannot run, None when it can."""

    version: str | None
    devices: list[str]
    reason: str | None


def state(backend: Backend) -> State:
    """Return what a backend says of itself; one that raises instead cannot run, and does not end a list of them."""
    try:
        version, devices, answer = backend.version(), backend.devices(), backend.can_run()
    except Exception as error:  # noqa: BLE001 - foreign code, as above
        reason = f"it failed when asked whether it can run ({type(error).__name__}: {error}): update or uninstall it"
        return State(None, [], reason)
    return State(version, devices, None if answer is True else answer)


def get(name: str) -> Backend:
    """Return the backend of this name; upper and lower case are the same.

    Raises
    ------
    UnknownBackendError
        when no backend has this name; the message lists the known ones
    """
    known = {_normalised(backend.name): backend for backend in all_backends()}
    if _normalised(str(name)) not in known:  # str(): what is no name at all is none of these, too
        raise UnknownBackendError(f"unknown backend {str(name)!r}; known backends: {', '.join(known)}")
    return known[_normalised(name)]


def get_usable(name: str) -> Backend:
    """Return the backend of this name, which can run.

    Raises
    ------
    UnknownBackendError
        when no backend has this name
    BackendUnavailableError
        when it cannot run; the message is its reason
    """
    backend = get(name)
    reason = backend.can_run()
    if reason is not True:
        raise BackendUnavailableError(reason)
    return backend


def resolve(keyword: str | None, *, command_line: str | None, installed: str | None) -> str:
    """Return the name of the backend that a call to `load_model` gets.

    The first of these that is given wins; `WHISPER_BACKEND` is read now, and an empty one is none.

    Parameters
    ----------
    keyword : str | None
        the argument `backend=` of the call
    command_line : str | None
        the value of `--backend` on the whisper command line
    installed : str | None
        the argument of `install(backend=)`

    Returns
    -------
    str
        a name in lower case, "torch" when nothing is given; `get` tells whether it exists
    """
    for name in (keyword, command_line, installed):
        if name is not None:
            return _normalised(str(name))  # `get` refuses what is no name
    return _normalised(os.environ.get(VARIABLE, "")) or DEFAULT


def precision_option(
    backend: Backend, keyword: str | None, *, command_line: str | None, installed: str | None
) -> dict[str, str]:
    """Return what `backend.load_model` is told of precision: nothing by default, or when the backend knows of none.

    The arguments are those of `precision.resolve`.

    Raises
    ------
    PrecisionError
        when there is no such precision, or this call asks a backend for one that knows of none
    """
    if keyword is None and not hasattr(backend, "precisions"):
        return {}
    chosen = precision.resolve(keyword, command_line=command_line, installed=installed)
    return {} if chosen is None else {"precision": checked_precision(backend, chosen)}


def checked_precision(backend: Backend, name: str) -> str:
    """Return the precision of this name that `backend` has.

    Raises
    ------
    PrecisionError
        when it has none of this name
    """
    known = getattr(backend, "precisions", None)
    if known is None:
        raise PrecisionError(
            f'precision={name!r} is for the backend max and this is {backend.name}: leave it out, or take backend="max"'
        )
    return precision.checked(name, known)


def _normalised(name: str) -> str:
    return name.strip().lower()
