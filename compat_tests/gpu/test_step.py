"""Steps of decoding on a GPU, by the graph and the kernels that one would run, compute what upstream does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from max.dtype import DType
from torch import Tensor
from whisper.model import ModelDimensions, TextDecoder

from whisper_max_plugin.execution.weights import graph_weights
from whisper_max_plugin.graphs import Types

from ..noise import assert_samples
from .fixtures import NOISE, Kernels, array, kernels, seeded
from .step_graph import HEAD_DIM, StepGraph

__all__ = ["kernels", "seeded"]  # fixtures, found by name

N_STATE, N_HEAD, N_LAYER, N_VOCAB, N_TEXT_CTX, N_AUDIO_CTX = 128, 2, 2, 2100, 12, 300
DIMS = ModelDimensions(80, N_AUDIO_CTX, N_STATE, N_HEAD, 1, N_VOCAB, N_TEXT_CTX, N_STATE, N_HEAD, N_LAYER)
N_STEPS = 2  # of which the second takes what the first has left
TYPES = {
    "float32": Types(DType.float16),
    "float16": Types(*[DType.float16] * 4),
    "bfloat16": Types(*[DType.bfloat16] * 4),
}


def random_decoder(stored: torch.dtype) -> TextDecoder:
    """Return a decoder of upstream's with random weights, whose matrices are exact in the type `stored`."""
    decoder = TextDecoder(N_VOCAB, N_TEXT_CTX, N_STATE, N_HEAD, N_LAYER).eval().requires_grad_(False)
    for name, parameter in decoder.named_parameters():
        if parameter.ndim == 1:
            parameter += 0.3 * torch.randn_like(parameter)  # norms and biases that do something
        elif name != "positional_embedding":
            parameter.copy_(parameter.to(stored))
        else:
            parameter.copy_(torch.randn_like(parameter))
    return decoder


class Window:
    """An audio, what is said so far, and what a cache holds of that: all but the latest token."""

    def __init__(self, decoder: TextDecoder, tokens: Tensor, of_kv: torch.dtype) -> None:
        self.decoder, self.tokens = decoder, tokens
        self.xa = torch.randn(1, N_AUDIO_CTX, N_STATE)
        n_group, length = tokens.shape
        self.kept: list[Tensor] = []
        x = decoder.token_embedding(tokens) + decoder.positional_embedding[:length]
        for block in decoder.blocks:
            h = block.attn_ln(x)
            for projection in (block.attn.key, block.attn.value):
                cache = torch.full((N_TEXT_CTX, n_group, N_STATE), torch.nan)
                cache[: length - 1] = projection(h).transpose(0, 1)[:-1]
                self.kept.append(cache.to(of_kv))
            for projection in (block.cross_attn.key, block.cross_attn.value):
                heads = projection(self.xa).view(N_AUDIO_CTX, N_HEAD, HEAD_DIM).transpose(0, 1)
                self.kept.append(heads.contiguous().to(of_kv))
            x = block(x, self.xa, mask=decoder.mask)

    @property
    def memory(self) -> list[int | np.ndarray]:
        return [self.tokens.shape[0], *map(array, self.kept)]

    def logits(self) -> Tensor:
        """Return upstream's logits behind the latest tokens."""
        return self.decoder(self.tokens, self.xa.expand(len(self.tokens), -1, -1))[:, -1]


@pytest.mark.parametrize(
    ("precision", "n_audio", "n_group", "temperature"),
    [("float32", 1, 1, 0.0), ("float32", 1, 2, 1.0), *((precision, 2, 2, 0.0) for precision in TYPES)],
)
@torch.no_grad()
def test_steps_feed_themselves(
    kernels: Kernels, precision: str, n_audio: int, n_group: int, temperature: float
) -> None:
    types, batch = TYPES[precision], n_audio * n_group
    stored, of_kv = (getattr(torch, each.name) for each in (types.stored, types.cache))
    decoder = random_decoder(stored)
    lengths = [3 + 2 * audio for audio in range(n_audio)]  # windows are at positions of their own
    windows = [Window(decoder, torch.randint(N_VOCAB, (n_group, length)), of_kv) for length in lengths]
    state = {f"decoder.{name}": tensor for name, tensor in decoder.state_dict().items()}
    step = StepGraph(kernels, DIMS, types, graph_weights(state, types, kernels=True))

    tokens = torch.stack([window.tokens[:, -1] for window in windows])
    positions = torch.tensor(lengths).repeat_interleave(n_group) - 1
    ids, logprobs, logits = torch.full((batch, 1), -1), torch.zeros(batch, 1), torch.zeros(batch, N_VOCAB)
    ranges, stamps = torch.tensor([[0, N_VOCAB, N_VOCAB, N_VOCAB]] * batch), torch.full((batch,), -1)
    temperatures, seeds = torch.full((batch,), temperature), torch.randint(2**62, (batch,))
    chosen, chosen_logprobs = torch.full((N_TEXT_CTX, batch), -1), torch.zeros(N_TEXT_CTX, batch)
    suppressed, rules = torch.tensor([7]), torch.tensor([-1, N_VOCAB, N_VOCAB])
    holders = torch.arange(n_group, dtype=torch.int32).repeat(n_audio)[:, None].repeat(1, N_TEXT_CTX)
    written = [tokens, positions, ids, logprobs, logits, ranges, stamps, seeds, chosen, chosen_logprobs]
    memory = [window.memory for window in windows]
    for n_done in range(N_STEPS):
        expected = torch.cat([window.logits() for window in windows])
        expected[:, suppressed] = -torch.inf
        begun = seeds.clone()
        step.run([*written, suppressed, temperatures, rules, holders, memory])
        largest = expected.abs().where(expected.isfinite(), torch.zeros(())).max()
        torch.testing.assert_close(logits / largest, expected / largest, rtol=0, atol=4 * NOISE[precision])
        latest = ids[:, 0].clone()
        assert_samples(latest, logits, temperature, begun)  # at 0 the best
        torch.testing.assert_close(logprobs, logits.log_softmax(dim=1).gather(1, ids))
        assert torch.equal(tokens.flatten(), latest)
        assert torch.equal(seeds, begun + 1)
        for audio, window in enumerate(windows):
            rows = slice(audio * n_group, (audio + 1) * n_group)
            at = lengths[audio] - 1 + n_done
            assert torch.equal(chosen[at, rows], latest[rows])
            assert positions[rows].tolist() == [at + 1] * n_group
            window.tokens = torch.cat([window.tokens, latest[rows, None]], dim=1)
    assert step.n_operations == N_STEPS * (9 * N_LAYER + 5)
