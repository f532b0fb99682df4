"""The patched whisper.load_audio: the plugin decodes where there is no ffmpeg command, upstream where there is one."""

from __future__ import annotations

import importlib
import sys

import pytest

import whisper_max_plugin

from ..seam.activation_fixtures import switched_off, whisper
from ..stand_in import folder, printed, python

__all__ = ["folder", "python", "switched_off", "whisper"]  # fixtures, found by name


@pytest.fixture
def our_load_audio(monkeypatch):
    audio = importlib.import_module("whisper_max_plugin.audio")
    monkeypatch.setattr(audio, "load_audio", lambda file, sr=16000: ("ours", file, sr))


@pytest.mark.parametrize("module", ["whisper", "whisper.audio"])
def test_without_ffmpeg_audio_is_decoded_by_the_plugin(monkeypatch, whisper, our_load_audio, module):
    whisper_max_plugin.install()
    load_audio = sys.modules[module].load_audio
    monkeypatch.setattr("shutil.which", lambda command: None)  # after install: it is looked up at call time
    assert load_audio("a.flac") == ("ours", "a.flac", 16000)
    assert load_audio("a.flac", 8000) == ("ours", "a.flac", 8000)
    assert load_audio(file="a.flac", sr=8000) == ("ours", "a.flac", 8000)


def test_with_ffmpeg_audio_is_decoded_by_upstream(python):
    code = (
        "import json, shutil, whisper, whisper_max_plugin; whisper_max_plugin.install();"
        "shutil.which = lambda command: '/usr/bin/' + command;"
        "print(json.dumps(whisper.load_audio('a.flac')))"
    )
    assert printed(python("-c", code)) == ["upstream", "a.flac", 16000]
