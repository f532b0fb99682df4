"""What `ray.transcribe_dataset` writes: JSON lines or Parquet, by one writer, to which a later run adds.

Results come in by the block, and lie on the disk when `add` returns: complete lines of a file that only grows. Parquet
files cannot grow, so that for them this file is a journal, of which whole files are made, many blocks at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from whisper_max_plugin.errors import OutputError

if TYPE_CHECKING:
    import pyarrow

Row = dict[str, Any]
"""A result, of `COLUMNS`: the duration in seconds, segments as upstream's list of dicts."""

ROWS_PER_FILE = 1000  # of Parquet; as few files as readers like, and as much as one read of the journal should be
COLUMNS = ("path", "duration", "language", "text", "segments")
FIRST_KEY = COLUMNS[0]
PART = "part-"


class Output(Protocol):
    """Where results go.

    Attributes
    ----------
    done : set[str]
        the paths of all recordings that it holds
    """

    done: set[str]

    def add(self, rows: Sequence[Row]) -> None:
        """Write results of recordings that it does not hold."""

    def close(self) -> None:
        """Finish what is not finished, and let others write."""


def failures_of(path: str | os.PathLike[str]) -> Path:
    """Return the file that lists what failed, beside the file `path` or in the folder."""
    output = Path(path)
    # Readers of Parquet pass over names that begin so.
    return output.with_suffix(".failed.jsonl") if _is_file_of_lines(output) else output / "_failed.jsonl"


def _is_file_of_lines(path: Path) -> bool:
    return path.suffix == ".jsonl"


def open_output(path: str | os.PathLike[str]) -> Output:
    """Open a file of JSON lines, if its name ends in .jsonl, or else a folder of Parquet files, new or to be continued.

    Raises
    ------
    OutputError
        if it cannot be written, holds something else, or another run is writing there
    """
    chosen = Path(path)
    with _explained(chosen):
        return JsonLines(chosen) if _is_file_of_lines(chosen) else Parquet(chosen)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the system's errors, inside, into one that names the output."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error


class JsonLines:
    """A line of JSON for each recording. See `Output`."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("a+b")
        _sync_folder(path.parent)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the kernel, however this process ends
        except BlockingIOError:
            raise OutputError(f"another run is writing to {path}: wait for its end, or name another output") from None
        self._mend()
        self.done = {row[FIRST_KEY] for row in self.rows()}

    def _mend(self) -> None:
        """Take back a last line that was not finished when a machine went down."""
        self._file.seek(0)
        complete = 0
        for number, line in enumerate(self._file, start=1):
            start = f'{{"{FIRST_KEY}": '.encode()
            if not line.startswith(start[: len(line)]):
                raise OutputError(f"{self.path}, line {number}, is no result of a transcription: name another output")
            if line.endswith(b"\n"):
                complete += len(line)
        self._file.truncate(complete)

    def rows(self) -> Iterator[Row]:
        """Yield what it holds.

        Raises
        ------
        OutputError
            if a line was damaged
        """
        self._file.seek(0)
        for number, line in enumerate(self._file, start=1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise OutputError(f"{self.path}, line {number}, is damaged: remove the line ({error})") from error

    def add(self, rows: Sequence[Row]) -> None:
        lines = [json.dumps({name: row[name] for name in COLUMNS}, ensure_ascii=False) + "\n" for row in rows]
        with _explained(self.path):
            self._file.write("".join(lines).encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        self.done.update(row[FIRST_KEY] for row in rows)

    def clear(self) -> None:
        """Leave nothing in it."""
        self._file.truncate(0)
        os.fsync(self._file.fileno())
        self.done = set()

    def close(self) -> None:
        self._file.close()


class Parquet:
    """A folder of ``part-00000.parquet`` and so on, and the journal of what comes next. See `Output`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._journal = JsonLines(folder / "_journal.jsonl")  # first, as it keeps other runs away
        parts = sorted(folder.glob("*.parquet"))
        try:
            self._in_parts = {path for part in parts for path in _paths_in(part)}
        except OutputError:
            self._journal.close()
            raise
        self._n_parts = 1 + int(parts[-1].stem.removeprefix(PART)) if parts else 0
        if not self._journal.done.isdisjoint(self._in_parts):
            self._journal.clear()  # a run ended between a part, which holds all of the journal, and this
        self.done = self._in_parts | self._journal.done

    def add(self, rows: Sequence[Row]) -> None:
        self._journal.add(rows)
        self.done |= self._journal.done
        if len(self._journal.done) >= ROWS_PER_FILE:
            self._write_part()

    def close(self) -> None:
        if self._journal.done:
            self._write_part()
        self._journal.close()

    def _write_part(self) -> None:
        import pyarrow
        import pyarrow.parquet

        rows = [{**row, "segments": json.dumps(row["segments"], ensure_ascii=False)} for row in self._journal.rows()]
        part = self._folder / f"{PART}{self._n_parts:05}.parquet"
        unfinished = part.with_suffix(".tmp")
        with _explained(part), unfinished.open("wb") as file:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=result_schema()), file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(part)
        _sync_folder(self._folder)
        self._n_parts += 1
        self._in_parts |= self._journal.done
        self._journal.clear()


def _paths_in(part: Path) -> list[str]:
    """Return the paths of the recordings whose results are in a file of Parquet.

    Raises
    ------
    OutputError
        if it is not one that `Parquet` has written, or is damaged
    """
    import pyarrow
    import pyarrow.parquet

    try:
        if re.fullmatch(PART + r"\d{5,}\.parquet", part.name):
            paths: list[str] = pyarrow.parquet.read_table(part, columns=[FIRST_KEY])[FIRST_KEY].to_pylist()
            return paths
    except (pyarrow.ArrowException, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise OutputError(f"{part} is damaged: remove it to transcribe its recordings again ({reason})") from error
    raise OutputError(f"{part} is not of a transcription's results: name another output")


def result_schema() -> pyarrow.Schema:
    """Return the columns of a result; segments are JSON, since upstream's have other fields with other options."""
    import pyarrow as pa

    return pa.schema({name: pa.float64() if name == "duration" else pa.string() for name in COLUMNS})


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
