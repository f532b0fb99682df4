"""Transcribes a dataset of recordings on all machines of a Ray cluster, and continues where it was interrupted."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from whisper_max_plugin.errors import OptionError, PackageError, WorkerError
from whisper_max_plugin.ray.output import failures_of, open_output
from whisper_max_plugin.ray.worker import Ledger, Transcriber, last_line

if TYPE_CHECKING:
    from ray.data import Dataset

__all__ = ["Failure", "Summary", "Transcriber", "transcribe_dataset"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """A recording without a result.

    Attributes
    ----------
    path : str
    error : str
        the reason
    """

    path: str
    error: str


@dataclass
class Summary:
    """What became of a dataset.

    Attributes
    ----------
    done : int
        recordings that were transcribed
    seconds : float
        of audio, which these have together
    skipped : int
        recordings that were in the output before; of a `Dataset` this is not known, and all that the output has count
    failed : list[Failure]
        recordings that could not be transcribed
    """

    done: int = 0
    seconds: float = 0.0
    skipped: int = 0
    failed: list[Failure] = field(default_factory=list)


def transcribe_dataset(
    recordings: Iterable[str | os.PathLike[str]] | Dataset,
    output: str | os.PathLike[str],
    *,
    model: str,
    device: str | None = None,
    batch_size: int = 8,
    concurrency: int | None = None,
    on_progress: Callable[[Summary], None] | None = None,
    **options: Any,
) -> Summary:
    """Transcribe recordings on all machines of a Ray cluster, or on this one, and write the results as they come.

    Each result is that of `whisper.transcribe(model, path, **options)`. Those that `output` has are not made again, so
    that the same call continues a run that was interrupted. Recordings that failed are tried again by the next call.

    Parameters
    ----------
    recordings : Iterable[str | os.PathLike[str]] | ray.data.Dataset
        paths, which have to be there on all machines, or a dataset with the column ``path`` and, if recordings are not
        to be read from there, ``bytes``, the content of their files
    output : str | os.PathLike[str]
        a file of JSON lines, if its name ends in .jsonl, or else a folder of Parquet files, where this function is
        called. Failed recordings are listed beside the file, or in the folder.
    model : str
        as `whisper.load_model` takes it; a path has to be there on all machines
    device : str | None
        "cuda" gives each model a GPU; None is the CPU
    batch_size : int
        how many recordings each model works on at a time; it is also what is done again when its process dies
    concurrency : int | None
        how many models there are; None for one on each GPU, or else on each machine but those that have at most half of
        the largest one's processors
    on_progress : Callable | None
        called with the summary so far, whenever results were written
    options
        upstream's, of `transcribe()` and of `DecodingOptions`, for all recordings

    Returns
    -------
    Summary

    Raises
    ------
    PackageError
        an ImportError: Ray is not installed, the extra `ray`
    OptionError
        a ValueError: an option does not exist or cannot be meant
    OutputError
        a RuntimeError: the output cannot be written, or holds something else
    WorkerError
        a RuntimeError: no recording's fault ended the work of a process
    WhisperMaxError
        anything else that is no recording's fault, such as a model that does not exist
    """
    ray = load_ray()
    check_arguments(device, batch_size, concurrency)
    if isinstance(recordings, (str, os.PathLike)):
        raise OptionError(f"transcribe_dataset takes a list of recordings: [{os.fspath(recordings)!r}]")
    with contextlib.closing(_Results(output)) as results:
        pending = None if isinstance(recordings, ray.data.Dataset) else results.without_done(recordings)
        if pending == []:
            return results.summary
        if not ray.is_initialized():
            ray.init()
        workers = _Workers.of_cluster(ray, device, concurrency, reads=pending is None)
        if pending is None:
            dataset = results.filter_done(recordings).repartition(target_num_rows_per_block=batch_size, strict=True)
        else:
            dataset = _paths_in_blocks(ray, pending, batch_size, workers.number)
        arguments = {"model": _local(model), "device": device, "batch_size": batch_size, "options": options}
        with contextlib.closing(_run(ray, dataset, workers, arguments)) as blocks:
            for rows in blocks:
                results.keep(rows)
                if on_progress is not None:
                    on_progress(results.summary)
        return results.summary


def check_arguments(device: str | None, batch_size: int, concurrency: int | None) -> None:
    """Refuse what `transcribe_dataset` cannot do, before anybody starts Ray for it.

    Raises
    ------
    OptionError
    """
    if batch_size < 1:
        raise OptionError(f"batch_size={batch_size}: give how many recordings a model works on at a time, at least 1")
    if concurrency is not None and concurrency < 1:
        raise OptionError(f"concurrency={concurrency}: give how many models there are, at least 1, or leave it out")
    if device not in (None, "cpu", "cuda"):
        raise OptionError(f"device={device!r}: Ray chooses among the GPUs, so that this is 'cuda' or 'cpu'")


def load_ray() -> Any:
    """Return the module `ray`, with Ray Data.

    Raises
    ------
    PackageError
        if it is not installed
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise PackageError(
            f"Ray Data is not installed here ({error}): pip install 'whisper_max_plugin[ray]', on every machine"
        ) from error
    return ray


