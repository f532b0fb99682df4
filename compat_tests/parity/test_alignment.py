"""Words are found where upstream finds them: by graphs, and where those would not do, by upstream's own function."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from typing import Any

import pytest
import torch
import whisper
import whisper.timing
from torch import Tensor
from whisper.model import Whisper
from whisper.timing import WordTiming
from whisper.tokenizer import Tokenizer, get_tokenizer

from whisper_max_plugin import patches, upstream
from whisper_max_plugin.execution.engine import Engine
from whisper_max_plugin.inference import alignment
from whisper_max_plugin.report import REPORT

from ..compare import PROBABILITY_ERROR, WORD_TIME_ERROR
from ..conftest import Pair
from ..data import SAMPLE

pytestmark = pytest.mark.usefixtures("installed")

N_FRAMES = 2400  # of the window, the rest being silence
TEXT = " The old man and the boat went out to the sea in the morning."


@pytest.fixture(scope="module")
def mel() -> Tensor:
    return whisper.log_mel_spectrogram(whisper.pad_or_trim(whisper.load_audio(str(SAMPLE))))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return get_tokenizer(multilingual=True, language="en", task="transcribe")


@pytest.fixture(scope="module")
def text(tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(TEXT)


def original(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return upstream's own function, whether ours lies over it or not."""
    return patches.originals.get(function, function)


def n_aligned() -> int:
    """Return how many layers' attention graphs have filtered so far."""
    return REPORT.snapshot()["graph_runs"].get("alignment", 0)


def find(model: Whisper, *arguments: Any, **settings: Any) -> list[WordTiming]:
    return whisper.timing.find_alignment(model, *arguments, **settings)


def copies(pair: Pair) -> tuple[Whisper, Whisper]:
    """Return models to be thrown away: upstream's function leaves its hooks on them when it fails."""
    return deepcopy(pair.torch), deepcopy(pair.max)


def assert_same_words(actual: list[WordTiming], expected: list[WordTiming]) -> None:
    assert [(word.word, word.tokens) for word in actual] == [(word.word, word.tokens) for word in expected]
    for word, wanted in zip(actual, expected, strict=True):
        assert word.start == pytest.approx(wanted.start, rel=0, abs=WORD_TIME_ERROR + 1e-6)
        assert word.end == pytest.approx(wanted.end, rel=0, abs=WORD_TIME_ERROR + 1e-6)
        assert word.probability == pytest.approx(wanted.probability, rel=0, abs=PROBABILITY_ERROR, nan_ok=True)
        assert {name: type(value) for name, value in vars(word).items()} == {
            name: type(value) for name, value in vars(wanted).items()
        }


@pytest.mark.parametrize("n_frames", [8, 9, 1001, N_FRAMES, 3000, 5000])
@pytest.mark.parametrize("n_text", [1, 2, None])
def test_words_are_found_by_graphs(
    nano: Pair, mel: Tensor, tokenizer: Tokenizer, text: list[int], n_text: int | None, n_frames: int
) -> None:
    expected = find(nano.torch, tokenizer, text[:n_text], mel, n_frames)
    before = n_aligned()
    assert_same_words(find(nano.max, tokenizer, text[:n_text], mel, n_frames), expected)
    assert n_aligned() > before
    assert len(expected) > 0


@pytest.mark.parametrize("heads", [[[0, 0]], [[1, 1], [0, 1], [1, 0]]], ids=["one", "of all layers"])
def test_by_the_heads_of_the_model(
    nano: Pair, mel: Tensor, tokenizer: Tokenizer, text: list[int], heads: list[list[int]]
) -> None:
    mask = torch.zeros(nano.torch.dims.n_text_layer, nano.torch.dims.n_text_head, dtype=torch.bool)
    for layer, head in heads:
        mask[layer, head] = True
    usual = find(nano.torch, tokenizer, text, mel, N_FRAMES)
    found = []
    for model in (nano.torch, nano.max):
        original = model.alignment_heads
        model.register_buffer("alignment_heads", mask.to_sparse(), persistent=False)
        try:
            found.append(find(model, tokenizer, text, mel, N_FRAMES))
        finally:
            model.register_buffer("alignment_heads", original, persistent=False)
    assert_same_words(found[1], found[0])
    assert [word.start for word in found[0]] != [word.start for word in usual]


@pytest.mark.parametrize(
    ("mask", "error"),
    [(torch.zeros(2, 2), "non-empty TensorList"), (torch.ones(2, 3), "out of bounds"), (torch.ones(3, 2), "index")],
    ids=["no heads", "a head too many", "a layer too many"],
)
def test_heads_that_are_not_the_models_are_upstreams_error(
    nano: Pair, mel: Tensor, tokenizer: Tokenizer, text: list[int], mask: Tensor, error: str
) -> None:
    for model in copies(nano):
        model.register_buffer("alignment_heads", mask.bool().to_sparse(), persistent=False)
        with pytest.raises((RuntimeError, IndexError), match=error):
            find(model, tokenizer, text, mel, N_FRAMES)


def test_a_text_of_all_the_tokens_that_the_decoder_takes(nano: Pair, mel: Tensor, tokenizer: Tokenizer) -> None:
    longest = nano.torch.dims.n_text_ctx - len(tokenizer.sot_sequence) - 2
    text = torch.randint(1000, (longest,), generator=torch.Generator().manual_seed(0)).tolist()
    before = n_aligned()
    assert_same_words(find(nano.max, tokenizer, text, mel, N_FRAMES), find(nano.torch, tokenizer, text, mel, N_FRAMES))
    assert n_aligned() > before
    for model in copies(nano):
        with pytest.raises(RuntimeError, match="must match"):
            find(model, tokenizer, [*text, 1000], mel, N_FRAMES)


