"""The patched whisper.load_model: upstream's, with the keyword `backend`, which wins over all other choices."""

from __future__ import annotations

import inspect

import pytest

import whisper_max_plugin
from whisper_max_plugin import choices, errors, upstream

from .activation_fixtures import echo, switched_off, whisper
from .echo_backend import GIVEN, PRECEDENCE

__all__ = ["echo", "switched_off", "whisper"]  # fixtures, found by name


def test_load_model_has_upstreams_signature_and_two_keywords_more(whisper):
    signature = inspect.signature(whisper.load_model)
    whisper_max_plugin.install()
    patched = inspect.signature(whisper.load_model)
    assert list(patched.parameters.values())[:-2] == list(signature.parameters.values())
    assert patched.return_annotation == signature.return_annotation
    for name in ("backend", "precision"):
        assert str(patched.parameters[name]) == f"{name}: 'str | None' = None"
        assert patched.parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
    assert list(patched.parameters) == ["name", "device", "download_root", "in_memory", "backend", "precision"]


def test_load_model_keeps_upstreams_docstring_and_documents_both(whisper):
    before = inspect.getdoc(whisper.load_model)
    whisper_max_plugin.install()
    after = inspect.getdoc(whisper.load_model)
    added = [line for line in after.splitlines() if line not in before.splitlines()]
    assert [line for line in after.splitlines() if line not in added] == before.splitlines()
    assert added[0] == "backend : str"
    assert after.index("in_memory: bool") < after.index("backend : str") < after.index("precision : str")
    assert after.index("precision : str") < after.index("Returns")


def test_load_model_hands_every_argument_to_the_backend(whisper, echo):
    whisper_max_plugin.install("echo")
    assert whisper.load_model("tiny", "cpu", "models", True) == ("echo", "tiny", "cpu", "models", True)
    loaded = whisper.load_model(name="tiny", in_memory=True, download_root="models", device="cpu")
    assert loaded == ("echo", "tiny", "cpu", "models", True)
    with pytest.raises(TypeError):
        whisper.load_model("tiny", "cpu", "models", True, "echo")


def test_without_a_backend_upstreams_own_errors_pass_through(whisper):
    whisper_max_plugin.install("torch")
    with pytest.raises(RuntimeError, match="Model nonesuch not found; available models = "):
        whisper.load_model("nonesuch")


def test_an_unknown_backend_in_a_call_lists_the_known_ones(whisper, echo):
    whisper_max_plugin.install("echo")
    with pytest.raises(errors.UnknownBackendError, match="unknown backend 'foo'; known backends: echo, "):
        whisper.load_model("tiny", backend="foo")


def test_without_max_the_max_backend_says_how_to_install_it_and_torch_works(whisper, monkeypatch):
    monkeypatch.setattr("whisper_max_plugin.max_backend._engine_is_importable", lambda: False)
    whisper_max_plugin.install()
    with pytest.raises(errors.BackendUnavailableError, match="MAX is not installed: pip install 'max"):
        whisper.load_model("nonesuch")
    with pytest.raises(RuntimeError, match="Model nonesuch not found"):
        whisper.load_model("nonesuch", backend="torch")


@pytest.mark.parametrize(("given", "chosen"), PRECEDENCE)
def test_each_way_to_choose_a_backend_wins_over_the_ways_below_it(whisper, echo, monkeypatch, given, chosen):
    upstream.activate(GIVEN["installed"] if "installed" in given else None)
    if "command_line" in given:
        monkeypatch.setattr(choices.command_line, "backend", GIVEN["command_line"])
    if "environment" in given:
        monkeypatch.setenv("WHISPER_BACKEND", GIVEN["environment"])  # after activation: it is read at call time
    keyword = {"backend": GIVEN["keyword"]} if "keyword" in given else {}
    assert whisper.load_model("tiny", **keyword)[0] == chosen
    assert upstream.current_backend(**{"keyword": keyword.get("backend")}) == chosen


def test_active_with_nothing_chosen_is_upstream(whisper):
    upstream.activate()
    assert upstream.current_backend() == "torch"
    with pytest.raises(RuntimeError, match="Model nonesuch not found"):
        whisper.load_model("nonesuch")
