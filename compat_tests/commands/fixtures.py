"""Upstream's command in this process, through ``whisper-max transcribe``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import whisper_max_plugin
from whisper_max_plugin.cli import main

from ..data import NANO

Command = Callable[..., dict[str, str]]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `whisper FILE…` with nano, and return the files that it wrote by their names."""
    for attribute in ("argv", "excepthook"):
        monkeypatch.setattr(sys, attribute, getattr(sys, attribute))  # to be restored

    def command(*arguments: str | Path) -> dict[str, str]:
        folder = tmp_path / f"transcripts{len(list(tmp_path.iterdir()))}"
        options = ["--model", NANO, "--output_dir", folder, *arguments]
        assert main(["transcribe", *map(str, options)]) == 0
        whisper_max_plugin.uninstall()
        return {path.name: path.read_text(encoding="utf8") for path in folder.iterdir()}

    return command
