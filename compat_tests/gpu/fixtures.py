"""The kernels for GPUs without a GPU: an interpreter runs the PTX that the compiler makes of them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from whisper_max_plugin.graphs import KERNELS

from ..ptx import Kernel, Table

SOURCE = Path(__file__).with_name("to_ptx.mojo")
NOISE = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 1e-2}
"""What rounding to a type may change, as a part of the largest value."""


class Kernels:
    """The kernels of to_ptx.mojo, by the names that it prints.

    Parameters
    ----------
    printed
        PTX of all, each after a line with its name.
    """

    def __init__(self, printed: str) -> None:
        _, *parts = re.split(r"^//===== (.+)\n", printed, flags=re.MULTILINE)
        self._texts = dict(zip(parts[::2], parts[1::2], strict=True))
        self._kernels: dict[str, Kernel] = {}

    def run(
        self,
        name: str,
        grid: int | tuple[int, ...],
        block: int,
        outputs: Sequence[Tensor],
        inputs: Sequence[Tensor | Table],
        *sizes: int,
        settled: Sequence[Tensor | Table] = (),
    ) -> None:
        """Launch a kernel, which may write to the outputs, and to what a table of addresses leads to.

        A kernel that begins before the last one has ended may read at once what is `settled`, which that one leaves.
        """
        if name not in self._kernels:
            self._kernels[name] = Kernel(self._texts[name])
        written = [array(output) for output in outputs]
        read = [given if isinstance(given, list) else array(given) for given in inputs]
        for given in read:
            if not isinstance(given, list):
                given.flags.writeable = False
        at_once = [passed for passed, given in zip(read, inputs, strict=True) if any(given is each for each in settled)]
        self._kernels[name].run(grid, block, [*written, *read, *sizes], settled=at_once)


def array(tensor: Tensor) -> np.ndarray:
    """Return the memory of a tensor, with bfloat16, which NumPy does not have, as integers."""
    assert tensor.is_contiguous()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


@pytest.fixture(scope="session")
def kernels() -> Kernels:
    return compiled_kernels()


@cache
def compiled_kernels() -> Kernels:
    mojo = Path(sys.executable).with_name("mojo")
    command = [mojo, "run", "--target-accelerator", "sm_90a", "-I", KERNELS.parent, SOURCE]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return Kernels(finished.stdout)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def unset(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, torch.nan, dtype=dtype)


def assert_close(actual: Tensor, expected: Tensor, rounded: str = "float32") -> None:
    """What was computed is the result in float64, but for the noise of what was `rounded` on the way."""
    assert actual.shape == expected.shape
    assert expected.dtype == torch.float64
    error = float((actual - expected).abs().max() / expected.abs().max())
    assert error <= NOISE[rounded], f"off by {error:.1e} of the largest value"


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def blocks(n: int, each: int) -> int:
    return -(-n // each)


def run_linear(
    kernels: Kernels, name: str, y: Tensor, x: Tensor, w: Tensor, bias: Tensor, residual: Tensor, *norm: Tensor
) -> Tensor:
    """Write x (m, k) @ w (n, k).T, and what follows, to y (m, n), by a kernel for few rows; return y.

    Weights may be read before x has been written, by kernels that do not run "apart". x stands for what there is not.
    """
    (m, k), n = x.shape, len(w)
    if name.startswith("tensor "):
        grid, block = blocks(n, 16), 512 if " deep " in name else 256
    else:
        grid, block = blocks(n, 4 if name.endswith(" 1") else 8), 128
    inputs = [x, *(norm or (x, x)), w, bias, residual]
    settled = [] if " apart " in name else [each for each in (*norm, w, bias) if each is not x]
    kernels.run(name, grid, block, [y], inputs, m, n, k, settled=settled)
    return y


def attend(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attend, in float64, with q (..., n_queries, head_dim) to keys and values (..., n_keys, head_dim)."""
    scores = q.double() @ keys.double().transpose(-1, -2) / q.shape[-1] ** 0.5
    return scores.softmax(dim=-1) @ values.double()


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """Return x (n, length, n_state) as (n, n_head, length, head_dim)."""
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Return x (n, n_head, length, head_dim) as (n, length, n_state)."""
    return x.transpose(1, 2).flatten(-2)
