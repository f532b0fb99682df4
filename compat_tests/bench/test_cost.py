"""What `whisper-max bench` says a stage must move and compute, against values worked out by hand."""

from __future__ import annotations

import pytest

from whisper_max_plugin.bench import cost, stages
from whisper_max_plugin.bench.cost import Cost, Storage
from whisper_max_plugin.checkpoints.sizes import OFFICIAL_DIMS

TINY = OFFICIAL_DIMS["tiny"]
N_TEXT = 4 * 14 * 384 * 384  # values in the decoder's matrices: four of self-attention, two of cross-attention, the MLP
N_VOCABULARY = 51865 * 384
CROSS_KV = 2 * 4 * 1500 * 384  # keys and values of four layers


def test_a_step_of_tiny_reads_75_mb_with_float16_weights():
    step = cost.of_step(TINY, Storage(step_weights=2), n_before=0, n_beams=1)
    weights, cross_kv, self_kv, logits = 56_347_392, 18_432_000, 4 * 2 * 4 * 384, 4 * 51865
    assert weights == 2 * (N_TEXT + N_VOCABULARY)
    assert cross_kv == 4 * CROSS_KV
    assert step.n_bytes == weights + cross_kv + self_kv + logits


def test_beams_read_weights_and_cross_attention_once():
    one, five = (cost.of_step(TINY, Storage(), n_before=100, n_beams=n) for n in (1, 5))
    assert five.flops == 5 * one.flops
    assert five.n_bytes - one.n_bytes == 4 * 4 * (2 * 4 * 101 * 384 + 51865)  # keys and values of the beam; logits


def test_a_pass_of_one_token_is_a_step():
    storage = Storage()
    step, one = cost.of_step(TINY, storage, 0, 1), cost.of_pass(TINY, storage, n_tokens=1, n_rows=1)
    assert one.flops == step.flops
    assert one.n_bytes == step.n_bytes + 4 * 384  # the token's embedding


def test_the_encoder_of_tiny():
    conv1, conv2 = 2 * 3000 * 3 * 80 * 384, 2 * 1500 * 3 * 384 * 384
    layer = 2 * 1500 * 12 * 384 * 384 + 4 * 1500 * 1500 * 384
    weights = 3 * 80 * 384 + 3 * 384 * 384 + 4 * 12 * 384 * 384
    assert cost.of_encoder(TINY, Storage()) == Cost(4 * (weights + 80 * 3000 + 1500 * 384), conv1 + conv2 + 4 * layer)


def test_the_first_pass_of_a_window_includes_its_cross_attention():
    storage = Storage()
    n_prompt = 1 + stages.PROMPT_LENGTH + 4
    first = stages.cost_of("prefill", TINY, storage, n_tokens=50, n_start=4)
    assert first == cost.of_cross_kv(TINY, storage) + cost.of_pass(TINY, storage, n_prompt, n_rows=2)


def test_steps_are_averaged_over_the_tokens_before_them():
    mean = stages.cost_of("step", TINY, Storage(), n_tokens=3, n_start=4)  # steps behind 5, 6 and 7 tokens
    each = [cost.of_step(TINY, Storage(), n_before, 1) for n_before in (5, 6, 7)]
    assert mean.n_bytes == sum(step.n_bytes for step in each) / 3
    assert mean.flops == sum(step.flops for step in each) / 3


@pytest.mark.parametrize("stage", stages.TITLES)
def test_fewer_bytes_for_a_value_never_cost_more(stage):
    costs = [stages.cost_of(stage, TINY, Storage(n, n, n), n_tokens=50, n_start=4) for n in (1, 2, 4)]
    assert costs[0].n_bytes <= costs[1].n_bytes <= costs[2].n_bytes
    assert len({one.flops for one in costs}) == 1
    assert all(one.n_bytes > 0 and one.flops > 0 for one in costs)


def test_the_longer_of_moving_and_computing_is_the_limit():
    assert Cost(n_bytes=100, flops=10).seconds(bytes_per_second=10, flops_per_second=10) == 10
    assert Cost(n_bytes=10, flops=100).seconds(bytes_per_second=10, flops_per_second=10) == 10
