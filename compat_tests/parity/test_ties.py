"""The proof of a tie is no excuse for a real difference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import whisper
import whisper.timing
from torch import Tensor
from whisper.decoding import MaximumLikelihoodRanker

from ..conftest import Pair
from ..data import SAMPLE_ES
from .ties import TIE, price_of_the_other_choice

SEARCHES: list[dict[str, Any]] = [{}, {"beam_size": 3}, {"temperature": 0.8}, {"temperature": 0.8, "best_of": 2}]


@pytest.fixture(scope="module")
def mel() -> Tensor:
    return whisper.log_mel_spectrogram(whisper.pad_or_trim(whisper.load_audio(str(SAMPLE_ES))))


def decode(pair: Pair, mel: Tensor, **options: Any) -> whisper.DecodingResult:
    torch.manual_seed(0)
    return pair.torch.decode(mel, whisper.DecodingOptions(fp16=False, language="es", sample_len=12, **options))


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_the_same_choices_have_no_price(nano: Pair, mel: Tensor, search: dict[str, Any]) -> None:
    assert price_of_the_other_choice(lambda: decode(nano, mel, **search), lambda: decode(nano, mel, **search)) is None


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_a_worse_choice_has_its_price(nano: Pair, mel: Tensor, search: dict[str, Any]) -> None:
    best_word = next(token for token in decode(nano, mel, **search).tokens if token < 50257)
    price = price_of_the_other_choice(
        lambda: decode(nano, mel, suppress_tokens=[best_word], **search), lambda: decode(nano, mel, **search)
    )
    assert price is not None
    assert price > 1000 * TIE


def test_a_draw_from_other_numbers_has_its_price(nano: Pair, mel: Tensor) -> None:
    def seeded(seed: int) -> whisper.DecodingResult:
        torch.manual_seed(seed)
        return nano.torch.decode(
            mel, whisper.DecodingOptions(fp16=False, language="es", sample_len=12, temperature=2.0)
        )

    price = price_of_the_other_choice(lambda: seeded(1), lambda: seeded(2))
    assert price is not None
    assert price > 1000 * TIE


@pytest.mark.parametrize(("sums", "price"), [([-4.0, -4.0 - 1e-6], 0.0), ([-4.0, -5.0], 0.5)])
def test_the_best_of_the_finished_sequences(sums: list[float], price: float) -> None:
    """Two sequences of two tokens, of which the second call prefers the first one."""
    sequences = [torch.tensor([1, 2]), torch.tensor([1, 3])]
    ranker = MaximumLikelihoodRanker(None)
    found = price_of_the_other_choice(
        lambda: ranker.rank([sequences], [sums[::-1]]), lambda: ranker.rank([sequences], [sums])
    )
    assert found == pytest.approx(price, abs=TIE)


def test_equally_good_paths_have_no_price_and_others_have() -> None:
    flat, steep = torch.zeros(3, 20), -torch.eye(20)[[2, 9, 15]]
    bent = flat.clone()
    bent[0, :12] = -1e-9
    assert price_of_the_other_choice(lambda: whisper.timing.dtw(bent), lambda: whisper.timing.dtw(flat)) == 0
    price = price_of_the_other_choice(lambda: whisper.timing.dtw(bent), lambda: whisper.timing.dtw(steep))
    assert price is not None
    assert price >= 1


def test_another_input_is_no_tie(nano: Pair, mel: Tensor) -> None:
    with pytest.raises(AssertionError, match="between two decisions"):
        price_of_the_other_choice(
            lambda: decode(nano, mel, prompt="Well."), lambda: decode(nano, mel, prompt="Well then.")
        )
