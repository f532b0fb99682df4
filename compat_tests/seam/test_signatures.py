"""What the plugin replaces can be called as upstream's, and says so; what it does not replace is upstream's own.

Nothing here is a list of names to keep up to date: what is replaced is found by comparing whisper before and after
`install()`, and by looking at what our subclasses of upstream's classes define.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
import torch
import whisper
from whisper.model import Whisper

import whisper_max_plugin
from whisper_max_plugin.inference.model import MaxWhisper

from ..conftest import Pair
from .activation_fixtures import switched_off

__all__ = ["switched_off"]  # a fixture, found by name

DOCUMENTED_KEYWORDS = {("MaxTextDecoder", "forward"): ["rows"], ("whisper", "load_model"): ["backend", "precision"]}


def documented(function: Callable[..., Any]) -> str:
    """Return a docstring's words, without the differences of layout."""
    return " ".join((function.__doc__ or "").split())


# Functions


def attributes_of_whisper() -> dict[tuple[str, str], object]:
    """Return every attribute of every module of whisper, and of every class in them."""
    found: dict[tuple[str, str], object] = {}
    for name, module in sorted(sys.modules.items()):
        if name != "whisper" and not name.startswith("whisper."):
            continue
        for attribute, value in vars(module).items():
            if attribute == "__warningregistry__":
                continue  # Python's own notes
            found[name, attribute] = value
            if inspect.isclass(value) and value.__module__ == name:
                found.update(((f"{name}.{attribute}", key), member) for key, member in vars(value).items())
    return found


def replaced_by_install() -> dict[tuple[str, str], tuple[Any, Any]]:
    """Return what `install()` puts in the place of something of whisper's: (upstream's, ours) by its place."""
    before = attributes_of_whisper()
    whisper_max_plugin.install()
    after = attributes_of_whisper()
    whisper_max_plugin.uninstall()
    assert after.keys() == before.keys()
    return {place: (before[place], value) for place, value in after.items() if value is not before[place]}


def test_install_replaces_six_functions_and_nothing_else(switched_off: None) -> None:
    assert sorted(replaced_by_install()) == [
        ("whisper", "decode"),
        ("whisper", "load_audio"),
        ("whisper", "load_model"),
        ("whisper", "log_mel_spectrogram"),
        ("whisper.audio", "load_audio"),
        ("whisper.audio", "log_mel_spectrogram"),
        ("whisper.decoding", "decode"),
        ("whisper.timing", "find_alignment"),
        ("whisper.timing", "median_filter"),
        ("whisper.transcribe", "log_mel_spectrogram"),
    ]


def test_the_functions_that_install_replaces_have_upstreams_signature_and_docstring(switched_off: None) -> None:
    for (module, name), (theirs, ours) in replaced_by_install().items():
        expected, actual = inspect.signature(theirs), inspect.signature(ours)
        parameters = list(actual.parameters.values())
        added = parameters[len(expected.parameters) :]
        assert parameters[: len(expected.parameters)] == list(expected.parameters.values())
        assert [parameter.name for parameter in added] == DOCUMENTED_KEYWORDS.get((module, name), [])
        assert all(parameter.kind is parameter.KEYWORD_ONLY and parameter.default is None for parameter in added)
        assert actual.return_annotation == expected.return_annotation
        assert {**ours.__annotations__, **theirs.__annotations__} == ours.__annotations__
        assert (ours.__name__, ours.__qualname__) == (theirs.__name__, theirs.__qualname__)
        assert ours.__module__ == theirs.__module__
        for paragraph in (theirs.__doc__ or "").split("\n\n"):
            assert paragraph.rstrip() in (ours.__doc__ or "")


def test_loading_and_running_a_model_replaces_nothing_of_whisper(nano: Pair, switched_off: None) -> None:
    whisper_max_plugin.install()
    before = attributes_of_whisper()
    model = whisper.load_model(str(nano.path), device="cpu", backend="max")
    model.detect_language(torch.zeros(80, 3000))
    assert {place for place, value in attributes_of_whisper().items() if value is not before.get(place)} == set()


# Methods


