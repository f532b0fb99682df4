"""What a folder of Hugging Face is refused with, and the tensor that tests take away from one."""

from __future__ import annotations

from pathlib import Path

import pytest
import whisper
from whisper.model import Whisper

import whisper_max_plugin
from whisper_max_plugin.errors import CheckpointError

from ..errors import assert_one_sentence, error_of

FC1 = "model.decoder.layers.1.fc1.weight"


@pytest.fixture(autouse=True)
def installed() -> None:
    whisper_max_plugin.install()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "my model"
    folder.mkdir()
    return folder


def load(folder: Path) -> Whisper:
    return whisper.load_model(str(folder), device="cpu", backend="max")


def refused(folder: Path, *named: object) -> str:
    """Assert that the folder is refused in one sentence, which names it and what is wrong."""
    error = error_of(lambda: load(folder))
    assert isinstance(error, CheckpointError), repr(error)
    assert_one_sentence(error, folder, *named)
    return str(error)
