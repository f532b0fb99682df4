"""Programs as people write them on top of whisper's parts: each gives the same on an accelerated model.

A program is a function of the model. It runs on both, and the fixture of all tests makes sure that on ours graphs
computed every pass.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import whisper
from torch import Tensor
from whisper.decoding import DecodingOptions, DecodingResult, DecodingTask, SuppressTokens
from whisper.model import Whisper
from whisper.tokenizer import get_tokenizer

from whisper_max_plugin.audio import load_audio

from ..compare import PROBABILITY_ERROR, assert_close, assert_same_decodings
from ..conftest import Pair
from ..data import NANO, SAMPLE, SAMPLE_DE
from .fixtures import mel, mels, no_grad

__all__ = ["mel", "mels", "no_grad"]  # fixtures, found by name

N_STEPS = 20


def on_both(pair: Pair, program: Callable[[Whisper], Any]) -> tuple[Any, Any]:
    """Run a program on the accelerated model and on upstream's, from the same random numbers."""
    results = []
    for model in (pair.max, pair.torch):
        torch.manual_seed(1)
        results.append(program(model))
    return results[0], results[1]


# The example of upstream's README, and its parts


@pytest.mark.parametrize("sample", [SAMPLE, SAMPLE_DE], ids=lambda path: path.stem)
def test_the_lower_level_example_of_upstreams_readme(nano: Pair, sample: Path) -> None:
    def program(model: Whisper) -> tuple[str, dict[str, float], DecodingResult]:
        audio = whisper.pad_or_trim(load_audio(sample))
        mel = whisper.log_mel_spectrogram(audio, n_mels=model.dims.n_mels).to(model.device)
        _, probs = model.detect_language(mel)
        return max(probs, key=probs.get), probs, whisper.decode(model, mel, DecodingOptions(fp16=False))

    ours, theirs = on_both(nano, program)
    assert ours[0] == theirs[0]
    assert ours[1] == pytest.approx(theirs[1], rel=0, abs=PROBABILITY_ERROR)
    assert_same_decodings(ours[2:], theirs[2:])


def test_a_spectrogram_made_on_the_models_device_and_padded_afterwards(nano: Pair) -> None:
    def program(model: Whisper) -> Tensor:
        mel = whisper.log_mel_spectrogram(
            str(SAMPLE), model.dims.n_mels, padding=whisper.audio.N_SAMPLES, device=model.device
        )
        window = whisper.pad_or_trim(mel, whisper.audio.N_FRAMES).to(model.device)
        return model.embed_audio(window[None])

    assert_close(*on_both(nano, program))


def test_embedding_and_logits(nano: Pair, mels: Tensor) -> None:
    def program(model: Whisper) -> Tensor:
        sot = torch.tensor([get_tokenizer(model.is_multilingual).sot_sequence], device=model.device)
        return model.logits(sot.repeat(len(mels), 1), model.embed_audio(mels))

    assert_close(*on_both(nano, program))


@pytest.mark.parametrize("detect", [whisper.detect_language, Whisper.detect_language], ids=["function", "method"])
def test_languages_of_encoded_windows_with_a_tokenizer(nano: Pair, mels: Tensor, detect: Callable[..., Any]) -> None:
    def program(model: Whisper) -> tuple[Tensor, list[dict[str, float]]]:
        tokenizer = get_tokenizer(model.is_multilingual, num_languages=model.num_languages)
        return detect(model, model.embed_audio(mels), tokenizer)

    (tokens, probs), (expected_tokens, expected_probs) = on_both(nano, program)
    assert torch.equal(tokens, expected_tokens)
    for ours, theirs in zip(probs, expected_probs, strict=True):
        assert ours == pytest.approx(theirs, rel=0, abs=PROBABILITY_ERROR)


# Upstream's decoding task, used directly


class Without(DecodingTask):
    """A task that never says some words, as people forbid them: by one filter more."""

    def __init__(self, model: Whisper, options: DecodingOptions, words: Sequence[int]) -> None:
        super().__init__(model, options)
        self.logit_filters.append(SuppressTokens(words))


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"without_timestamps": True},
        {"beam_size": 3, "patience": 2.0},
        {"temperature": 0.7, "best_of": 3},
        {"prompt": "The king."},
    ],
    ids=str,
)
def test_upstreams_decoding_task(nano: Pair, mel: Tensor, kwargs: dict[str, Any]) -> None:
    options = DecodingOptions(language="en", fp16=False, sample_len=N_STEPS, **kwargs)
    assert_same_decodings(*on_both(nano, lambda model: DecodingTask(model, options).run(mel)))


def test_a_task_of_ones_own(nano: Pair, mels: Tensor) -> None:
    options = DecodingOptions(language="en", fp16=False, sample_len=N_STEPS)
    said = {token for result in nano.torch.decode(mels, options) for token in result.tokens[1:5]}
    ours, theirs = on_both(nano, lambda model: Without(model, options, sorted(said)).run(mels))
    assert_same_decodings(ours, theirs)
    assert not said & {token for result in theirs for token in result.tokens}


# A loop of one's own