class _Results:
    """What there is so far, in files and as a summary."""

    def __init__(self, output: str | os.PathLike[str]) -> None:
        self.summary = Summary()
        self._output = open_output(output)
        self._failures = failures_of(output)
        self._failures.unlink(missing_ok=True)

    def without_done(self, recordings: Iterable[str | os.PathLike[str]]) -> list[str]:
        """Return what is to be done; count the rest."""
        paths = dict.fromkeys(_local(os.fspath(path)) for path in recordings)  # each once
        pending = [path for path in paths if path not in self._output.done]
        self.summary.skipped = len(paths) - len(pending)
        names = {path: path.encode(errors="backslashreplace").decode() for path in pending}
        error = "its name is not UTF-8, and Arrow takes no other: rename it"
        self.keep([{"path": name, "error": error} for path, name in names.items() if path != name])
        return [path for path, name in names.items() if path == name]

    def filter_done(self, dataset: Dataset) -> Dataset:
        """Return what is to be done of a dataset."""
        import pyarrow as pa
        import pyarrow.compute as pc

        self.summary.skipped = len(self._output.done)
        done = pa.array(sorted(self._output.done), pa.string())

        def pending(batch: pa.Table) -> pa.Table:
            if "path" not in batch.column_names:
                return batch  # which workers refuse
            return batch.filter(pc.invert(pc.is_in(batch["path"], value_set=done)))

        return dataset.map_batches(pending, batch_format="pyarrow", batch_size=None)

    def keep(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write results, and list failures."""
        failures = [Failure(row["path"], row["error"]) for row in rows if row["error"] is not None]
        done = self._output.done  # as are those that a dataset lists twice
        results = {row["path"]: row for row in rows if row["error"] is None and row["path"] not in done}
        self._output.add(
            [
                {name: json.loads(value) if name == "segments" else value for name, value in row.items()}
                for row in results.values()
            ]
        )
        self.summary.done += len(results)
        self.summary.seconds += sum(row["duration"] for row in results.values())
        self.summary.failed += failures
        for failure in failures:
            logger.warning("%s: %s", failure.path, failure.error)
        if failures:
            with self._failures.open("a", encoding="utf8") as file:
                file.writelines(json.dumps(vars(failure), ensure_ascii=False) + "\n" for failure in failures)

    def close(self) -> None:
        self._output.close()


@dataclass(frozen=True)
class _Workers:
    """How many models there are, how many share a machine, and what Ray sets aside for each."""

    number: int
    sharing: int
    resources: dict[str, int]

    @classmethod
    def of_cluster(cls, ray: Any, device: str | None, concurrency: int | None, *, reads: bool) -> _Workers:
        """Choose them; `reads` tells whether Ray needs processors for a dataset, too."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if device == "cuda":
            n_gpus = int(sum(node.get("GPU", 0) for node in nodes))
            if n_gpus == 0:
                raise OptionError("device='cuda': no machine of the Ray cluster has a GPU: leave out the device")
            return cls(concurrency or n_gpus, 1, {"num_gpus": 1})
        sizes = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
        if not sizes:
            raise OptionError("no machine of the Ray cluster has a processor for work: start one with --num-cpus")
        # Of what the smallest of these has, no machine has twice as much, so that none gets two models for one.
        sizes = [size for size in sizes if 2 * size > max(sizes)]
        number = concurrency or len(sizes)
        sharing = -(-number // len(sizes))
        return cls(number, sharing, {"num_cpus": (min(sizes) - reads) // sharing})


def _paths_in_blocks(ray: Any, paths: list[str], batch_size: int, n_workers: int) -> Dataset:
    """Return a dataset in blocks of up to `batch_size`, so that there is work for everybody.

    Recordings of about the same length come together, as they end together, and the longest first.
    """
    n_blocks = max(-(-len(paths) // batch_size), min(n_workers, len(paths)))
    rows = [{"path": path} for path in sorted(paths, key=_size, reverse=True)]
    return ray.data.from_items(rows, override_num_blocks=n_blocks)


def _run(
    ray: Any, dataset: Dataset, workers: _Workers, arguments: dict[str, Any]
) -> Generator[list[dict[str, Any]], None, None]:
    """Yield the rows of blocks as they are done.

    Ray Data starts an actor again whose process or machine died, and gives it the block that it had not finished.
    """
    ledger = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Ledger).remote()
    transcribed = dataset.map_batches(
        Transcriber,
        fn_constructor_kwargs={**arguments, "sharing": workers.sharing, "ledger": ledger},
        batch_size=None,  # a block
        compute=ray.data.ActorPoolStrategy(size=workers.number),
        **workers.resources,
    )
    failure = None
    try:
        for block in transcribed.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield block.to_pylist()
    except ray.exceptions.RayError as error:
        failure = last_line(error)  # above which is where in Ray it was raised
    finally:
        del transcribed
    # Not from within, since who keeps the error would keep Ray's, and by it the actors, with all that they hold.
    if failure is not None:
        gc.collect()  # they are in cycles, and the next run would wait for them
        raise ray.get(ledger.reason.remote()) or WorkerError(f"Ray gave up: {failure}")


def _local(path: str) -> str:
    """Return a path that means the same in another folder; names of models and addresses stay as they are."""
    return os.path.abspath(path) if os.path.exists(path) else path


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0
