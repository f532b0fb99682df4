"""A graph of one addition, which stands in for the model's, whose compilation takes minutes, and a cache for it.

MAX's own cache lies in the same folder, so that only the first compilation takes seconds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from max.driver import Buffer
from max.dtype import DType
from max.engine import CompiledModel, InferenceSession
from max.graph import DeviceRef, Graph, KernelLibrary, Module, TensorType
from whisper.model import ModelDimensions

from whisper_max_plugin import graphs
from whisper_max_plugin.execution import artifacts
from whisper_max_plugin.execution.artifacts import ArtifactKey
from whisper_max_plugin.execution.session import session as the_session
from whisper_max_plugin.execution.watch import WATCH
from whisper_max_plugin.report import REPORT

SIZES = iter(range(1, 1000))
library = functools.cache(graphs.kernel_library)  # which these graphs do without


def build(_: KernelLibrary | None = None) -> Module:
    """Build a module that adds one."""
    module = Module()
    kind = TensorType(DType.float32, [4], device=DeviceRef.CPU())
    with Graph("add_one", input_types=[kind], module=module) as graph:
        graph.output(graph.inputs[0].tensor + 1.0)
    return module


def refuse_to_build(_: KernelLibrary) -> Module:
    raise AssertionError("compiled what should have been in the cache")


def works(compiled: CompiledModel) -> bool:
    """Run the graph."""
    with WATCH.over():
        graphs = session().init_all(compiled, weights_registry={})
        (result,) = graphs["add_one"].execute(Buffer.from_numpy(np.zeros(4, "f")))
    return result.to_numpy().tolist() == [1.0] * 4


def session() -> InferenceSession:
    return the_session()


@pytest.fixture(scope="session")
def max_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What MODULAR_MAX_CACHE_DIR names in these tests; nothing is taken from or left in the user's cache."""
    return tmp_path_factory.mktemp("max_cache")


@pytest.fixture(autouse=True)
def settings(max_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODULAR_MAX_CACHE_DIR", str(max_cache))
    monkeypatch.setattr(graphs, "kernel_library", library)


@pytest.fixture
def dims() -> ModelDimensions:
    """Dimensions that no other test has."""
    return ModelDimensions(next(SIZES), 1, 1, 1, 1, 1, 1, 1, 1, 1)


def obtain(dims: ModelDimensions, build: Callable[[KernelLibrary], Module] = build) -> CompiledModel:
    return artifacts.obtain(session(), dims, "float32", "cpu", build)


def path_of(dims: ModelDimensions) -> Path:
    return artifacts.cache_dir() / ArtifactKey.of(dims, "float32", "cpu").filename


@pytest.fixture
def stored(dims: ModelDimensions) -> Path:
    """The path of an artifact that has just been compiled and stored."""
    assert works(obtain(dims))
    return path_of(dims)


@pytest.fixture
def compilations() -> Iterator[list[float]]:
    """The seconds of each compilation in the test."""
    seconds: list[float] = []
    compiled = REPORT.compiled

    def count(duration: float) -> None:
        seconds.append(duration)
        compiled(duration)

    REPORT.compiled = count  # type: ignore[method-assign]
    yield seconds
    del REPORT.compiled
