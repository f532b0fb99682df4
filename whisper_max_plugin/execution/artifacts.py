"""The on-disk cache of compiled graphs: one artifact per model size, shared by all checkpoints of that size."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whisper_max_plugin.execution import processor
from whisper_max_plugin.execution.watch import WATCH
from whisper_max_plugin.report import REPORT

if TYPE_CHECKING:
    from max.engine import CompiledModel, InferenceSession
    from max.graph import KernelLibrary, Module
    from whisper.model import ModelDimensions

logger = logging.getLogger(__name__)

PACKAGE = Path(__file__).parents[1]
TYPICAL_COMPILE_SECONDS = 60  # tiny about a minute with all caches empty: kinds of kernels cost, not layers


@dataclass(frozen=True)
class ArtifactKey:
    """What a compiled artifact depends on; weights are not part of it.

    Attributes
    ----------
    dims : tuple[int, ...]
    precision, device : str
        `graphs.Types` as a name, and `devices.Device.kind`
    max_version : str
    graphs : str
        digest of the sources that the graphs are built from
    cpu : str
        digest of this machine's processor or, for GPUs, what `processor.host_code` names
    """

    dims: tuple[int, ...]
    precision: str
    device: str
    max_version: str
    graphs: str
    cpu: str

    @classmethod
    def of(cls, dims: ModelDimensions, precision: str, device: str) -> ArtifactKey:
        """Return the key of `dims` on this machine, with the installed MAX and this package's graphs."""
        sizes = tuple(vars(dims).values())
        cpu = processor.digest() if device == "cpu" else processor.host_code()
        return cls(sizes, precision, device, metadata.version("max"), _graphs_digest(), cpu)

    @property
    def filename(self) -> str:
        """A name that tells a person the size, and the rest by a digest."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]
        n_mels, _, n_audio_state, _, n_audio_layer, n_vocab, _, _, _, n_text_layer = self.dims
        size = f"{n_audio_state}x{n_audio_layer}-{n_text_layer}-mel{n_mels}-vocab{n_vocab}"
        return f"{size}-{self.precision}-{self.device.replace(':', '')}-{digest}.mef"


def cache_dir() -> Path:
    """Return the folder of compiled graphs: a subfolder of MAX's own cache, which ``MODULAR_MAX_CACHE_DIR`` moves."""
    if max_cache := os.environ.get("MODULAR_MAX_CACHE_DIR"):
        return Path(max_cache) / "whisper_max_plugin"
    modular_cache = os.environ.get("MODULAR_CACHE_DIR") or Path.home() / ".cache" / "modular"
    return Path(modular_cache) / ".max_cache" / "whisper_max_plugin"


def obtain(
    session: InferenceSession,
    dims: ModelDimensions,
    precision: str,
    device: str,
    build: Callable[[KernelLibrary], Module],
) -> CompiledModel:
    """Return the compiled graphs that `build` makes, from the cache or by compiling and storing them there.

    Of several processes that need the same artifact, one compiles and the others wait for it. An entry that is
    damaged, or of another version of MAX, of the graphs or of the processor, is compiled anew. Where the folder
    cannot be written, the graphs are compiled for this process alone, with a warning.

    Raises
    ------
    RuntimeError
        if MAX cannot compile the graphs
    """
    from whisper_max_plugin.graphs import kernel_library

    key = ArtifactKey.of(dims, precision, device)
    path = cache_dir() / key.filename
    if (compiled := _read(path)) is not None:
        return compiled
    with _compiler_lock(path) as writable:
        if (compiled := _read(path)) is not None:  # another process was faster
            return compiled
        with WATCH.over(), compile_progress(_expected_seconds(path.parent, device)):
            started = time.monotonic()
            with contextlib.nullcontext() if device == "cpu" else processor.portable_host_code():
                library = kernel_library()
                compiled = session.compile(build(library), custom_extensions=library.library_paths())
            seconds = time.monotonic() - started
        REPORT.compiled(seconds)
        logger.info("compiled %s in %.1f s", path.name, seconds)
        if writable:
            _store(compiled, path, key, seconds)
    return compiled


def is_cached(dims: ModelDimensions, precision: str, device: str) -> bool:
    """Tell whether a sound artifact for `dims` lies in the cache."""
    return _sound_bytes(path_of(dims, precision, device)) is not None


