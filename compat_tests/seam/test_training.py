"""Training: what graphs return needs gradients where upstream's does, and `backward` says that there are none."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from whisper.model import Whisper

from ..conftest import Pair
from .fixtures import TOKENS, mel, mels

__all__ = ["mel", "mels"]  # fixtures, found by name


@pytest.fixture(autouse=True)
def grad() -> Iterator[None]:
    """As in a new program, whatever ran before."""
    with torch.enable_grad():
        yield


PASSES: dict[str, Callable[[Whisper, Tensor], Tensor]] = {
    "encoder": lambda model, mel: model.encoder(mel),
    "decoder": lambda model, mel: model.decoder(TOKENS[:1], torch.zeros(1, 1500, model.dims.n_audio_state)),
    "a single token": lambda model, mel: model.decoder(TOKENS[:1, :1], torch.zeros(1, 1500, model.dims.n_audio_state)),
    "both": lambda model, mel: model(mel, TOKENS[:1]),
}


@pytest.mark.parametrize("run", PASSES.values(), ids=PASSES)
def test_backward_is_an_error_where_upstream_would_train(nano: Pair, mel: Tensor, run: Callable[..., Tensor]) -> None:
    assert run(nano.torch, mel).requires_grad
    result = run(nano.max, mel)
    assert result.requires_grad
    with pytest.raises(RuntimeError, match='backend="torch" to train'):
        result.sum().backward()


@pytest.mark.parametrize("run", PASSES.values(), ids=PASSES)
@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_without_gradients_there_is_nothing_to_refuse(
    nano: Pair, mel: Tensor, run: Callable[..., Tensor], without: Callable[[], torch.no_grad]
) -> None:
    with without():
        assert not run(nano.max, mel).requires_grad


def test_a_frozen_model_trains_what_comes_behind_it(nano: Pair, mel: Tensor) -> None:
    head = torch.nn.Linear(nano.max.dims.n_audio_state, 2)
    nano.max.requires_grad_(False)
    try:
        head(nano.max.encoder(mel).mean(1)).sum().backward()
    finally:
        nano.max.requires_grad_(True)
    assert head.weight.grad is not None


def test_an_input_that_needs_gradients_needs_them_in_vain(nano: Pair, mel: Tensor) -> None:
    nano.max.requires_grad_(False)
    try:
        result = nano.max.encoder(mel.clone().requires_grad_())
    finally:
        nano.max.requires_grad_(True)
    with pytest.raises(RuntimeError, match="no backward pass"):
        result.sum().backward()
