"""Where `load_audio` takes audio from: paths, names of any characters, URLs, standard input."""

from __future__ import annotations

import functools
import http.server
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from whisper_max_plugin.audio import load_audio

from .fixtures import source

__all__ = ["source"]  # fixtures, found by name


def test_a_path_object_works(source: Callable[[str], Path]) -> None:
    assert np.array_equal(load_audio(source("mono16")), load_audio(str(source("mono16"))))


def test_a_file_name_of_any_characters_works(source: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "größe %03d 'x' [1] ü😀.wav"
    shutil.copy(source("mono16"), path)
    assert np.array_equal(load_audio(path), load_audio(source("mono16")))


def test_tags_in_an_old_encoding_do_not_matter(source: Callable[[str], Path], tmp_path: Path) -> None:
    title = "Größe\0".encode("latin-1") + b"\0"
    tag = b"INFOINAM" + len(title).to_bytes(4, "little") + title
    path = tmp_path / "tagged.wav"
    path.write_bytes(source("mono16").read_bytes() + b"LIST" + len(tag).to_bytes(4, "little") + tag)
    with pytest.raises(UnicodeDecodeError), av.open(str(path)):
        pytest.fail("the file has no such tag")
    assert np.array_equal(load_audio(path), load_audio(source("mono16")))


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing on stderr."""


@pytest.fixture
def web_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder and the address at which it is served."""
    monkeypatch.delenv("http_proxy", raising=False)  # the FFmpeg libraries would obey it
    handler = functools.partial(_QuietHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield tmp_path, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_url_works(source: Callable[[str], Path], web_folder: tuple[Path, str]) -> None:
    folder, address = web_folder
    shutil.copy(source("mono16"), folder / "speech.wav")
    assert np.array_equal(load_audio(f"{address}/speech.wav"), load_audio(source("mono16")))
    with pytest.raises(RuntimeError, match=f"^Failed to load audio: {address}/missing.wav: .*404"):
        load_audio(f"{address}/missing.wav")


def test_a_dash_is_standard_input(source: Callable[[str], Path]) -> None:
    program = "from whisper_max_plugin.audio import load_audio; print(len(load_audio('-')))"
    with source("mono16").open("rb") as file:
        output = subprocess.check_output([sys.executable, "-c", program], stdin=file)
    assert int(output) == len(load_audio(source("mono16")))
