"""Where the tests find checkpoints and audio.

What belongs to the project lies in weights/. The one recording of a third party, jfk.flac of openai-whisper's own
tests, is never committed: it is taken from a folder beside the repository or downloaded once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "weights"

NANO = WEIGHTS / "nano.pt"
SAMPLE = WEIGHTS / "sample.flac"
SAMPLE_LONG = WEIGHTS / "sample_long.flac"
SAMPLE_ES = WEIGHTS / "sample_es.flac"
SAMPLE_DE = WEIGHTS / "sample_de.flac"
SAMPLES = (SAMPLE, SAMPLE_LONG, SAMPLE_ES, SAMPLE_DE)

JFK_URL = "https://raw.githubusercontent.com/openai/whisper/main/tests/jfk.flac"
JFK_SHA256 = "63a4b1e4c1dc655ac70961ffbf518acd249df237e5a0152faae9a4a836949715"
JFK_BESIDE_THE_REPOSITORY = ROOT.parent / "shared" / "audio" / "jfk.flac"


@dataclass(frozen=True)
class Sentence:
    """A line of a sample's reference: seconds, what is said and, if that is not English, its English."""

    start: float
    end: float
    text: str
    english: str | None = None


def reference(sample: Path) -> list[Sentence]:
    """Return the sentences of a sample recording."""
    lines = [line.split("\t") for line in sample.with_suffix(".txt").read_text(encoding="utf8").splitlines()]
    return [Sentence(float(start), float(end), *texts) for start, end, *texts in lines]


def reference_text(sample: Path) -> str:
    """Return the sentences of a sample recording as one text."""
    return " ".join(sentence.text for sentence in reference(sample))


def jfk() -> Path:
    """Return the path of jfk.flac.

    The test is skipped if the recording is not there and cannot be downloaded; in CI it fails.
    """
    if JFK_BESIDE_THE_REPOSITORY.exists():
        return JFK_BESIDE_THE_REPOSITORY
    pooch = pytest.importorskip("pooch", reason="pooch is not installed, which downloads jfk.flac")
    try:
        cached = pooch.retrieve(JFK_URL, JFK_SHA256, "jfk.flac", path=pooch.os_cache("whisper_max_plugin"))
    except OSError as error:  # requests' errors are OSErrors too
        reason = f"offline: jfk.flac is not in the cache and cannot be downloaded ({type(error).__name__})"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return Path(cached)
