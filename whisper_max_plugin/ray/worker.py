"""What runs in a process of Ray: a model, and recordings that share its decoder's steps, a batch at a time."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whisper_max_plugin.errors import MemoryFullError, OptionError, WhisperMaxError, WorkerError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow
    from whisper.model import Whisper


@dataclass(frozen=True)
class Recording:
    """A row of what is to be transcribed."""

    path: str
    data: bytes | None

    def samples(self) -> np.ndarray:
        """Decode it.

        Raises
        ------
        UnreadableError
        """
        import whisper.audio

        from whisper_max_plugin.audio import load_audio_bytes

        try:
            return whisper.audio.load_audio(self.path) if self.data is None else load_audio_bytes(self.data, self.path)
        except (RuntimeError, OSError) as error:
            reason = last_line(error).removeprefix("Failed to load audio: ").removeprefix(f"{self.path}: ")
            raise UnreadableError(reason) from error


class UnreadableError(RuntimeError):
    """The recording cannot be decoded."""


class Ledger:
    """Knows, while workers come and go, which recordings were begun and not finished, and why a worker gave up.

    One for each run, in a process of its own (an actor of Ray).
    """

    def __init__(self) -> None:
        self._begun: dict[str, int] = {}
        self._reason: WhisperMaxError | None = None

    def begun(self, paths: Sequence[str]) -> list[int]:
        """Return how often each was begun by workers that died."""
        return [self._begun.get(path, 0) for path in paths]

    def begin(self, path: str) -> None:
        self._begun[path] = self._begun.get(path, 0) + 1

    def take_back(self, path: str) -> None:
        """Forget the latest begin of a recording, which will begin again though no worker has died."""
        self._begun[path] -= 1

    def finish(self, path: str) -> None:
        self._begun.pop(path, None)

    def give_up(self, reason: WhisperMaxError) -> None:
        self._reason = reason

    def reason(self) -> WhisperMaxError | None:
        return self._reason


class Transcriber:
    """Transcribes batches of recordings with one model: the class for `map_batches` of a dataset of Ray Data.

    A batch has the column ``path`` and, if recordings are not to be read from there, ``bytes``, the content of their
    files. The batch that comes back has the columns

    - ``path``: as given
    - ``duration``: float, seconds of audio
    - ``language``, ``text``: str, as `whisper.transcribe` returns them
    - ``segments``: str, as `whisper.transcribe` returns them, in JSON
    - ``error``: str, why there is no result; the others but ``path`` are null then. Null if there is one.

    The model is loaded by the first batch: Ray would take an actor whose constructor raises for one that has died.

    Parameters
    ----------
    model : str
        as `whisper.load_model` takes it; a path has to be there on all machines
    device : str | None
        as `whisper.load_model` takes it; None is the GPU that Ray gave the actor, or else the CPU
    batch_size : int
        how many recordings are worked on at a time
    sharing : int | None
        how many models share the processors of a machine; None for as many threads as Ray gave the actor ``num_cpus``
    options : Mapping | None
        for `whisper.transcribe`
    ledger
        a `Ledger` as an actor of Ray, if the run has one

    Raises
    ------
    WhisperMaxError
        by a batch, for what is no recording's fault: there is no such model, device, option or column, or the memory
        is full
    """

    max_deaths = 3  # of processes that were transcribing a recording, which then counts as their cause

    def __init__(
        self,
        model: str,
        *,
        device: str | None = None,
        batch_size: int = 8,
        sharing: int | None = None,
        options: Mapping[str, Any] | None = None,
        ledger: Any = None,
    ) -> None:
        self._name = model
        self._device = device
        self._batch_size = batch_size
        self._sharing = sharing
        self._options = {"verbose": None, **(options or {})}
        self._ledger = ledger
        self._model: Whisper | None = None

    def __call__(self, batch: Mapping[str, Any]) -> pyarrow.Table:
        import pyarrow as pa

        from whisper_max_plugin.ray.output import result_schema

        try:
            recordings = _recordings(batch)
            if self._model is None:
                self._model = self._load()
                self._try(self._model)
            rows = list(self._transcribe(self._model, recordings))
        except WhisperMaxError as reason:
            self._tell("give_up", reason)
            raise
        return pa.Table.from_pylist(rows, schema=result_schema().append(pa.field("error", pa.string())))

    def _load(self) -> Whisper:
        import torch
        import whisper
        from filelock import FileLock

        import whisper_max_plugin
        from whisper_max_plugin.backends import get_usable
        from whisper_max_plugin.checkpoints.names import check_name
        from whisper_max_plugin.half import takes_half

        get_usable("max")
        if self._sharing is not None:
            torch.set_num_threads(max(1, _n_processors() // self._sharing))  # MAX takes as many
        check_name(self._name, platform.node())
        whisper_max_plugin.install()
        device = self._device or ("cuda" if _has_gpu() else "cpu")
        # Of the models on one machine the first downloads, and all write to the same file.
        with FileLock(f"{tempfile.gettempdir()}/whisper_max_plugin-{os.getuid()}.lock"):
            model: Whisper = whisper.load_model(self._name, device=device, backend="max")
        self._options.setdefault("fp16", takes_half(model))
        return model

    def _try(self, model: Whisper) -> None:
        """Transcribe a second of silence, by which a run that cannot work ends here, and not once for each recording.

        Raises
        ------
        OptionError, WorkerError
        """
        import numpy as np
        import whisper
        from whisper.audio import SAMPLE_RATE

        temperature = self._options.get("temperature", 0.0)
        first = temperature[0] if isinstance(temperature, (tuple, list)) else temperature
        try:
            whisper.transcribe(model, np.zeros(SAMPLE_RATE, np.float32), **{**self._options, "temperature": first})
        except WhisperMaxError:
            raise
        except (TypeError, ValueError, AssertionError) as error:
            raise OptionError(f"whisper.transcribe refuses the options: {last_line(error)}") from error
        except RuntimeError as error:
            raise _worker_error(error) from error

    def _transcribe(self, model: Whisper, recordings: Sequence[Recording]) -> Iterator[dict[str, Any]]:
        """Yield a row for each; those that were begun when a worker died come last, each alone."""
        deaths = self._ask([recording.path for recording in recordings])
        together = [recording for recording, n in zip(recordings, deaths, strict=True) if n == 0]
        yield from self._transcribe_together(model, together)
        for recording, n in zip(recordings, deaths, strict=True):
            if n >= self.max_deaths:
                reason = f"{n} processes died while they were transcribing it: see the logs of Ray for the cause"
                yield {"path": recording.path, "error": reason}
            elif n > 0:
                yield from self._transcribe_together(model, [recording])

    def _transcribe_together(self, model: Whisper, recordings: Sequence[Recording]) -> Iterator[dict[str, Any]]:
        import torch

        from whisper_max_plugin.many import transcribe_many

        many: Any = transcribe_many(model, recordings, self._batch_size, self._options, self._transcribe_one)  # type: ignore[arg-type]
        with contextlib.closing(many):
            for done in many:
                path = done.audio.path
                if done.error is None:
                    yield {"path": path, **done.result}
                elif isinstance(done.error, UnreadableError):
                    yield {"path": path, "error": str(done.error)}
                elif isinstance(done.error, WhisperMaxError):
                    raise done.error
                elif isinstance(done.error, (MemoryError, torch.cuda.OutOfMemoryError)):
                    raise _worker_error(done.error) from done.error
                else:
                    self._try(model)  # the recording's fault, unless silence meets it as well
                    yield {"path": path, "error": f"{type(done.error).__name__}: {last_line(done.error)}"}
                self._tell("finish", path)

    def _transcribe_one(self, model: Whisper, recording: Recording, **options: Any) -> dict[str, Any]:
        import whisper
        from whisper.audio import SAMPLE_RATE

        self._tell("begin", recording.path)
        samples = recording.samples()
        try:
            result = whisper.transcribe(model, samples, **options)
        except MemoryFullError:  # it may begin again, when fewer are worked on
            self._tell("take_back", recording.path)
            raise
        return {
            "duration": len(samples) / SAMPLE_RATE,
            "language": result["language"],
            "text": result["text"],
            "segments": json.dumps(result["segments"], ensure_ascii=False),
        }

    def _ask(self, paths: Sequence[str]) -> list[int]:
        if self._ledger is None:
            return [0] * len(paths)
        begun: list[int] = _ray().get(self._ledger.begun.remote(paths))
        return begun

    def _tell(self, method: str, argument: object) -> None:
        if self._ledger is not None:
            _ray().get(getattr(self._ledger, method).remote(argument))


def _ray() -> Any:
    import ray

    return ray


def _has_gpu() -> bool:
    ray = _ray()
    return ray.is_initialized() and bool(ray.get_runtime_context().get_accelerator_ids().get("GPU"))


def _n_processors() -> int:
    """Return how many processors this machine has for Ray."""
    ray = _ray()
    here = ray.get_runtime_context().get_node_id()
    return int(next(node["Resources"].get("CPU", 1) for node in ray.nodes() if node["NodeID"] == here))


def _recordings(batch: Mapping[str, Any]) -> list[Recording]:
    if "path" not in batch:
        raise OptionError(
            f"recordings need the column path, which names them, and here are {', '.join(batch)}: "
            "rename_columns() of the dataset, or read_binary_files(..., include_paths=True), has it"
        )
    data = batch.get("bytes", [None] * len(batch["path"]))
    return [
        Recording(str(path), None if content is None else bytes(content))
        for path, content in zip(batch["path"], data, strict=True)
    ]


def _worker_error(error: BaseException) -> WorkerError:
    memory = ": give a smaller batch_size" if "emory" in f"{type(error).__name__} {error}" else ""
    reason = f"{type(error).__name__}: {last_line(error)}"
    return WorkerError(f"transcribing failed on {platform.node()} ({reason}){memory}")


def last_line(error: BaseException) -> str:
    """Return the message, of which ffmpeg's ends with the reason, behind all that it says about itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
