"""The only file that patches whisper: `load_model`, audio without ffmpeg, spectrograms, `decode`, words' times.

For as long as somebody watches or our command's options need it, also what cuts windows out, and `transcribe` as
upstream's command calls it.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import shutil
import sys
import threading
from typing import TYPE_CHECKING, Any

from whisper_max_plugin import choices, import_hook, patches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from types import FrameType, ModuleType

    import numpy as np
    import numpy.typing as npt
    import torch
    from whisper.model import Whisper

    from whisper_max_plugin.inference.runtime import Runtime

logger = logging.getLogger(__name__)

ADDED_PARAMETERS = {
    name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation="str | None")
    for name in ("backend", "precision")
}
ADDED_DOCUMENTATION = """
    backend : str
        what runs the model: "max", "torch" or any registered backend; by default the one that is switched on
    precision : str
        what the backend "max" rounds the decoder's weights to: "float16", "bfloat16" or "int8"; with the latter two
        also what is multiplied once for a window, where the CPU is faster so; by default "float32", which rounds
        nothing
"""


_active = False
_reported: set[str] = set()  # modules that a warning has named


def activate(backend: str | None = None, precision: str | None = None) -> list[str]:
    """Patch whisper, now or when it is imported.

    Parameters
    ----------
    backend, precision : str | None
        what `install` was given; without a backend the choice is left to the command line and the environment

    Returns
    -------
    list[str]
        modules that imported upstream's own `load_model` before, except those that an earlier call returned

    Raises
    ------
    UnsupportedWhisperError
        when whisper is imported and lacks what is patched
    """
    global _active
    was_imported = "whisper" in sys.modules
    _active = True
    if backend is not None:
        choices.installed.backend, choices.installed.precision = backend, precision
    try:
        import_hook.when_imported("whisper", _patch_whisper)
    except BaseException:
        deactivate()
        raise
    _patch_again()
    return _modules_with_original() if was_imported else []


def deactivate() -> None:
    """Undo `activate`; below somebody's later patch of whisper our function stays, with upstream's results."""
    global _active
    _active = False
    for choice in (choices.installed, choices.command_line):
        choice.backend = choice.precision = None
    import_hook.forget("whisper", _patch_whisper)
    restore_transcribe_of_the_command()
    for module_name, attribute in _patched():
        patches.restore(module_name, attribute)


def is_active() -> bool:
    """Return whether whisper is patched, or will be when it is imported."""
    return _active


def current_backend(keyword: str | None = None) -> str:
    """Return the name of the backend that `whisper.load_model(..., backend=keyword)` gets now."""
    from whisper_max_plugin import backends

    if keyword is None and not _active:
        return backends.DEFAULT
    return backends.resolve(keyword, command_line=choices.command_line.backend, installed=choices.installed.backend)


def _patch_whisper(_whisper: ModuleType) -> None:
    # By its name: an attribute of the package may be a function of the same name, as `whisper.transcribe` is.
    for patch in PATCHES:
        patches.check(importlib.import_module(patch.modules[0]), patch.name, patch.parameters)
    for patch in PATCHES:
        for module_name in patch.modules:
            patches.replace(importlib.import_module(module_name), patch.name, patch.make)


def _patched() -> Iterator[tuple[str, str]]:
    """Yield the module and the name of everything that is patched."""
    return ((module_name, patch.name) for patch in PATCHES for module_name in patch.modules)


def _patch_again() -> None:
    # Somebody's temporary patch, unittest.mock's for one, may have put upstream's function back over ours.
    for module_name, attribute in _patched():
        current = getattr(sys.modules.get(module_name), attribute, None)
        for replacement, original in patches.originals.items():
            if current is original:
                setattr(sys.modules[module_name], attribute, replacement)


# The makers are cached: after uninstall() and install(), names imported in between are the plugin's again.


@functools.cache
def _make_load_model(original: Callable[..., Whisper]) -> Callable[..., Whisper]:
    @functools.wraps(original)
    def load_model(
        name: str,
        device: str | torch.device | None = None,
        download_root: str | None = None,
        in_memory: bool = False,
        *,
        backend: str | None = None,
        precision: str | None = None,
    ) -> Whisper:
        if backend is None and precision is None and not _active:
            return original(name, device=device, download_root=download_root, in_memory=in_memory)
        from whisper_max_plugin import backends

        chosen = backends.get_usable(current_backend(backend))
        logger.info("loading %s on the backend %s", name, chosen.name)
        options = backends.precision_option(
            chosen, precision, command_line=choices.command_line.precision, installed=choices.installed.precision
        )
        return chosen.load_model(name, device, download_root, in_memory, upstream_load_model=original, **options)

    own = inspect.signature(load_model, follow_wrapped=False)
    theirs = inspect.signature(original)
    own_parameters = {**own.parameters, **ADDED_PARAMETERS}
    parameters = [theirs.parameters.get(name, parameter) for name, parameter in own_parameters.items()]
    load_model.__signature__ = theirs.replace(parameters=parameters)  # type: ignore[attr-defined]
    load_model.__annotations__ = {
        **getattr(original, "__annotations__", {}),  # which a partial has not, nor a name
        **{name: parameter.annotation for name, parameter in ADDED_PARAMETERS.items()},
    }
    if original.__doc__ is not None:  # None under python -OO
        head, separator, tail = original.__doc__.partition("\n    Returns\n")
        load_model.__doc__ = head.rstrip() + ADDED_DOCUMENTATION + separator + tail
    return load_model


@functools.cache
def _make_load_audio(original: Callable[..., npt.NDArray[np.float32]]) -> Callable[..., npt.NDArray[np.float32]]:
    @functools.wraps(original)
    def load_audio(*arguments: Any, **options: Any) -> npt.NDArray[np.float32]:
        if not _active or shutil.which("ffmpeg") is not None:
            return original(*arguments, **options)
        from whisper_max_plugin import audio

        return audio.load_audio(*arguments, **options)

    return load_audio


@functools.cache
def _make_log_mel_spectrogram(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(original)
    def log_mel_spectrogram(*arguments: Any, **options: Any) -> torch.Tensor:
        if not _active:
            return original(*arguments, **options)
        from whisper_max_plugin import spectrogram

        runtime = _runtime_of_transcribe(sys._getframe(1))
        return spectrogram.log_mel_spectrogram(original, runtime, *arguments, **options)

    return log_mel_spectrogram


def _runtime_of_transcribe(frame: FrameType) -> Runtime | None:
    # Upstream's `transcribe(model, …)` is the only caller that says for which model the spectrogram is. By its file,
    # which it has as `__main__` too: `python -m whisper.transcribe`.
    file = getattr(sys.modules.get("whisper.transcribe"), "__file__", None)
    return spectrogram_runtime(frame.f_locals.get("model")) if frame.f_code.co_filename == file else None


def spectrogram_runtime(model: Any) -> Runtime | None:
    """Return what makes the spectrograms of ``transcribe(model, …)``; None where upstream does."""
    return _runtime_of(model) if _active else None


def _runtime_of(model: Any) -> Runtime | None:
    runtime = getattr(getattr(model, "decoder", None), "runtime", None)  # a model of others may have something there
    module = sys.modules.get("whisper_max_plugin.inference.runtime")  # which whoever made a model on graphs imported
    return runtime if module is not None and isinstance(runtime, module.Runtime) else None


@functools.cache
def _make_decode(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def decode(model: Whisper, *arguments: Any, **options: Any) -> Any:
        if not _active or _runtime_of(model) is None:
            return original(model, *arguments, **options)
        from whisper_max_plugin.inference import decoding

        # Not `model.decode`: upstream's function does not ask the model either, and a method may call this function.
        return decoding.decode(model, *arguments, **options)

    return decode


@functools.cache
def _make_median_filter(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(original)
    def median_filter(x: torch.Tensor, filter_width: int) -> torch.Tensor:
        if not _active:
            return original(x, filter_width)
        from whisper_max_plugin import median

        return median.median_filter(original, x, filter_width)

    return median_filter


_one_alignment_at_a_time = threading.RLock()


@functools.cache
def _make_find_alignment(original: Callable[..., Any]) -> Callable[..., Any]:
    # Upstream's function hooks the model's modules, and switches attention by a variable of its class, while it runs:
    # other threads have to wait.
    @functools.wraps(original)
    def in_turn(*arguments: Any, **options: Any) -> Any:
        with _one_alignment_at_a_time:
            return original(*arguments, **options)

    @functools.wraps(original)
    def find_alignment(model: Whisper, *arguments: Any, **options: Any) -> Any:
        runtime = _runtime_of(model)
        if runtime is None:
            return in_turn(model, *arguments, **options)
        from whisper_max_plugin.inference import alignment

        with runtime.alone():
            return alignment.find_alignment(in_turn, model, *arguments, **options)

    return find_alignment


PATCHES = (
    patches.Patch("load_model", ("whisper",), ["name", "device", "download_root", "in_memory"], _make_load_model),
    patches.Patch("load_audio", ("whisper.audio", "whisper"), ["file", "sr"], _make_load_audio),
    patches.Patch(
        "log_mel_spectrogram",
        ("whisper.audio", "whisper", "whisper.transcribe"),
        ["audio", "n_mels", "padding"],
        _make_log_mel_spectrogram,
    ),
    patches.Patch("decode", ("whisper.decoding", "whisper"), ["model", "mel", "options"], _make_decode),
    patches.Patch(
        "find_alignment",
        ("whisper.timing",),
        ["model", "tokenizer", "text_tokens", "mel", "num_frames"],
        _make_find_alignment,
    ),
    patches.Patch("median_filter", ("whisper.timing",), ["x", "filter_width"], _make_median_filter),
)


def alignments_in_turn() -> AbstractContextManager[None]:
    """In the block, let threads wait for each other's `find_alignment`, whether the plugin is installed or not."""
    return patches.replaced("whisper.timing", "find_alignment", _make_find_alignment, is_kept=is_active)


