"""The real openai-whisper in this process, switched off before and after a test, and backends to switch on."""

from __future__ import annotations

import importlib

import pytest

import whisper_max_plugin
from whisper_max_plugin import backends, choices, upstream

from .echo_backend import EchoPlugin


@pytest.fixture(autouse=True)
def switched_off(monkeypatch):
    """Start and end with upstream's whisper and none of our settings."""
    for variable in ("WHISPER_BACKEND", "WHISPER_MAX_NO_HOOK", "WHISPER_MAX_PRECISION", "WHISPER_MAX_STRICT"):
        monkeypatch.delenv(variable, raising=False)
    was_active = whisper_max_plugin.is_active()
    whisper_max_plugin.uninstall()
    monkeypatch.setattr(choices.command_line, "backend", None)
    monkeypatch.setattr(choices.command_line, "precision", None)
    monkeypatch.setattr(upstream, "_reported", set())
    yield
    whisper_max_plugin.uninstall()
    if was_active:
        upstream.activate()


@pytest.fixture
def echo():
    backends.plugin_manager().register(EchoPlugin(), name="echo")
    yield
    backends.plugin_manager().unregister(name="echo")


@pytest.fixture
def whisper():
    return importlib.import_module("whisper")
