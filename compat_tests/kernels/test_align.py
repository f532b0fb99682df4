"""The operations behind words' times compute what upstream's ``find_alignment`` does with torch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from max.driver import Buffer
from max.engine import Model
from max.graph import DeviceRef, Module
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from whisper_max_plugin.checkpoints.sizes import OFFICIAL_DIMS
from whisper_max_plugin.execution.session import session
from whisper_max_plugin.graphs import kernel_library
from whisper_max_plugin.graphs.alignment import build_alignment, build_token_probs

from ..aligned import filtered, token_probs
from ..compare import assert_close

DIMS = replace(OFFICIAL_DIMS["tiny"], n_text_head=3, n_audio_ctx=200, n_vocab=1000)
N_FRAMES = [4, 5, 17, 63, 64, 65, 199, 200]


@pytest.fixture(scope="module")
def graphs() -> dict[str, Model]:
    module, library, cpu = Module(), kernel_library(), DeviceRef.CPU()
    build_alignment(module, DIMS, cpu, library)
    build_token_probs(module, DIMS, cpu, library)
    return session().init_all(session().compile(module, custom_extensions=library.library_paths()))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def align(graphs: dict[str, Model], matrix: Tensor, scores: Tensor, heads: list[int]) -> Tensor:
    """Return the matrix with what the heads add to it."""
    result = matrix.clone()
    graphs["alignment"].execute(*(Buffer.from_dlpack(x) for x in (result, scores, torch.tensor(heads))))
    return result


@pytest.mark.parametrize("n_tokens", [2, 54])
@pytest.mark.parametrize("n_frames", N_FRAMES)
def test_filtered_attention(graphs: dict[str, Model], n_tokens: int, n_frames: int) -> None:
    scores = 3 * torch.randn(1, 3, n_tokens, 200)
    matrix = torch.randn(n_tokens, n_frames)
    expected = matrix + filtered(scores, [2, 0], n_frames).sum(dim=0)
    assert_close(align(graphs, matrix, scores, [2, 0]), expected.float())


def test_no_other_head_adds_to_it(graphs: dict[str, Model]) -> None:
    scores = torch.randn(1, 3, 20, 200)
    before = align(graphs, torch.zeros(20, 150), scores, [1])
    scores[:, [0, 2]] += 1
    scores[..., 150:] += 1
    assert torch.equal(align(graphs, torch.zeros(20, 150), scores, [1]), before)


def test_scores_of_any_size(graphs: dict[str, Model]) -> None:
    scores = 3 * torch.randn(1, 3, 20, 200)
    scores[0, 0] += 1000
    scores[0, 1] -= 1000
    expected = filtered(scores, [0, 1], 200).sum(dim=0)
    assert_close(align(graphs, torch.zeros(20, 200), scores, [0, 1]), expected.float())


@pytest.mark.parametrize("frame", [0, 77, 199])
def test_a_frame_that_says_nothing_of_any_token_is_told(graphs: dict[str, Model], frame: int) -> None:
    """Its standard deviation is 0, and medians would hide that."""
    scores = torch.randn(1, 3, 20, 200)
    scores[:, 1, :, frame] = -1000  # of which exp is 0
    matrix = align(graphs, torch.zeros(20, 200), scores, [0, 1])
    assert bool(matrix[:, frame].isnan().all())
    assert bool(matrix[:, [index for index in range(200) if index != frame]].isfinite().all())


@pytest.mark.parametrize("n_text", [1, 15, 16, 900, 999, 1000])
def test_probabilities_of_tokens(graphs: dict[str, Model], n_text: int) -> None:
    logits = 5 * torch.randn(1, 11, 1000)
    tokens = torch.randint(n_text, (11,))
    inputs = Buffer.from_dlpack(logits), Buffer.from_dlpack(tokens), np.array(n_text, dtype=np.int32)
    (probs,) = graphs["token_probs"].execute(*inputs)
    assert_close(from_dlpack(probs), token_probs(logits[0], tokens, n_text).float())