def window_cuts_told(tell: Callable[[FrameType], object]) -> AbstractContextManager[None]:
    """In the block, and on every thread, call `tell(frame)` when code of `whisper.transcribe` cuts out a window.

    Parameters
    ----------
    tell : Callable[[FrameType], object]
        the same function in all blocks; `frame` is that of the code that calls `pad_or_trim`

    Raises
    ------
    UnsupportedWhisperError
        when `whisper.transcribe` has no `pad_or_trim`
    """
    module = importlib.import_module("whisper.transcribe")
    patches.check(module, "pad_or_trim", ["array", "length"])
    return patches.replaced("whisper.transcribe", "pad_or_trim", functools.partial(_make_pad_or_trim, tell))


@functools.cache
def _make_pad_or_trim(tell: Callable[[FrameType], object], original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def pad_or_trim(*arguments: Any, **options: Any) -> Any:
        tell(sys._getframe(1))
        return original(*arguments, **options)

    return pad_or_trim


_of_the_command: dict[str, Callable[..., Any]] = {}  # upstream's `transcribe` by the module that has another now


def replace_transcribe_of_the_command(wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Let upstream's `cli()` call `wrap(transcribe)` for each file, where it calls `transcribe`.

    Callers of `whisper.transcribe`, the function, get upstream's. What an earlier call did is to be undone before.
    """
    upstreams: Any = sys.modules["whisper.transcribe"]
    modules = {"whisper.transcribe": upstreams}
    if getattr(getattr(sys.modules["__main__"], "__spec__", None), "name", None) == "whisper.transcribe":
        modules["__main__"] = sys.modules["__main__"]  # python -m whisper.transcribe
    _of_the_command.update((name, module.transcribe) for name, module in modules.items())
    wrapped = wrap(_of_the_command["whisper.transcribe"])  # once: what it makes may hold the command's files
    for module in modules.values():
        module.transcribe = wrapped


def restore_transcribe_of_the_command() -> None:
    """Undo `replace_transcribe_of_the_command`."""
    for name, original in _of_the_command.items():
        vars(sys.modules[name])["transcribe"] = original
    _of_the_command.clear()


def _modules_with_original() -> list[str]:
    originals = {
        id(original) for original in patches.originals.values() if getattr(original, "__name__", "") == "load_model"
    }
    found = []
    for name, module in list(sys.modules.items()):
        if name == "whisper" or name in _reported:
            continue
        if any(id(value) in originals for value in list(getattr(module, "__dict__", {}).values())):
            found.append(name)
    _reported.update(found)
    return found
