"""The median filter of word timestamps is upstream's, bit by bit."""

from __future__ import annotations

import inspect

import pytest
import torch
import whisper.timing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import whisper_max_plugin
from whisper_max_plugin import median
from whisper_max_plugin.median import median_filter

upstreams = inspect.unwrap(whisper.timing.median_filter)


def refuse(*_: object) -> Tensor:
    pytest.fail("upstream's function was called")


@settings(max_examples=100, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=3),
    n=st.integers(8, 300),
    width=st.sampled_from([1, 3, 5, 7, 9, 15]),
    n_values=st.sampled_from([2, 10, 10**6]),
    block=st.sampled_from([1, 700, median.BLOCK]),
)
def test_any_shape_and_width(shape: list[int], n: int, width: int, n_values: int, block: int) -> None:
    x = torch.randint(n_values, (*shape, n), generator=torch.Generator().manual_seed(n)) / 7
    x[..., 0, n // 2] = torch.inf
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(median, "BLOCK", block)
        actual = median_filter(refuse, x, width)
    assert torch.equal(actual, upstreams(x, width))


def test_what_others_still_look_at_stays_as_it_is() -> None:
    x = torch.randn(2, 3, 40).transpose(1, 2).contiguous().transpose(1, 2)  # as `find_alignment` may hand it over
    before = x.clone()
    assert torch.equal(median_filter(refuse, x, 7), upstreams(x, 7))
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("x", "width"),
    [
        (torch.randn(2, 3, 3), 7),
        (torch.randn(9), 7),
        (torch.randn(2, 9), 7),
        (torch.randn(1, 2, 3, 9), 6),
        (torch.randn(1, 2, 9), 0),
        (torch.randn(1, 2, 9), 7.0),
        (torch.randn(1, 2, 9).double(), 7),
        (torch.randn(1, 2, 9).half(), 7),
        (torch.randn(1, 2, 9).requires_grad_(), 7),
        (torch.tensor([[[1.0, torch.nan, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]]]), 7),
        (torch.empty(1, 2, 9, device="meta"), 7),
    ],
    ids=["short", "1D", "2D", "even", "zero", "no int", "double", "half", "gradients", "NaN", "another device"],
)
def test_everything_else_is_left_to_upstream(x: Tensor, width: int) -> None:
    calls: list[object] = []

    def original(*arguments: object) -> Tensor:
        calls.append(arguments)
        return x

    assert median_filter(original, x, width) is x
    assert calls == [(x, width)]


def test_it_is_upstreams_function_that_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    x, calls = torch.randn(1, 2, 50), []
    monkeypatch.setattr(median, "median_filter", lambda *arguments: calls.append(arguments))
    whisper_max_plugin.install()
    whisper.timing.median_filter(x, 7)
    assert calls == [(upstreams, x, 7)]
    whisper_max_plugin.uninstall()
    assert whisper.timing.median_filter is upstreams


def test_upstreams_errors() -> None:
    whisper_max_plugin.install()
    with pytest.raises(AssertionError, match="should be an odd number"):
        whisper.timing.median_filter(torch.zeros(1, 2, 9), 6)