def subclasses() -> Iterator[type]:
    """Return every class of the plugin that is derived from one of whisper's."""
    for info in pkgutil.walk_packages(whisper_max_plugin.__path__, "whisper_max_plugin."):
        if info.name in ("whisper_max_plugin.__main__", "whisper_max_plugin.auto"):
            continue  # to import these is to run them
        if info.name.startswith("whisper_max_plugin.bench."):
            continue  # derives nothing, and some of it needs the extra `bench`
        for value in vars(importlib.import_module(info.name)).values():
            if inspect.isclass(value) and value.__module__ == info.name and upstreams_base(value) is not None:
                yield value


def upstreams_base(ours: type) -> type | None:
    """Return the class of whisper that `ours` is derived from."""
    return next((base for base in ours.__mro__ if base.__module__.startswith("whisper.")), None)


def function_of(cls: type, name: str) -> Callable[..., Any]:
    """Return a method, or what computes a property."""
    value = getattr(cls, name)
    return value.fget if isinstance(value, property) else value


def overridden(ours: type) -> Iterator[str]:
    """Return the public attributes, and the constructor, that `ours` defines and whisper's own code does too."""
    theirs = {name for base in ours.__mro__ if base.__module__.startswith("whisper.") for name in vars(base)}
    yield from (name for name in vars(ours) if name in theirs and (name == "__init__" or not name.startswith("_")))


METHODS = [pytest.param(ours, name, id=f"{ours.__name__}.{name}") for ours in subclasses() for name in overridden(ours)]


def test_the_walk_finds_what_is_known_to_be_replaced() -> None:
    found = {parameter.id for parameter in METHODS}
    assert found >= {
        "MaxWhisper.decode",
        "MaxWhisper.device",
        "MaxWhisper.install_kv_cache_hooks",
        "MaxAudioEncoder.forward",
        "MaxTextDecoder.forward",
        "MaxDecodingTask.__init__",
        "MaxInference.logits",
    }


@pytest.mark.parametrize(("ours", "name"), METHODS)
def test_a_method_takes_upstreams_parameters(ours: type, name: str) -> None:
    expected = inspect.signature(function_of(upstreams_base(ours), name)).parameters
    actual = inspect.signature(function_of(ours, name)).parameters
    added = [parameter for parameter in actual.values() if parameter.name not in expected]
    assert [parameter.name for parameter in added] == DOCUMENTED_KEYWORDS.get((ours.__name__, name), [])
    assert all(parameter.kind is parameter.KEYWORD_ONLY and parameter.default is None for parameter in added)

    shared = [(parameter.name, parameter.kind, parameter.default) for parameter in actual.values()][: len(expected)]
    assert shared == [(parameter.name, parameter.kind, parameter.default) for parameter in expected.values()]


@pytest.mark.parametrize(("ours", "name"), METHODS)
def test_a_method_is_annotated_with_upstreams_types(ours: type, name: str) -> None:
    """Ours may be wider (Mapping where upstream says dict), and the model is the accelerated one."""
    expected, actual = hints(function_of(upstreams_base(ours), name)), hints(function_of(ours, name))
    for parameter, annotation in expected.items():
        for wanted in alternatives(annotation):
            found = alternatives(actual[parameter])
            assert any(issubclass(wanted, one) or issubclass(one, wanted) for one in found), (parameter, found)


def hints(function: Callable[..., Any]) -> dict[str, Any]:
    imported_for_type_checking = {"MaxWhisper": MaxWhisper, "Whisper": Whisper}
    function = inspect.unwrap(function)
    return get_type_hints(function, {**imported_for_type_checking, **function.__globals__})


def alternatives(annotation: Any) -> list[type]:
    """Return the classes that an annotation allows."""
    if get_origin(annotation) in (Union, UnionType):
        return [one for part in get_args(annotation) for one in alternatives(part)]
    return [get_origin(annotation) or annotation]


@pytest.mark.parametrize(("ours", "name"), METHODS)
def test_a_method_has_upstreams_docstring(ours: type, name: str) -> None:
    assert documented(getattr(upstreams_base(ours), name)) in documented(getattr(ours, name))


def test_what_the_model_does_not_replace_is_upstreams() -> None:
    for name in ("transcribe", "detect_language", "forward", "embed_audio", "logits", "set_alignment_heads"):
        assert inspect.getattr_static(MaxWhisper, name) is inspect.getattr_static(Whisper, name)
