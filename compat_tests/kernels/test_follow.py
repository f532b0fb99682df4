"""What the kernel `follow` leaves for the next step is what upstream's greedy decoding would go on with."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from max.driver import Buffer
from max.dtype import DType
from max.engine import Model
from max.graph import BufferType, DeviceRef, Graph, Module, TensorType
from torch import Tensor
from whisper.decoding import ApplyTimestampRules
from whisper.tokenizer import get_tokenizer

from whisper_max_plugin.execution.session import session
from whisper_max_plugin.graphs import kernel_library
from whisper_max_plugin.graphs.step_kernels import follow
from whisper_max_plugin.inference.search import Rules

from ..gpu.fixtures import compiled_kernels

TOKENIZER = get_tokenizer(multilingual=True)
EOT, BEGIN, N_VOCAB = TOKENIZER.eot, TOKENIZER.timestamp_begin, 51865
PROMPT = [*TOKENIZER.sot_sequence]
N_TEXT_CTX = 32
CPU = DeviceRef.CPU()

Follow = Callable[[list[Tensor], list[Tensor]], None]
"""Runs the kernel on what it writes, and on what it only reads."""


@cache
def graph() -> Model:
    shapes = [["n_audio", "n_group"], ["batch"], ["batch", 4], ["batch"], ["batch"], ["n_text_ctx", "batch"]]
    types: list[BufferType | TensorType] = [BufferType(DType.int64, shape, CPU) for shape in shapes]
    types.append(BufferType(DType.float32, ["n_text_ctx", "batch"], CPU))
    types += [BufferType(DType.int64, ["batch", "k"], CPU), BufferType(DType.float32, ["batch", "k"], CPU)]
    types.append(TensorType(DType.int64, [3], CPU))
    module, library = Module(), kernel_library()
    with Graph("follow", input_types=types, module=module, kernel_library=library) as built:
        follow(*(value.buffer for value in built.inputs[:-1]), built.inputs[-1].tensor)
        built.output()
    return session().init_all(session().compile(module, custom_extensions=library.library_paths()))["follow"]


def on_the_cpu(written: list[Tensor], read: list[Tensor]) -> None:
    graph().execute(*map(Buffer.from_dlpack, [*written, *read]))


def on_a_gpu(written: list[Tensor], read: list[Tensor]) -> None:
    batch, k = read[0].shape
    compiled_kernels().run("follow", 1, 32, written, read, batch, k, settled=read[2:])  # the rules


choice = st.one_of(st.just(EOT), st.integers(0, EOT), st.integers(BEGIN, N_VOCAB - 1))


@pytest.mark.parametrize("run", [on_the_cpu, on_a_gpu])
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 8).flatmap(  # each what was sampled so far, and the best token
        lambda length: st.lists(
            st.tuples(st.lists(choice, min_size=length, max_size=length), choice), min_size=1, max_size=70
        )
    ),
    k=st.integers(1, 3),
    with_timestamps=st.booleans(),
)
def test_follow(run: Follow, rows: list[tuple[list[int], int]], k: int, with_timestamps: bool) -> None:
    timestamps = ApplyTimestampRules(TOKENIZER, len(PROMPT), 50) if with_timestamps else None
    rules = Rules(N_VOCAB, len(PROMPT), [], [], timestamps)
    sequences = [PROMPT + sampled for sampled, _ in rows]
    position, batch = len(sequences[0]) - 1, len(rows)

    tokens = torch.tensor([[sequence[-1]] for sequence in sequences])
    at = torch.full((batch,), position)
    ranges = torch.full((batch, 4), -7)
    stamps = torch.tensor([rules.latest_stamp(sequence) for sequence in sequences])
    seeds = torch.randint(2**62, (batch,))
    chosen, chosen_logprobs = torch.full((N_TEXT_CTX, batch), -7), torch.full((N_TEXT_CTX, batch), -7.0)
    ids = torch.randint(0, N_VOCAB, (batch, k))
    ids[:, 0] = torch.tensor([best for _, best in rows])
    logprobs = -torch.rand(batch, k)
    known = torch.tensor([EOT, BEGIN if with_timestamps else N_VOCAB, N_VOCAB])
    begun = seeds.clone()
    run([tokens, at, ranges, stamps, seeds, chosen, chosen_logprobs], [ids, logprobs, known])

    expected = [EOT if sequence[-1] == EOT else best for sequence, (_, best) in zip(sequences, rows, strict=True)]
    longer = [[*sequence, token] for sequence, token in zip(sequences, expected, strict=True)]
    assert tokens.flatten().tolist() == chosen[position].tolist() == expected
    assert at.tolist() == [position + 1] * batch
    assert ranges.tolist() == [list(rules.ranges(sequence)) for sequence in longer]
    assert stamps.tolist() == [rules.latest_stamp(sequence) for sequence in longer]
    assert torch.equal(chosen_logprobs[position], logprobs[:, 0])
    assert torch.equal(seeds, begun + 1)
    others = torch.arange(N_TEXT_CTX) != position
    assert (chosen[others] == -7).all()
    assert (chosen_logprobs[others] == -7).all()
