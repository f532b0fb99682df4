"""Between two passes: what the graph ``search`` and `Search` leave and choose is what upstream's code does."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from max.driver import Buffer
from torch import Tensor
from whisper.decoding import (
    ApplyTimestampRules,
    BeamSearchDecoder,
    DecodingOptions,
    GreedyDecoder,
    Inference,
    LogitFilter,
    SuppressBlank,
    SuppressTokens,
    TokenDecoder,
)
from whisper.tokenizer import get_tokenizer

from whisper_max_plugin.execution.engine import Engine
from whisper_max_plugin.inference.search import Rules, Search

from ..compare import assert_close
from ..conftest import Pair
from ..noise import assert_samples

TOKENIZER = get_tokenizer(multilingual=True)
EOT, BEGIN = TOKENIZER.eot, TOKENIZER.timestamp_begin
PROMPT = [*TOKENIZER.sot_sequence]
N_VOCAB = 51865
STEPS = 12


@pytest.fixture(scope="module")
def engine(nano: Pair) -> Engine:
    """The graph ``search`` has no weights, so any model's will do."""
    return nano.max.decoder.runtime.engine()


def upstreams_filters(max_initial: int | None = 50, suppressed: tuple[int, ...] = ()) -> list[LogitFilter]:
    return [
        SuppressBlank(TOKENIZER, len(PROMPT)),
        SuppressTokens([*TOKENIZER.non_speech_tokens, TOKENIZER.sot, TOKENIZER.no_speech, *suppressed]),
        ApplyTimestampRules(TOKENIZER, len(PROMPT), max_initial),
    ]


def rules(filters: list[LogitFilter]) -> Rules:
    translated = Rules.of(filters, N_VOCAB, len(PROMPT))
    assert translated is not None
    return translated


def filtered(filters: list[LogitFilter], logits: Tensor, tokens: Tensor) -> Tensor:
    for logit_filter in filters:
        logit_filter.apply(logits, tokens)
    return logits


class Reorders(Inference):
    """Notes how beams were reordered."""

    def __init__(self) -> None:
        self.reorders: list[list[int]] = []

    def rearrange_kv_cache(self, source_indices: list[int]) -> None:
        self.reorders.append(source_indices)


def beam_decoder(patience: float | None = None) -> BeamSearchDecoder:
    return BeamSearchDecoder(5, EOT, Reorders(), patience)


@settings(max_examples=150, deadline=None)
@given(
    sampled=st.lists(st.one_of(st.integers(0, EOT), st.integers(BEGIN, N_VOCAB - 1)), max_size=8),
    seed=st.integers(0, 2**31),
    timestamps_likelier_by=st.sampled_from([-20.0, -6.0, -3.0, 0.0, 8.0]),
    max_initial=st.sampled_from([None, 0, 50, 1500, 9999]),
)
@example(sampled=[N_VOCAB - 1], seed=0, timestamps_likelier_by=0.0, max_initial=50)  # the last timestamp there is
@example(sampled=[5, N_VOCAB - 1], seed=0, timestamps_likelier_by=0.0, max_initial=50)
@example(sampled=[BEGIN, BEGIN], seed=0, timestamps_likelier_by=8.0, max_initial=50)
def test_candidates(
    engine: Engine, sampled: list[int], seed: int, timestamps_likelier_by: float, max_initial: int | None
) -> None:
    filters = upstreams_filters(max_initial)
    logits = 4 * torch.randn(2, N_VOCAB, generator=torch.Generator().manual_seed(seed))
    logits[:, BEGIN:] += timestamps_likelier_by
    tokens = torch.tensor([PROMPT + sampled] * 2)
    search = Search(engine, rules(filters), beam_decoder(), tokens)
    left = logits.clone()
    search.find_candidates(Buffer.from_dlpack(left))

    expected_left = filtered(filters, logits, tokens)
    assert torch.equal(left, expected_left), "other tokens are suppressed"
    expected, expected_ids = expected_left.log_softmax(dim=-1).topk(7)
    ids, logprobs = torch.from_numpy(search.inputs.ids.array), torch.from_numpy(search.inputs.logprobs.array)
    possible = expected.isfinite()
    assert torch.equal(ids[possible], expected_ids[possible])
    torch.testing.assert_close(logprobs[possible], expected[possible], rtol=1e-5, atol=1e-5)
    assert not logprobs[~possible].isfinite().any()


