"""How a function of whisper is replaced, and put back: for good, or for as long as a block needs it."""

from __future__ import annotations

import importlib
import inspect
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whisper_max_plugin.errors import UnsupportedWhisperError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType


@dataclass(frozen=True)
class Patch:
    """A function of whisper that is replaced, and by what."""

    name: str
    modules: tuple[str, ...]  # that have the function by this name; the first one defines it
    parameters: list[str]  # that it has to take
    make: Callable[[Callable[..., Any]], Callable[..., Any]]  # what is put in its place, of the function


originals: dict[Callable[..., Any], Callable[..., Any]] = {}
"""Each replacement, and the function in whose place it is."""

_sharing = threading.RLock()  # the garbage collector may end a block within this one
_n_blocks: Counter[tuple[str, str]] = Counter()  # that need a replacement, by its module and name


def check(module: ModuleType, attribute: str, expected: list[str]) -> None:
    """Refuse a module of whisper whose function does not take the parameters `expected`.

    Raises
    ------
    UnsupportedWhisperError
        also where there is no such function
    """
    function = getattr(module, attribute, None)
    try:
        # What somebody else put there may take (*args, **kwargs).
        inspect.signature(function).bind(**dict.fromkeys(expected))  # type: ignore[arg-type]
    except TypeError:
        whisper = sys.modules["whisper"]
        version = getattr(whisper, "__version__", "of unknown version")
        missing = f"{module.__name__}.{attribute}({', '.join(expected)})"
        raise UnsupportedWhisperError(
            f"whisper {version} ({whisper.__file__}) has no {missing} for whisper_max_plugin to replace: "
            "pip install 'openai-whisper>=20231106'"
        ) from None


def is_defined_in(function: Callable[..., Any], module: ModuleType) -> bool:
    """Tell whether a function is the module's own, and no wrapper of it, which says that it is, too."""
    return getattr(function, "__globals__", None) is vars(module)


def replace(module: ModuleType, attribute: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Put what `make` makes of a module's function in its place, unless it is there already."""
    current = getattr(module, attribute)
    if current in originals:
        return
    replacement = make(current)
    originals[replacement] = current
    setattr(module, attribute, replacement)


def restore(module_name: str, attribute: str) -> None:
    """Put the function back, unless a block needs the replacement, or somebody's later patch lies over it."""
    current = getattr(sys.modules.get(module_name), attribute, None)
    if current in originals and _n_blocks[module_name, attribute] == 0:
        setattr(sys.modules[module_name], attribute, originals[current])


@contextmanager
def replaced(
    module_name: str,
    attribute: str,
    make: Callable[[Callable[..., Any]], Callable[..., Any]],
    is_kept: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """In the block, and on every thread, have the replacement in place; afterwards too, if it `is_kept` by others."""
    with _sharing:
        _n_blocks[module_name, attribute] += 1
        replace(importlib.import_module(module_name), attribute, make)
    try:
        yield
    finally:
        with _sharing:
            _n_blocks[module_name, attribute] -= 1
            if not is_kept():
                restore(module_name, attribute)