def greedy(model: Whisper, mel: Tensor, cached: bool) -> list[int]:
    """Decode one window in the plainest way."""
    tokenizer = get_tokenizer(model.is_multilingual, language="en", task="transcribe")
    tokens = torch.tensor([tokenizer.sot_sequence_including_notimestamps], device=model.device)
    n_initial = tokens.shape[1]
    features = model.embed_audio(mel)
    cache, hooks = model.install_kv_cache_hooks() if cached else (None, [])
    fed = tokens
    for _ in range(N_STEPS):
        logits = model.decoder(fed, features, kv_cache=cache) if cached else model.decoder(tokens, features)
        latest = logits[:, -1].argmax(dim=-1, keepdim=True)
        tokens = torch.cat([tokens, latest], dim=-1)
        fed = latest
        if int(latest) == tokenizer.eot:
            break
    for hook in hooks:
        hook.remove()
    return tokens[0, n_initial:].tolist()


@pytest.mark.parametrize("cached", [True, False])
def test_a_greedy_loop(nano: Pair, mel: Tensor, cached: bool) -> None:
    ours, theirs = on_both(nano, lambda model: greedy(model, mel, cached))
    assert ours == theirs
    assert len(theirs) > 10


def test_two_loops_at_once(nano: Pair, mels: Tensor) -> None:
    """Upstream cannot be the oracle of both at once: the hooks of its two caches sit on the same modules."""
    sot = torch.tensor([get_tokenizer(True, language="en", task="transcribe").sot_sequence_including_notimestamps])
    features = nano.max.embed_audio(mels[:2])
    caches = [nano.max.install_kv_cache_hooks() for _ in range(2)]
    sequences = [sot, sot]
    for step in range(8):
        for index, (cache, _) in enumerate(caches):
            fed = sequences[index][:, -1:] if step else sot
            logits = nano.max.decoder(fed, features[index : index + 1], kv_cache=cache)
            sequences[index] = torch.cat([sequences[index], logits[:, -1:].argmax(dim=-1)], dim=-1)
    for _, hooks in caches:
        for hook in hooks:
            hook.remove()
    for window, sequence in zip(mels.split(1), sequences, strict=False):
        assert sequence[0, sot.shape[1] :].tolist() == greedy(nano.torch, window, cached=True)[:8]


# Processes


def run_program(source: str, folder: Path) -> Any:
    """Run a script on nano and the sample, and return the JSON that it prints."""
    script = folder / "script.py"
    script.write_text(inspect.cleandoc(source))
    command = [sys.executable, str(script), str(NANO), str(SAMPLE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


SPAWN = """
    import json, multiprocessing, sys
    import whisper
    import whisper_max_plugin.auto

    def load(path):
        global model
        model = whisper.load_model(path)

    def receive(sent):
        global model
        model = sent

    def work(audio):
        samples = whisper.load_audio(audio)[: 8 * 16000]
        result = model.transcribe(samples, language="en", fp16=False)
        return result["text"], type(model).__name__, whisper_max_plugin.status()

    if __name__ == "__main__":
        path, audio = sys.argv[1:]
        model = whisper.load_model(path)
        results = [work(audio)]
        for initializer, argument in ((load, path), (receive, model)):
            with multiprocessing.get_context("spawn").Pool(1, initializer, (argument,)) as pool:
                results += pool.map(work, [audio])
        print(json.dumps(results))
"""


def test_spawned_workers_that_load_a_model_or_are_sent_one(nano: Pair, tmp_path: Path) -> None:
    results = run_program(SPAWN, tmp_path)
    expected = nano.torch.transcribe(load_audio(SAMPLE)[: 8 * 16000], language="en", fp16=False)["text"]
    assert len(expected) > 20
    assert len(results) == 3
    for text, class_name, status in results:
        assert text == expected
        assert class_name == "MaxWhisper"
        assert status["graph_runs"]["encoder"] > 0
        assert status["graph_runs"]["step"] > 0
        assert status["fallbacks"] == {}


FORK = """
    import json, multiprocessing, sys
    import whisper
    import whisper_max_plugin.auto

    def transcribe(model):
        return model.transcribe(samples, language="en", fp16=False)["text"]

    def work(what):
        try:
            return transcribe(model if what == "sent by fork" else whisper.load_model(path, backend=what))
        except whisper_max_plugin.errors.ForkedProcessError as error:
            return str(error)

    if __name__ == "__main__":
        path, audio = sys.argv[1:]
        samples = whisper.load_audio(audio)[: 8 * 16000]
        results = {}
        with multiprocessing.get_context("fork").Pool(1) as pool:
            results["first loaded in the worker"] = pool.apply_async(work, ["max"]).get(timeout=60)
        model = whisper.load_model(path)
        results["in the parent"] = transcribe(model)
        with multiprocessing.get_context("fork").Pool(1) as pool:
            for what in ("sent by fork", "max", "torch"):
                results[what] = pool.apply_async(work, [what]).get(timeout=60)
        results["in the parent, afterwards"] = transcribe(model)
        print(json.dumps(results))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_forked_workers_are_told_to_spawn_unless_they_load_the_first_model(nano: Pair, tmp_path: Path) -> None:
    """Upstream's own model waits forever there: OpenMP's threads do not survive a fork either."""
    results = run_program(FORK, tmp_path)
    for refused in ("sent by fork", "max"):
        assert 'start the worker processes with multiprocessing.get_context("spawn")' in results.pop(refused)
    assert len(results) == 4
    expected = nano.torch.transcribe(load_audio(SAMPLE)[: 8 * 16000], language="en", fp16=False)["text"]
    assert set(results.values()) == {expected}
