"""docs/example.ipynb runs from its first cell to its last, and prints what it holds.

It lies in the repository with its outputs, since that is how it is read there and on the site; they are compared, so
that they cannot grow old. `python -m compat_tests.test_example` runs it and writes them anew.
"""

from __future__ import annotations

import os
import re
from typing import Any

import pytest

from ..compare import WORD_TIME_ERROR
from ..data import ROOT

NOTEBOOK = ROOT / "docs" / "example.ipynb"
NUMBER = re.compile(r"\d+\.\d+")


def run_notebook() -> Any:
    """Return the notebook with fresh outputs, from a kernel in its folder."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    folder = {"metadata": {"path": str(NOTEBOOK.parent)}}
    return NotebookClient(notebook, timeout=600, resources=folder, coalesce_streams=True).execute()


def printed(notebook: Any) -> list[str]:
    """Return what its cells printed and returned, stderr included."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output["text"] if "text" in output else output["data"]["text/plain"] for output in outputs]


def test_the_example_runs_and_prints_what_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ipykernel", reason="ipykernel is not installed, the extra docs")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed, the extra docs")
    monkeypatch.setenv("WHISPER_MAX_STRICT", "1")
    written = printed(nbformat.read(NOTEBOOK, as_version=4))
    fresh = printed(run_notebook())
    assert [NUMBER.sub("#", text) for text in fresh] == [NUMBER.sub("#", text) for text in written]
    for text, expected in zip(fresh, written, strict=True):
        seconds = [float(number) for number in NUMBER.findall(expected)]
        # words' times are as far apart as those of upstream on two machines may be
        assert [float(number) for number in NUMBER.findall(text)] == pytest.approx(seconds, abs=WORD_TIME_ERROR + 1e-6)


if __name__ == "__main__":
    import nbformat

    os.environ["WHISPER_MAX_STRICT"] = "1"
    fresh = run_notebook()
    for cell in fresh.cells:
        cell.metadata.pop("execution", None)  # the times of day
    nbformat.write(fresh, NOTEBOOK)
