"""Steps that the host does not wait for: ahead of it, and from a recording, which stands in here for a GPU's."""

from __future__ import annotations

import gc
import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
import whisper
from whisper.decoding import ApplyTimestampRules, DecodingOptions, GreedyDecoder
from whisper.tokenizer import get_tokenizer

import whisper_max_plugin
from whisper_max_plugin.doctor import comparison, parity_checks
from whisper_max_plugin.execution.engine import Engine
from whisper_max_plugin.inference import search as searching
from whisper_max_plugin.inference.model import MaxWhisper, accelerate
from whisper_max_plugin.inference.search import STEPS_AHEAD, Rules, Search

from ..compare import assert_same_result
from ..conftest import Pair
from ..data import SAMPLE_LONG
from .fixtures import ELSEWHERE, elsewhere, transcripts, upstreams_nano
from .recorder import RECORDS, Recorder, recorder

__all__ = ["elsewhere", "recorder"]  # fixtures, found by name

TOKENIZER = get_tokenizer(multilingual=True)
EOT = TOKENIZER.eot
PROMPT = [*TOKENIZER.sot_sequence]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"beam_size": 5, "word_timestamps": True},
    {"temperature": 1.5, "best_of": 3},
    {"without_timestamps": True, "initial_prompt": "The old man."},
]


@pytest.fixture
def records() -> MaxWhisper:
    """A model of which nothing has been recorded yet."""
    return accelerate(upstreams_nano(), RECORDS)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "defaults")
def test_recorded_steps(nano: Pair, records: MaxWhisper, recorder: Recorder, options: dict[str, Any]) -> None:
    before = whisper_max_plugin.status()
    expected, actual = transcripts([nano.torch, records], options)
    assert_same_result(actual, expected)
    after = whisper_max_plugin.status()
    n_steps = after["graph_runs"]["step"] - before["graph_runs"].get("step", 0)
    assert recorder.n_recorded > 0
    assert after["steps_replayed"] - before["steps_replayed"] == n_steps - recorder.n_recorded  # but the first of each


def test_windows_and_files_share_a_recording(nano: Pair, records: MaxWhisper, recorder: Recorder) -> None:
    audio = whisper.load_audio(str(SAMPLE_LONG))
    for begin in (0, 70):
        minute = audio[begin * 16000 : (begin + 60) * 16000]
        options = {"fp16": False, "language": "en", "temperature": 0.0}
        assert_same_result(records.transcribe(minute, **options), nano.torch.transcribe(minute, **options))
    assert recorder.n_recorded == 1


def test_recordings_go_with_the_model(recorder: Recorder) -> None:
    records = accelerate(upstreams_nano(), RECORDS)
    transcripts([records], {})
    assert recorder.recordings
    del records
    gc.collect()
    assert not recorder.recordings, "a recording outlived the memory that it reads"


def test_recordings_decoded_together_are_replayed(nano: Pair, records: MaxWhisper, recorder: Recorder) -> None:
    options = {"fp16": False, "language": "en", "temperature": 0.0}
    audio = whisper.load_audio(str(SAMPLE_LONG))
    audios = [audio[begin * 16000 : (begin + 20) * 16000] for begin in (0, 30, 60)]
    before = whisper_max_plugin.status()["steps_replayed"]
    for finished in whisper_max_plugin.transcribe_many(records, audios, batch_size=3, **options):
        assert_same_result(finished.result, nano.torch.transcribe(finished.audio, **options))
    assert 1 <= recorder.n_recorded <= 3  # one for each number of them that were decoded together
    assert whisper_max_plugin.status()["steps_replayed"] > before


def test_a_device_that_refuses_to_record(nano: Pair, records: MaxWhisper, caplog: pytest.LogCaptureFixture) -> None:
    """MAX's own CPU does so."""
    with caplog.at_level(logging.WARNING, "whisper_max_plugin"):
        expected, actual = transcripts([nano.torch, records], {})
    assert_same_result(actual, expected)
    assert "the device records no graphs" in caplog.text


# The host looks every few steps


def search_ahead(model: MaxWhisper, batch: int, temperature: float = 0.0) -> Search:
    rules = Rules(model.dims.n_vocab, len(PROMPT), [], [], ApplyTimestampRules(TOKENIZER, len(PROMPT), 50))
    tokens = torch.tensor([[*PROMPT, 1000]] * batch)
    return Search(model.decoder.runtime.engine(), rules, GreedyDecoder(temperature, EOT), tokens)


def pretend(search: Search, chosen: list[list[int]], logprobs: list[list[float]]) -> None:
    """Let steps have found these tokens, (n_steps, batch)."""
    position = len(search.sequences[0]) - 1
    inputs = search.inputs
    inputs.chosen.array[position : position + len(chosen)] = chosen
    inputs.chosen_logprobs.array[position : position + len(chosen)] = logprobs


def test_only_a_device_of_its_own_runs_ahead_where_its_graph_chooses(nano: Pair, elsewhere: MaxWhisper) -> None:
    assert search_ahead(elsewhere, 1).n_ahead == search_ahead(elsewhere, 1, 0.4).n_ahead == STEPS_AHEAD
    for temperature in (-1.0, math.inf, math.nan):  # upstream's to judge
        assert search_ahead(elsewhere, 1, temperature).n_ahead == 1
    assert search_ahead(nano.max, 1).n_ahead == search_ahead(nano.max, 1, 0.4).n_ahead == 1