@pytest.mark.parametrize("timestamps_likelier_by", [-20.0, 0.0, 8.0])
@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_samples_by_noise(engine: Engine, timestamps_likelier_by: float, temperature: float) -> None:
    """On the CPU samples are torch's; devices of their own are given a temperature."""
    filters = upstreams_filters()
    logits = 4 * torch.randn(3, N_VOCAB)
    logits[:, BEGIN:] += timestamps_likelier_by
    tokens = torch.tensor([[*PROMPT, BEGIN, 1000]] * 3)
    search = Search(engine, rules(filters), GreedyDecoder(0.0, EOT), tokens)
    inputs, seeds = search.write_allowed(), torch.randint(2**62, (3,))
    inputs.temperatures.array[:], inputs.seeds.array[:] = temperature, seeds
    left = logits.clone()
    engine.search(Buffer.from_dlpack(left), inputs, inputs.suppressed)
    inputs.pull()

    assert torch.equal(left, filtered(filters, logits, tokens))
    ids = torch.from_numpy(inputs.ids.array)
    assert_samples(ids[:, 0], left, temperature, seeds)
    assert_close(torch.from_numpy(inputs.logprobs.array), left.log_softmax(dim=-1).gather(1, ids))


def test_without_timestamps_and_filters_every_token_is_a_candidate(engine: Engine) -> None:
    logits = torch.randn(1, N_VOCAB)
    search = Search(engine, rules([]), beam_decoder(), torch.tensor([PROMPT]))
    search.find_candidates(Buffer.from_dlpack(logits.clone()))
    expected, expected_ids = logits.log_softmax(dim=-1).topk(7)
    assert torch.equal(torch.from_numpy(search.inputs.ids.array), expected_ids)
    assert_close(torch.from_numpy(search.inputs.logprobs.array), expected)


def run_both(engine: Engine, ours: TokenDecoder, theirs: TokenDecoder, rows: Sequence[Tensor]) -> None:
    """Extend sequences by both codes, with the same logits at each step, and compare what they hold."""
    batch = rows[0].shape[0]
    filters = upstreams_filters()
    tokens, sums = torch.tensor([PROMPT] * batch), torch.zeros(batch)
    search = Search(engine, rules(filters), ours, tokens)
    for logits in rows:
        search.update(Buffer.from_dlpack(logits.clone()))
        tokens, expected_completed = theirs.update(tokens, filtered(filters, logits.clone(), tokens), sums)
        assert torch.equal(search.tokens, tokens)
        torch.testing.assert_close(search.sum_logprobs, sums, equal_nan=True)
        assert search.completed == bool(expected_completed)
    if isinstance(ours, BeamSearchDecoder):
        assert ours.inference.reorders == theirs.inference.reorders
        for finished, expected in zip(ours.finished_sequences, theirs.finished_sequences, strict=True):
            assert list(finished) == list(expected)
            assert list(finished.values()) == pytest.approx(list(expected.values()), rel=1e-5)


@pytest.fixture
def steps() -> list[Tensor]:
    """Logits of ten sequences, in which the end of text becomes likelier and likelier."""
    generator = torch.Generator().manual_seed(0)
    logits = [3 * torch.randn(10, N_VOCAB, generator=generator) for _ in range(STEPS)]
    logits[0][:] = logits[0][:1]  # at first all beams are equal
    for step, row in enumerate(logits):
        row[:, EOT] = step + 4
    return logits


def test_greedy_search_of_a_batch(engine: Engine, steps: list[Tensor]) -> None:
    run_both(engine, GreedyDecoder(0.0, EOT), GreedyDecoder(0.0, EOT), steps)


@pytest.mark.parametrize("patience", [None, 2.0, 0.4])
@pytest.mark.parametrize("n_audio", [1, 2])
def test_beam_search(engine: Engine, steps: list[Tensor], n_audio: int, patience: float | None) -> None:
    run_both(engine, beam_decoder(patience), beam_decoder(patience), [row[: 5 * n_audio] for row in steps])


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_beams_where_fewer_tokens_are_left_than_candidates(engine: Engine, steps: list[Tensor]) -> None:
    rows = [row[:5] for row in steps[:3]]
    left = [1000, 1001, 1002]
    rows[1] = torch.full_like(rows[1], -torch.inf)
    rows[1][:, left] = steps[1][:5, left]
    run_both(engine, beam_decoder(), beam_decoder(), rows)


