"""The files of weights/ are what their README says."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import whisper
from whisper.model import ModelDimensions, Whisper

import whisper_max_plugin

from .. import data

CHECKSUMS = {
    name: checksum
    for checksum, name in (line.split() for line in (data.WEIGHTS / "SHA256SUMS").read_text().splitlines())
}


@pytest.fixture(scope="module")
def upstream() -> Whisper:
    """Nano as upstream loads it, also when other tests have switched the plugin on."""
    whisper_max_plugin.install()
    return whisper.load_model(str(data.NANO), device="cpu", backend="torch")


def decode(path: Path) -> tuple[np.ndarray, int, int]:
    """Return samples, rate and number of channels."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(stream)])
        return samples, stream.rate, stream.channels


@pytest.mark.parametrize("name", CHECKSUMS)
def test_the_checksum_is_right(name: str) -> None:
    assert hashlib.sha256((data.WEIGHTS / name).read_bytes()).hexdigest() == CHECKSUMS[name]


def test_every_binary_file_has_a_checksum() -> None:
    binary = {path.name for path in data.WEIGHTS.iterdir() if path.suffix in (".pt", ".flac")}
    assert set(CHECKSUMS) == binary


def test_upstream_loads_nano_strictly(upstream: Whisper) -> None:
    checkpoint = torch.load(data.NANO, weights_only=True)
    assert vars(upstream.dims) == checkpoint["dims"]
    fresh = Whisper(ModelDimensions(**checkpoint["dims"]))
    fresh.load_state_dict(checkpoint["model_state_dict"], strict=True)
    assert {tensor.dtype for tensor in checkpoint["model_state_dict"].values()} == {torch.float16}
    assert upstream.is_multilingual


@pytest.mark.parametrize("sample", data.SAMPLES, ids=lambda path: path.name)
def test_samples_are_16_khz_mono_and_as_long_as_their_reference(sample: Path) -> None:
    samples, rate, channels = decode(sample)
    assert (rate, channels, samples.dtype) == (16000, 1, np.int16)
    sentences = data.reference(sample)
    assert all(before.end < after.start for before, after in itertools.pairwise(sentences))
    assert sentences[-1].end < len(samples) / rate


def test_the_long_sample_takes_three_minutes_and_less_than_4_mb() -> None:
    samples, rate, _ = decode(data.SAMPLE_LONG)
    assert 180 < len(samples) / rate < 206
    assert data.SAMPLE_LONG.stat().st_size < 4_000_000


def test_upstream_transcribes_the_sample_without_an_error(upstream: Whisper) -> None:
    result = whisper.transcribe(upstream, str(data.SAMPLE), fp16=False)
    assert result["language"] == "en"
    assert result["text"].strip() == data.reference_text(data.SAMPLE)
    for segment, sentence in zip(result["segments"], data.reference(data.SAMPLE), strict=True):
        assert abs(segment["start"] - sentence.start) < 0.4
        assert abs(segment["end"] - sentence.end) < 0.4


@pytest.mark.parametrize(("sample", "language"), [(data.SAMPLE_ES, "es"), (data.SAMPLE_DE, "de")])
def test_upstream_transcribes_and_translates_the_other_languages(
    upstream: Whisper, sample: Path, language: str
) -> None:
    result = whisper.transcribe(upstream, str(sample), fp16=False)
    assert result["language"] == language
    assert result["text"].strip() == data.reference_text(sample)
    translation = whisper.transcribe(upstream, str(sample), task="translate", fp16=False)
    assert translation["text"].strip() == " ".join(str(s.english) for s in data.reference(sample))


def test_upstream_transcribes_the_recording_that_nano_was_trained_on(upstream: Whisper) -> None:
    result = whisper.transcribe(upstream, str(data.jfk()), fp16=False)
    assert result["language"] == "en"
    assert result["text"].strip() == (
        "And so my fellow Americans ask not what your country can do for you ask what you can do for your country."
    )


def test_make_sample_gives_the_same_recordings_again(tmp_path: Path) -> None:
    sys.path.insert(0, str(data.WEIGHTS))
    try:
        import make_sample
        from recipe.espeak import Espeak, EspeakMissingError
    finally:
        sys.path.remove(str(data.WEIGHTS))
    try:
        version = Espeak().version
    except EspeakMissingError as error:
        pytest.skip(str(error))
    if version != make_sample.ESPEAK_VERSION:
        pytest.skip(f"the samples were made with espeak-ng {make_sample.ESPEAK_VERSION}, here is {version}")
    subprocess.run([sys.executable, data.WEIGHTS / "make_sample.py", "--out", tmp_path], check=True)
    for sample in data.SAMPLES:
        again = tmp_path / sample.name
        assert np.array_equal(decode(again)[0], decode(sample)[0])
        assert again.with_suffix(".txt").read_bytes() == sample.with_suffix(".txt").read_bytes()