def test_samples_are_repeated_by_the_same_seed_and_differ_by_another(elsewhere: MaxWhisper) -> None:
    options = DecodingOptions(language="en", fp16=False, temperature=2.0, best_of=3, sample_len=30)
    mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(whisper.load_audio(str(SAMPLE_LONG))))
    texts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        texts.append(elsewhere.decode(mel, options).tokens)
    assert texts[0] == texts[1] != texts[2]


def test_samples_do_not_depend_on_when_the_host_looks(elsewhere: MaxWhisper, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = []
    for n_ahead in (1, 3, STEPS_AHEAD):
        monkeypatch.setattr(searching, "STEPS_AHEAD", n_ahead)
        texts += transcripts([elsewhere], {"temperature": 1.5, "best_of": 2, "sample_len": 30})
    assert texts[0] == texts[1] == texts[2]


def test_greedy_search_leaves_torchs_random_numbers_alone(elsewhere: MaxWhisper) -> None:
    state = torch.get_rng_state()
    search_ahead(elsewhere, 2)
    assert torch.equal(torch.get_rng_state(), state)


def test_all_steps_count(elsewhere: MaxWhisper) -> None:
    search = search_ahead(elsewhere, 2)
    pretend(search, [[1, 2], [3, EOT], [5, 6]], [[-1, -2], [-3, -4], [-5, -6]])
    assert search.accept(3) == 3
    assert search.sequences == [[*PROMPT, 1000, 1, 3, 5], [*PROMPT, 1000, 2, EOT, EOT]]
    assert search.sum_logprobs.tolist() == [-9, -6]
    assert not search.completed


def test_steps_behind_the_end_do_not_count(elsewhere: MaxWhisper) -> None:
    search = search_ahead(elsewhere, 2)
    pretend(search, [[1, EOT], [EOT, 7], [8, 9]], [[-1, -2], [-3, -4], [-5, -6]])
    assert search.accept(3) == 2
    assert search.sequences == [[*PROMPT, 1000, 1, EOT], [*PROMPT, 1000, EOT, EOT]]
    assert search.sum_logprobs.tolist() == [-4, -2]
    assert search.completed


def test_a_last_step_that_is_strange_is_upstreams_to_judge(elsewhere: MaxWhisper) -> None:
    search = search_ahead(elsewhere, 1)
    pretend(search, [[1], [2], [3]], [[-1], [-1], [np.nan]])
    logits = torch.zeros(1, elsewhere.dims.n_vocab)
    logits[0, 7] = torch.nan
    search.inputs.filtered = elsewhere.decoder.runtime.device.put(logits)
    assert search.accept(3) == 3
    assert search.sequences == [[*PROMPT, 1000, 1, 2, 7]]  # as argmax says
    assert search.n_ahead == 1


@pytest.mark.parametrize("step", [0, 1])
def test_steps_from_a_strange_one_on_do_not_count_and_the_host_takes_over(elsewhere: MaxWhisper, step: int) -> None:
    search = search_ahead(elsewhere, 1)
    logprobs = np.full((3, 1), -1.0)
    logprobs[step] = np.nan
    pretend(search, [[1], [2], [3]], logprobs.tolist())
    assert search.accept(3) == step
    assert search.sequences == [[*PROMPT, 1000, 1, 2, 3][: len(PROMPT) + 1 + step]]
    assert search.n_ahead == 1


def test_the_comparison_with_torch_looks_at_steps_ahead(elsewhere: MaxWhisper, monkeypatch: pytest.MonkeyPatch) -> None:
    window = parity_checks.prepare(elsewhere, parity_checks.synthetic_audio())
    upstreams = comparison.compute_upstreams(upstreams_nano(), window)
    step = Engine.step
    with monkeypatch.context() as patch:  # before memory holds what steps ahead have chosen
        patch.setattr(Engine, "step", lambda self, inputs, n_steps=1: step(self, inputs))  # as if nothing followed
        row = comparison.compare(elsewhere, window, upstreams)[-1]
    assert (row.name, row.ok, row.note) == ("ahead", False, "steps one by one chose others")

    rows = comparison.compare(elsewhere, window, upstreams)
    assert [row.name for row in rows if row.ok][-2:] == ["words", "ahead"]


def test_nan_in_the_middle_of_steps_ahead() -> None:
    """From some position on all logits are NaN; upstream goes on with what ``argmax`` says then."""
    models = []
    for device in (None, ELSEWHERE):
        model = upstreams_nano()
        with torch.no_grad():
            model.decoder.positional_embedding[len(PROMPT) + 1 + STEPS_AHEAD + 3] = torch.nan
        models.append(model if device is None else accelerate(model, device))
    mel = torch.randn(models[0].dims.n_mels, 3000, generator=torch.Generator().manual_seed(0))
    options = DecodingOptions(fp16=False, language="en", sample_len=30, without_timestamps=True)
    expected, actual = (model.decode(mel, options) for model in models)
    assert actual.tokens == expected.tokens
