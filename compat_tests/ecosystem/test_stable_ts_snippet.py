"""What docs/migration.md says about stable-ts is what its users write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import whisper_max_plugin
from whisper_max_plugin.inference.model import MaxWhisper

from ..conftest import Pair
from ..data import SAMPLE, reference_text
from ..project.snippets import lay_out, snippets


def test_its_block_in_the_page(nano: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    whisper_max_plugin.install()
    (snippet,) = (snippet for snippet in snippets("migration.md") if snippet.package == "stable-ts")
    names: dict[str, Any] = {}
    snippet.run(names)
    assert isinstance(names["model"], MaxWhisper)
    assert names["result"].text.strip() == names["aligned"].text.strip() == reference_text(SAMPLE)
    assert "The king" in Path("interview.srt").read_text(encoding="utf8")