def test_equally_good_tokens_are_ranked_as_torch_does(engine: Engine, steps: list[Tensor]) -> None:
    for row in steps:
        row[:, 1000:30000] = row.max()  # as in models some of whose tokens were never trained
    run_both(engine, beam_decoder(), beam_decoder(), [row[:5] for row in steps])


def test_sampling_takes_torchs_numbers(engine: Engine, steps: list[Tensor]) -> None:
    class Seeded(GreedyDecoder):
        def update(self, tokens: Tensor, logits: Tensor, sum_logprobs: Tensor) -> tuple[Tensor, bool]:
            torch.manual_seed(tokens.shape[1])
            return super().update(tokens, logits, sum_logprobs)

    run_both(engine, Seeded(0.7, EOT), Seeded(0.7, EOT), steps)


def test_nan_is_upstreams_business(engine: Engine, steps: list[Tensor]) -> None:
    steps[3][1, 7] = torch.nan
    run_both(engine, GreedyDecoder(0.0, EOT), GreedyDecoder(0.0, EOT), steps)


# What is not upstream's own is not translated


class NoVowels(LogitFilter):
    """Somebody's filter."""

    def apply(self, logits: Tensor, tokens: Tensor) -> None:
        logits[:, [TOKENIZER.encode(vowel)[0] for vowel in "aeiou"]] = -torch.inf


class Milder(SuppressTokens):
    """Somebody's version of an upstream filter."""

    def apply(self, logits: Tensor, tokens: Tensor) -> None:
        logits[:, self.suppress_tokens] -= 1.0


@pytest.mark.parametrize("foreign", [NoVowels(), Milder([5])])
def test_foreign_filters(foreign: LogitFilter) -> None:
    assert Rules.of([*upstreams_filters(), foreign], N_VOCAB, len(PROMPT)) is None
    assert Rules.of([foreign, *upstreams_filters()], N_VOCAB, len(PROMPT)) is None


def test_a_token_that_is_not_in_the_vocabulary() -> None:
    assert Rules.of(upstreams_filters(suppressed=(N_VOCAB,)), N_VOCAB, len(PROMPT)) is None


def patched_apply(self: SuppressTokens, logits: Tensor, tokens: Tensor) -> None:
    logits[:, : EOT // 2] = -torch.inf


@functools.wraps(SuppressTokens.apply)
def wrapped_apply(self: SuppressTokens, logits: Tensor, tokens: Tensor) -> None:
    patched_apply(self, logits, tokens)


@pytest.mark.parametrize("apply", [patched_apply, wrapped_apply])
def test_a_patched_filter_is_obeyed(nano: Pair, monkeypatch: pytest.MonkeyPatch, apply: Callable[..., None]) -> None:
    monkeypatch.setattr(SuppressTokens, "apply", apply)
    mel = torch.randn(nano.max.dims.n_mels, 3000, generator=torch.Generator().manual_seed(0))
    options = DecodingOptions(fp16=False, language="en", sample_len=10)
    actual, expected = nano.max.decode(mel, options), nano.torch.decode(mel, options)
    assert actual.tokens == expected.tokens
    assert all(token >= EOT // 2 for token in actual.tokens)


def test_a_patched_decoder_is_obeyed(nano: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def second_best(self: GreedyDecoder, tokens: Tensor, logits: Tensor, sums: Tensor) -> tuple[Tensor, bool]:
        chosen = logits.topk(2).indices[:, 1:]
        return torch.cat([tokens, chosen], dim=-1), False

    monkeypatch.setattr(GreedyDecoder, "update", second_best)
    mel = torch.randn(nano.max.dims.n_mels, 3000, generator=torch.Generator().manual_seed(0))
    options = DecodingOptions(fp16=False, language="en", sample_len=10)
    assert nano.max.decode(mel, options).tokens == nano.torch.decode(mel, options).tokens
