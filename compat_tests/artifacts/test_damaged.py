"""Damaged entries of the cache are compiled again and mended; those of another version are not used and stay."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from whisper.model import ModelDimensions

from whisper_max_plugin.execution import artifacts, processor
from whisper_max_plugin.execution.artifacts import ArtifactKey

from .fixtures import compilations, dims, max_cache, obtain, path_of, refuse_to_build, settings, stored, works

__all__ = ["compilations", "dims", "max_cache", "settings", "stored"]  # fixtures, found by name

DAMAGES = {
    "artifact empty": lambda path: path.write_bytes(b""),
    "artifact truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "artifact with one byte flipped": lambda path: flip(path),
    "artifact deleted": lambda path: path.unlink(),
    "manifest empty": lambda path: path.with_suffix(".json").write_text(""),
    "manifest truncated": lambda path: os.truncate(path.with_suffix(".json"), 40),
    "manifest not UTF-8": lambda path: path.with_suffix(".json").write_bytes(b"\xff\xfe"),
    "manifest of another kind": lambda path: path.with_suffix(".json").write_text("[1]"),
    "manifest without the digest": lambda path: path.with_suffix(".json").write_text("{}"),
    "manifest deleted": lambda path: path.with_suffix(".json").unlink(),
    "both deleted": lambda path: (path.unlink(), path.with_suffix(".json").unlink()),
    "lock deleted": lambda path: (path.with_suffix(".lock").unlink(missing_ok=True), path.unlink()),
}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_entry_is_compiled_again_and_mended(
    dims: ModelDimensions, stored: Path, compilations: list[float], name: str
) -> None:
    DAMAGES[name](stored)
    assert not artifacts.is_cached(dims, "float32", "cpu")
    assert works(obtain(dims))
    assert len(compilations) == 1
    assert works(obtain(dims, refuse_to_build))


def test_sound_bytes_that_max_does_not_take_are_compiled_again(
    dims: ModelDimensions, stored: Path, compilations: list[float]
) -> None:
    stored.write_bytes(b"not an artifact")
    manifest = json.loads(stored.with_suffix(".json").read_text())
    manifest["sha256"] = hashlib.sha256(b"not an artifact").hexdigest()
    stored.with_suffix(".json").write_text(json.dumps(manifest))
    assert works(obtain(dims))
    assert len(compilations) == 1
    assert works(obtain(dims, refuse_to_build))


def test_a_damaged_entry_is_named_in_a_warning(
    dims: ModelDimensions, stored: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flip(stored)
    with caplog.at_level(logging.WARNING, logger="whisper_max_plugin"):
        obtain(dims)
    assert any(stored.name in record.message and "damaged" in record.message for record in caplog.records)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda patch: patch.setattr(artifacts.metadata, "version", lambda _: "26.8.0"), id="MAX"),
        pytest.param(lambda patch: patch.setattr(artifacts, "_graphs_digest", lambda: "other graphs"), id="graphs"),
        pytest.param(lambda patch: patch.setattr(processor, "digest", lambda: "other processor"), id="processor"),
    ],
)
def test_an_entry_of_another_version_is_not_used_and_stays(
    dims: ModelDimensions,
    stored: Path,
    compilations: list[float],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pytest.MonkeyPatch], None],
) -> None:
    content = stored.read_bytes()
    with monkeypatch.context() as patch:
        change(patch)
        assert path_of(dims) != stored
        assert works(obtain(dims))
        assert len(compilations) == 1
    assert stored.read_bytes() == content
    assert works(obtain(dims, refuse_to_build))


def test_each_precision_device_and_size_has_its_own_entry(dims: ModelDimensions) -> None:
    names = {
        ArtifactKey.of(sizes, precision, device).filename
        for sizes in (dims, ModelDimensions(**{**vars(dims), "n_text_ctx": 2}))
        for precision in ("float32", "bfloat16")
        for device in ("cpu", "cuda:0", "cuda:1")
    }
    assert len(names) == 12
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.") for name in names)  # for any file system
