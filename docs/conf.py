"""The site of the documentation: `sphinx-build -W -c docs . SITE`, of the pages as they lie in the repository.

The sources begin at the root, so that links between pages, files and README are the same here and where the repository
is read. README.md is the first page.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import whisper_max_plugin

if TYPE_CHECKING:
    from sphinx.application import Sphinx

CHAPTERS = {
    "Using it": [
        "migration",
        "example",
        "many-files",
        "ray",
        "streaming",
        "voice-activity",
        "precision",
        "huggingface",
        "api",
        "troubleshooting",
    ],
    "GPUs": ["gpu", "cloud", "../compat_tests/gpu/README"],
    "Figures": ["performance", "compatibility"],
    "Inside": ["architecture", "writing-a-backend", "changing-a-graph", "../weights/README", "../CHANGELOG"],
}

project = "whisper_max_plugin"
release = version = whisper_max_plugin.__version__
copyright = "whisper_max_plugin authors, MIT licence"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "docs/*.ipynb", "weights/README.md", "compat_tests/gpu/README.md"]
exclude_patterns = [".*"]

myst_heading_anchors = 3  # links such as gpu.md#validation-on-a-gpu, as they are made on GitHub
nb_execution_mode = "off"  # it is run by compat_tests/project/test_example.py, and lies here with what it printed

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings have them
default_role = "code"  # docstrings quote as Markdown does

html_theme = "furo"
html_title = f"whisper_max_plugin {release}"
html_copy_source = False


def add_chapters(_app: Sphinx, docname: str, source: list[str]) -> None:
    """Give README.md the table of contents of the site, which would be no more than noise on its own."""
    if docname != root_doc:
        return
    for caption, pages in CHAPTERS.items():
        paths = "\n".join(f"docs/{page}" for page in pages)
        source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{paths}\n```\n"


def make_first_page(app: Sphinx, error: Exception | None) -> None:
    """Put the first page where browsers look for it."""
    if error is None and app.builder.name == "html":
        shutil.copy(app.outdir / "README.html", app.outdir / "index.html")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", add_chapters)
    app.connect("build-finished", make_first_page)
