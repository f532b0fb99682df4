"""Threads: two models at once, one model in two, and a model that another thread loaded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from whisper.decoding import DecodingOptions
from whisper.model import Whisper

from whisper_max_plugin.audio import load_audio
from whisper_max_plugin.execution.engine import DecoderOutput, Engine

from ..compare import assert_close, assert_same_decoding, assert_same_result
from ..conftest import Pair, load_pair, random_checkpoint
from ..data import NANO, SAMPLE, SAMPLE_ES
from .fixtures import TOKENS, mel, mels, no_grad

__all__ = ["mel", "mels", "no_grad"]  # fixtures, found by name


@pytest.fixture(scope="module")
def other(nano: Pair, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Other weights of the same dimensions."""
    return load_pair(random_checkpoint(tmp_path_factory.mktemp("weights") / "other.pt", nano.max.dims, seed=1))


def in_two_threads(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run two calls at once; return their results."""
    start = threading.Barrier(2)

    def run(call: Callable[[], Any]) -> Any:
        start.wait()
        with torch.no_grad():
            return call()

    with ThreadPoolExecutor(2) as pool:
        return [future.result() for future in [pool.submit(run, call) for call in calls]]


def test_two_models_in_two_threads(nano: Pair, other: Pair, mels: Tensor) -> None:
    def passes(model: Whisper) -> list[Tensor]:
        return [model(mel[None], TOKENS) for mel in mels for _ in range(3)]

    expected = [passes(nano.torch), passes(other.torch)]
    for actual, wanted in zip(
        in_two_threads([lambda: passes(nano.max), lambda: passes(other.max)]), expected, strict=True
    ):
        for logits, wanted_logits in zip(actual, wanted, strict=True):
            assert_close(logits, wanted_logits)


def test_one_model_in_two_threads(nano: Pair, mels: Tensor) -> None:
    options = DecodingOptions(language="en", fp16=False, sample_len=12)

    def decodings(model: Whisper, windows: Sequence[int]) -> list[Any]:
        return [model.decode(mels[window], options) for window in windows]

    orders = [(0, 1, 2), (2, 1, 0)]
    expected = [decodings(nano.torch, order) for order in orders]
    actual = in_two_threads([lambda: decodings(nano.max, orders[0]), lambda: decodings(nano.max, orders[1])])
    for results, wanted in zip(actual, expected, strict=True):
        for result, wanted_result in zip(results, wanted, strict=True):
            assert_same_decoding(result, wanted_result)


@pytest.fixture(scope="module")
def recordings() -> list[tuple[Tensor, str]]:
    """Two languages, so that nothing of one thread would look right in the other."""
    samples = [torch.from_numpy(load_audio(path)[: 12 * 16000]) for path in (SAMPLE, SAMPLE_ES)]
    return list(zip(samples, ("en", "es"), strict=True))


def transcribe(model: Whisper, recording: tuple[Tensor, str], **options: Any) -> dict[str, Any]:
    samples, language = recording
    return model.transcribe(samples, language=language, fp16=False, temperature=0.0, **options)


@pytest.mark.parametrize("n_models", [1, 2])
def test_whole_transcriptions_in_two_threads(nano: Pair, recordings: list[tuple[Tensor, str]], n_models: int) -> None:
    """Upstream's model, one for both, mixes the caches of the two: it fails, or hears something else."""
    models = [nano.max, nano.max if n_models == 1 else load_pair(NANO).max]
    expected = [transcribe(nano.torch, recording) for recording in recordings]
    for _ in range(3):
        calls = [partial(transcribe, *pair) for pair in zip(models, recordings, strict=True)]
        for actual, wanted in zip(in_two_threads(calls), expected, strict=True):
            assert_same_result(actual, wanted)


def test_words_are_aligned_by_the_pass_of_their_own_thread(nano: Pair, recordings: list[tuple[Tensor, str]]) -> None:
    """Upstream reads the scores by hooks on the model's modules, which see every thread's passes."""
    expected = transcribe(nano.torch, recordings[0], word_timestamps=True)
    meddling = []

    def meddle(*_: object) -> None:
        """While upstream is aligning words, its hooks in place, let another thread try to align some."""
        if not meddling:
            meddling.append(pool.submit(transcribe, nano.max, recordings[1], word_timestamps=True))
            wait(meddling, timeout=1)

    handle = nano.max.register_forward_hook(meddle)  # called in `find_alignment` only
    try:
        with ThreadPoolExecutor(1) as pool:
            assert_same_result(transcribe(nano.max, recordings[0], word_timestamps=True), expected)
            assert_same_result(meddling[0].result(), transcribe(nano.torch, recordings[1], word_timestamps=True))
    finally:
        handle.remove()


def test_one_model_from_a_thread_that_did_not_load_it(nano: Pair, mel: Tensor, tmp_path: Path) -> None:
    fresh = load_pair(random_checkpoint(tmp_path / "fresh.pt", nano.max.dims, seed=2))
    both = in_two_threads([lambda: fresh.max(mel, TOKENS), lambda: fresh.max(mel, TOKENS)])
    for logits in both:
        assert_close(logits, fresh.torch(mel, TOKENS))


def test_hooks_of_another_threads_word_alignment_are_not_taken_for_ones_own(
    nano: Pair, mel: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With hooks of its own a decode takes every beam through the first pass."""
    features = nano.max.embed_audio(mel)[0]
    options = DecodingOptions(language="en", fp16=False, sample_len=12, beam_size=5)
    n_groups: list[int] = []  # of first passes
    decode = Engine.decode

    def noted(engine: Engine, tokens: Tensor, *arguments: Any) -> DecoderOutput:
        n_groups.append(tokens.shape[1])
        return decode(engine, tokens, *arguments)

    monkeypatch.setattr(Engine, "decode", noted)
    with ThreadPoolExecutor(1) as pool:
        with nano.max.decoder.runtime.alone():  # as in `find_alignment`
            hook = nano.max.decoder.blocks[0].cross_attn.register_forward_hook(lambda *_: None)
            decoding = pool.submit(nano.max.decode, features, options)
            wait([decoding], timeout=1)
            hook.remove()
        result = decoding.result()
    assert n_groups == [1]
    assert_same_decoding(result, nano.torch.decode(features, options))
