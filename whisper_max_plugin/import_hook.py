"""Calls back when a module has been imported, by a finder that stands before Python's own and finds nothing itself.

The start-up hook needs it in every process that it does something in, so this module imports next to nothing.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as in typing, which is slow to import
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType


def when_imported(name: str, callback: Callable[[ModuleType], object]) -> None:
    """Call `callback(module)` each time that module `name` has been executed: imported, or reloaded.

    When it is imported already, the first call happens at once. Registering a callback again does nothing.
    """
    callbacks = _finder.callbacks.setdefault(name, [])
    if callback in callbacks:
        return
    callbacks.append(callback)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    if name in sys.modules:
        __import__(name)  # waits while another thread is importing it
    if name in sys.modules:
        callback(sys.modules[name])


def forget(name: str, callback: Callable[[ModuleType], object]) -> None:
    """Undo `when_imported(name, callback)`."""
    callbacks = _finder.callbacks.get(name, [])
    if callback in callbacks:
        callbacks.remove(callback)


class _PostImportFinder:
    """A meta-path finder that finds nothing itself: it adds the callbacks to what the other finders found."""

    def __init__(self) -> None:
        self.callbacks: dict[str, list[Callable[[ModuleType], object]]] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not self.callbacks.get(name):
            return None
        for finder in sys.meta_path:
            find_spec = None if finder is self else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find_spec(name, path, target) if find_spec is not None else None
            if spec is not None:
                self._call_back_after_execution(spec)
                return spec
        return None

    def _call_back_after_execution(self, spec: ModuleSpec) -> None:
        loader = spec.loader
        if loader is None or not hasattr(loader, "exec_module"):
            return  # a namespace package has no code to run

        def exec_module(module: ModuleType) -> None:
            # The loader stays the real one, since runpy, inspect and importlib.resources ask it for more.
            # Only this call is intercepted, by an attribute of the instance that removes itself.
            vars(loader).pop("exec_module", None)
            loader.exec_module(module)
            for callback in tuple(self.callbacks.get(spec.name, ())):
                callback(module)

        vars(loader)["exec_module"] = exec_module


_finder = _PostImportFinder()
