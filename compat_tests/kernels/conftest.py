"""Tests of kernels run graphs themselves, where the package's own calls of MAX are watched by the package."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from whisper_max_plugin.execution.watch import WATCH


@pytest.fixture(scope="module", autouse=True)
def watched() -> Iterator[None]:
    """Let no test wait for a thread of MAX that has slept through a call."""
    with WATCH.over():
        yield
