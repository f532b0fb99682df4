"""A device on the CPU whose graphs are recorded and replayed, which only GPUs do."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from max.driver import Buffer
from max.engine import Model

from whisper_max_plugin.execution.devices import Device


class Records(Device):
    """A device whose graphs may be recorded."""

    @property
    def records_graphs(self) -> bool:
        return True


RECORDS = Records("cpu", shares_memory=False)


class Recorder:
    """What `Model.capture` and the others do on a GPU: a replay runs on the recorded memory, and writes to the same.

    Parameters
    ----------
    runs_at_once : bool
        whether recording runs the graph as well

    Attributes
    ----------
    has_changed : bool
        whether the graph now launches anything else than it did
    """

    def __init__(self, runs_at_once: bool) -> None:
        self.runs_at_once = runs_at_once
        self.recordings: dict[int, list[Buffer]] = {}
        self.n_recorded = 0
        self.n_verified = 0
        self.has_changed = False

    def capture(self, model: Model, key: int, *buffers: Buffer) -> None:
        assert key not in self.recordings
        before = [Buffer.from_dlpack(buffer.to_numpy().copy()) for buffer in buffers]
        self._execute(model, buffers)
        if not self.runs_at_once:
            RECORDS.copy(buffers, before)
        self.recordings[key] = list(buffers)
        self.n_recorded += 1

    def replay(self, model: Model, key: int, *buffers: Buffer) -> None:
        assert [buffer._data_ptr() for buffer in buffers] == [buffer._data_ptr() for buffer in self.recordings[key]]
        self._execute(model, buffers)

    def _execute(self, model: Model, buffers: Sequence[Buffer]) -> None:
        assert not model.execute(*buffers), "what a recorded graph returns would be lost"

    def verify(self, model: Model, key: int, *buffers: Buffer) -> None:
        """Run the graph, and raise a RuntimeError if it launches anything else than was recorded, as MAX does."""
        self._execute(model, buffers)
        self.n_verified += 1
        if self.has_changed:
            raise RuntimeError("launch 3 differs")

    def release(self, _model: Model, key: int) -> None:
        del self.recordings[key]


@pytest.fixture(params=[False, True], ids=["recording does not run the graph", "recording runs the graph"])
def recorder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder(request.param)
    monkeypatch.setattr(Model, "capture", lambda model, *arguments: recorder.capture(model, *arguments))
    monkeypatch.setattr(Model, "replay", lambda model, *arguments: recorder.replay(model, *arguments))
    monkeypatch.setattr(Model, "debug_verify_replay", lambda model, *arguments: recorder.verify(model, *arguments))
    monkeypatch.setattr(Model, "release_captured_graph", lambda model, key: recorder.release(model, key))
    return recorder
