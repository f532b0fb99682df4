"""The blocks of code in docs/ and README.md, as a reader would run them, with nano in place of big models."""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data import NANO, ROOT, SAMPLE, SAMPLE_DE, SAMPLE_ES

MODEL = "turbo"
RECORDINGS = {"interview.mp3": SAMPLE, "monday.mp3": SAMPLE, "tuesday.mp3": SAMPLE_ES, "wednesday.mp3": SAMPLE_DE}


@dataclass(frozen=True)
class Snippet:
    """A block of code: its page, section and language, and the package that its first line says it is for."""

    page: str
    section: str
    language: str
    package: str | None
    code: str

    def with_model(self, model: Path) -> str:
        """Return the code with `model` in place of the one that it names."""
        if self.language == "python":
            return self.code.replace(f'"{MODEL}"', repr(str(model)))
        return self.code.replace(f"--model {MODEL}", f"--model {shlex.quote(str(model))}")

    def run(self, namespace: dict[str, Any], model: Path = NANO) -> None:
        """Run Python code; its names stay in `namespace`."""
        exec(compile(self.with_model(model), f"{self.page}: {self.section}", "exec"), namespace)


def snippets(page: str) -> list[Snippet]:
    """Return the blocks of Python and of the shell in a page, which is named as docs/ would, in order."""
    text = (ROOT / "docs" / page).read_text(encoding="utf8")
    found: list[Snippet] = []
    for part in re.split(r"^## ", text, flags=re.MULTILINE):
        section = part.partition("\n")[0].lstrip("# ")
        for language, code in re.findall(r"^```(python|sh)\n(.*?)^```$", part, re.MULTILINE | re.DOTALL):
            package = re.match(r"# ([\w-]+)\n", code)
            found.append(Snippet(page, section, language, package[1] if package else None, code))
    return found


def lay_out(folder: Path) -> None:
    """Put the recordings that pages name into `folder`; decoders look into files, and not at their names."""
    for name, sample in RECORDINGS.items():
        shutil.copyfile(sample, folder / name)