def test_upstreams_function_is_the_one_that_is_mirrored() -> None:
    """A release that finds words by other means: see what it does, then add its `digest` or what it does."""
    assert alignment.digest(original(whisper.timing.find_alignment)) in alignment.MIRRORED


# Where upstream's own function does it


@contextmanager
def hooked(module: torch.nn.Module) -> Iterator[None]:
    hook = module.register_forward_hook(lambda *_: None)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def replaced(holder: Any, name: str, value: object) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holder, name, value)
        alignment._is_mirrored.cache_clear()
        yield
    alignment._is_mirrored.cache_clear()


def undefined(self: Engine, attended: object, n_tokens: int, n_frames: int) -> Tensor:
    matrix = torch.zeros(n_tokens, n_frames)
    matrix[5, 3] = torch.nan
    return matrix


def _kept(x: Tensor, filter_width: int) -> Tensor:
    return x


@functools.wraps(original(whisper.timing.median_filter))
def _wrapped(x: Tensor, filter_width: int) -> Tensor:
    return x


def _no_source(function: object) -> str:
    raise OSError("could not get source code")


REASONS: dict[str, Callable[[Whisper], Any]] = {
    "a hook on the model": hooked,
    "a hook on the decoder": lambda model: hooked(model.decoder),
    "a hook on attention": lambda model: hooked(model.decoder.blocks[0].cross_attn),
    "another filter": lambda model: replaced(whisper.timing, "median_filter", _kept),
    "a filter that says it is upstream's": lambda model: replaced(whisper.timing, "median_filter", _wrapped),
    "another function of upstream's": lambda model: replaced(alignment, "MIRRORED", set()),
    "a source that is not at hand": lambda model: replaced(alignment, "digest", _no_source),
    "numbers that are undefined": lambda model: replaced(Engine, "align", undefined),
}


@pytest.mark.parametrize("reason", REASONS)
def test_who_looks_or_changes_something_gets_upstreams_code(
    nano: Pair, mel: Tensor, tokenizer: Tokenizer, text: list[int], reason: str
) -> None:
    before, fallbacks = n_aligned(), REPORT.snapshot()["fallbacks"]
    with REASONS[reason](nano.max):
        actual = find(nano.max, tokenizer, text, mel, N_FRAMES)
        expected = find(nano.torch, tokenizer, text, mel, N_FRAMES)
    assert_same_words(actual, expected)
    assert n_aligned() == before
    assert REPORT.snapshot()["fallbacks"] == fallbacks


def test_a_wrapper_of_upstreams_function_is_called(
    nano: Pair, mel: Tensor, tokenizer: Tokenizer, text: list[int]
) -> None:
    called = []
    upstreams = original(whisper.timing.find_alignment)

    @functools.wraps(upstreams)
    def wrapper(*arguments: Any, **settings: Any) -> list[WordTiming]:
        called.append(arguments)
        return upstreams(*arguments, **settings)

    actual = upstream._make_find_alignment(wrapper)(nano.max, tokenizer, text, mel, N_FRAMES)
    assert_same_words(actual, find(nano.torch, tokenizer, text, mel, N_FRAMES))
    assert len(called) == 1


@pytest.mark.parametrize("settings", [{"medfilt_width": 5}, {"qk_scale": 0.5}], ids=str)
def test_other_settings_than_upstreams_are_upstreams_to_follow(
    nano: Pair, mel: Tensor, tokenizer: Tokenizer, text: list[int], settings: dict[str, Any]
) -> None:
    before = n_aligned()
    expected = find(nano.torch, tokenizer, text, mel, N_FRAMES, **settings)
    assert_same_words(find(nano.max, tokenizer, text, mel, N_FRAMES, **settings), expected)
    assert n_aligned() == before


@pytest.mark.parametrize("n_frames", [2, 6, 7])
def test_a_window_too_short_to_be_filtered(
    nano: Pair, mel: Tensor, tokenizer: Tokenizer, text: list[int], n_frames: int
) -> None:
    before = n_aligned()
    expected = find(nano.torch, tokenizer, text[:1], mel, n_frames)
    assert_same_words(find(nano.max, tokenizer, text[:1], mel, n_frames), expected)
    assert n_aligned() == before


def test_no_text_has_no_words(nano: Pair, mel: Tensor, tokenizer: Tokenizer) -> None:
    assert find(nano.max, tokenizer, [], mel, N_FRAMES) == []


def test_a_token_that_is_no_text_is_upstreams_error(
    nano: Pair, mel: Tensor, tokenizer: Tokenizer, text: list[int]
) -> None:
    for model in copies(nano):
        with pytest.raises(IndexError, match="out of bounds"):
            find(model, tokenizer, [*text, tokenizer.timestamp_begin], mel, N_FRAMES)


def test_a_tokenizer_of_another_vocabulary_is_upstreams_error(
    nano: Pair, mel: Tensor, tokenizer: Tokenizer, text: list[int]
) -> None:
    other = copy(tokenizer)
    other.sot_sequence = (nano.torch.dims.n_vocab,)
    for model in copies(nano):
        with pytest.raises(IndexError, match="out of range"):
            find(model, other, text, mel, N_FRAMES)
