"""A device with memory of its own, without a GPU: graphs run on the CPU, and everything is copied there and back."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import pytest
import torch
import whisper
from torch import Tensor
from whisper.decoding import GreedyDecoder
from whisper.model import Whisper

from whisper_max_plugin.execution.devices import Device
from whisper_max_plugin.inference.model import MaxWhisper, accelerate
from whisper_max_plugin.inference.search import LARGEST_SEED

from ..data import NANO, SAMPLE
from ..noise import gumbel

ELSEWHERE = Device("cpu", shares_memory=False)


class HalfDevice(Device):
    """Computes in half width if it is asked to, as a GPU does, though nothing is faster by it."""

    computes_in_half = True


HALF = HalfDevice("cpu", shares_memory=False)


def upstreams_nano() -> Whisper:
    return inspect.unwrap(whisper.load_model)(str(NANO), device="cpu").eval()


@pytest.fixture(scope="module")
def elsewhere() -> MaxWhisper:
    return accelerate(upstreams_nano(), ELSEWHERE)


class TakesNoise(GreedyDecoder):
    """Upstream's decoder with the samples of a device of its own: by noise of a seed for each sequence."""

    seeds: Tensor | None = None

    def update(self, tokens: Tensor, logits: Tensor, sum_logprobs: Tensor) -> tuple[Tensor, bool]:
        if self.temperature == 0:
            return super().update(tokens, logits, sum_logprobs)
        if self.seeds is None:
            self.seeds = torch.randint(LARGEST_SEED, (len(tokens),))
        noise = torch.from_numpy(gumbel((self.seeds + tokens.shape[1]).numpy(), logits.shape[1]))
        latest = (logits + self.temperature * noise).argmax(dim=-1)
        logprobs = logits.float().log_softmax(dim=-1).gather(1, latest[:, None])[:, 0]
        has_ended = tokens[:, -1] == self.eot
        sum_logprobs += logprobs * ~has_ended
        latest[has_ended] = self.eot
        return torch.cat([tokens, latest[:, None]], dim=-1), bool((latest == self.eot).all())


def transcripts(models: Sequence[Whisper], options: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what each model makes of the sample, with the same random numbers; upstream's with `TakesNoise`."""
    results = []
    for model in models:
        torch.manual_seed(0)
        upstreams = GreedyDecoder if isinstance(model, MaxWhisper) else TakesNoise
        with patch.object(whisper.decoding, "GreedyDecoder", upstreams):
            results.append(model.transcribe(str(SAMPLE), fp16=False, language="en", **options))
    return results