def path_of(dims: ModelDimensions, precision: str, device: str) -> Path:
    """Return where the artifact for `dims` lies, or will."""
    return cache_dir() / ArtifactKey.of(dims, precision, device).filename


def _read(path: Path) -> CompiledModel | None:
    """Return the artifact at `path`; None if there is none, or it is damaged."""
    from max.engine import read

    content = _sound_bytes(path)
    if content is None:
        return None
    try:
        return read(io.BytesIO(content))  # the very bytes that were checked, whatever lies at the path by now
    except RuntimeError as error:  # sound bytes that this MAX does not take
        logger.warning("compiling %s anew, because MAX cannot read it: %s", path.name, error)
        return None


def _sound_bytes(path: Path) -> bytes | None:
    """Return the artifact's bytes if they are the ones that its manifest was written for."""
    try:
        manifest = json.loads(_manifest(path).read_text())
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("compiling %s anew, because its cache entry cannot be read: %s", path.name, error)
        return None
    if not isinstance(manifest, dict) or manifest.get("sha256") != hashlib.sha256(content).hexdigest():
        logger.warning("compiling %s anew, because its cache entry is damaged", path.name)
        return None
    return content


def _store(compiled: CompiledModel, path: Path, key: ArtifactKey, seconds: float) -> None:
    """Write artifact and manifest, each complete or not at all; the manifest last, as it vouches for the other."""
    partial = path.with_suffix(f".{os.getpid()}.part")
    try:
        compiled.export_mef(partial)
        digest = hashlib.sha256(partial.read_bytes()).hexdigest()
        os.replace(partial, path)
        manifest = {**asdict(key), "sha256": digest, "compile_seconds": round(seconds, 1)}
        partial.write_text(json.dumps(manifest, indent=1))
        os.replace(partial, _manifest(path))
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        logger.warning("compiled graphs could not be stored in %s: %s", path.parent, error)


def _manifest(path: Path) -> Path:
    return path.with_suffix(".json")


@contextlib.contextmanager
def _compiler_lock(path: Path) -> Iterator[bool]:
    """Hold the lock on one artifact; yield whether the cache can be written."""
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.warning("waiting for another process that compiles the same graphs")
            lock.acquire()
    except OSError as error:
        logger.warning(
            "the cache folder %s cannot be written (%s), so every start compiles again: "
            "set MODULAR_MAX_CACHE_DIR to a folder that can be written",
            path.parent,
            error.strerror or error,
        )
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _expected_seconds(folder: Path, device: str) -> float:
    """How long a compilation for this kind of device took here as a rule, else what is typical.

    Some were shorter because MAX's own cache had kernels that they share, some longer because others were at work.
    """
    seconds: list[float] = []
    for path in folder.glob("*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            manifest = json.loads(path.read_text())
            if manifest["device"] == device:
                seconds.append(float(manifest["compile_seconds"]))
    return statistics.median(seconds) if seconds else TYPICAL_COMPILE_SECONDS


@contextlib.contextmanager
def compile_progress(expected: float) -> Iterator[None]:
    """Show on stderr, as upstream shows its downloads, that graphs are being compiled and for how long."""
    if sys.stderr is None:  # as with a daemon
        yield
        return
    from tqdm import tqdm

    bar: tqdm[Any] = tqdm(
        total=round(expected),
        desc=f"Compiling MAX graphs, once for this model size, about {expected:.0f} s",
        bar_format="{desc}: {elapsed} |{bar:20}|",
    )
    interval = 1 if sys.stderr.isatty() else 30  # seconds; a log file wants few lines
    done = threading.Event()

    def tick() -> None:
        while not done.wait(interval):
            bar.n = min(bar.n + interval, bar.total)
            bar.refresh()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
        bar.n = bar.total
    finally:
        done.set()
        thread.join()
        bar.close()


@cache
def _graphs_digest() -> str:
    """Digest of the sources that the graphs are built from, so that an edit never meets an old artifact."""
    digest = hashlib.sha256()
    for source in sorted([*(PACKAGE / "graphs").glob("*.py"), *(PACKAGE / "kernels").glob("*.mojo")]):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]
