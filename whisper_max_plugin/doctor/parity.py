"""The self-check behind ``whisper-max doctor --parity``: one model on torch and on graphs, result by result.

Upstream's model computes everything first and is accelerated in place then, so that its weights lie in memory once.
"""

from __future__ import annotations

import inspect
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import whisper
from torch import Tensor
from whisper.model import Whisper

from whisper_max_plugin import environment, loading
from whisper_max_plugin.checkpoints.names import check_name
from whisper_max_plugin.doctor import comparison
from whisper_max_plugin.doctor import parity_checks as checks
from whisper_max_plugin.errors import MemoryFullError, UnknownModelError, WhisperMaxError
from whisper_max_plugin.execution import processor
from whisper_max_plugin.inference.model import accelerate
from whisper_max_plugin.precision import DEFAULT
from whisper_max_plugin.report import REPORT

DISTRIBUTIONS = ("whisper-max-plugin", "max", "torch", "openai-whisper")


@dataclass(frozen=True)
class Parity:
    """What the checks of one model found; `problem` says why it could not be checked, and there are no rows then."""

    model: str
    ok: bool
    problem: str | None = None
    dims: dict[str, int] = field(default_factory=dict)
    precision: str | None = None
    device: str | None = None
    rows: list[comparison.Row] = field(default_factory=list)
    graph_runs: dict[str, int] = field(default_factory=dict)
    fallbacks: dict[str, int] = field(default_factory=dict)


def machine() -> dict[str, str | None]:
    """Return versions of the libraries, and what they run on."""
    versions = {name: environment.version(name) for name in DISTRIBUTIONS}
    cpu = f"{processor.name()} ({torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads)"
    return {**versions, "python": platform.python_version(), "platform": platform.platform(), "cpu": cpu}


def choose_models(names: Sequence[str]) -> list[str]:
    """Return `names` if each is a model; without any, the smallest model that whisper has downloaded.

    Raises
    ------
    UnknownModelError
        if a name is neither an official model nor a path, or if there is no name and nothing downloaded
    """
    for name in names:
        check_name(name)
    if names:
        return list(names)
    folder = Path(loading.download_folder())
    found = [path for name in whisper.available_models() if (path := folder / f"{name}.pt").is_file()]
    if not found:
        raise UnknownModelError(
            f"no model in {folder}: give the path of a checkpoint, or a name for whisper to download, "
            "as in `whisper-max doctor --parity tiny`"
        )
    # The path and not the name, with which upstream would download a damaged file again.
    return [str(min(found, key=lambda path: path.stat().st_size))]


def load_audio(path: str | None) -> Tensor:
    """Return the samples (n_samples,) of the recording at `path`, 16 kHz; for None synthetic sound.

    Raises
    ------
    WhisperMaxError
        if there is no such file, or no audio in it that can be read
    """
    if path is None:
        return checks.synthetic_audio()
    from whisper_max_plugin import audio  # and PyAV, which nothing else here needs

    try:
        return torch.from_numpy(audio.load_audio(path))
    except RuntimeError as error:
        raise WhisperMaxError(str(error)) from error


@torch.no_grad()
def check_model(name: str, samples: Tensor, device: str | None = None, precision: str = DEFAULT) -> Parity:
    """Run every check on one model.

    Parameters
    ----------
    name : str
        as ``whisper --model`` takes it; an official model that is not there yet is downloaded, as whisper does
    samples : Tensor, shape = (n_samples,)
        16 kHz; the first 30 s are used
    device : str | None
        what graphs run on, as `whisper.load_model` takes it
    precision : str
        what they compute in; torch computes in float32

    Raises
    ------
    DeviceError
        if graphs do not run on `device`, it is not there, or its memory is full
    """
    graphs_device = loading.device_for(device, precision)
    try:
        model = _load(name)
        window = checks.prepare(model, samples)
        upstreams = comparison.compute_upstreams(model, window)
        accelerated = accelerate(model, graphs_device, precision)
    except OSError as error:
        return Parity(name, False, f"cannot be loaded: {error}")
    except MemoryFullError:
        raise
    except (WhisperMaxError, RuntimeError, ValueError) as error:  # ours, upstream's, torch's and MAX's
        return Parity(name, False, str(error))
    before = REPORT.snapshot()
    rows = comparison.compare(accelerated, window, upstreams)
    after = REPORT.snapshot()
    return Parity(
        name,
        all(row.ok for row in rows),
        dims=vars(model.dims),
        precision=after["precision"],
        device=after["device"],
        rows=rows,
        graph_runs=comparison.added("graph_runs", before, after),
        fallbacks=comparison.added("fallbacks", before, after),
    )


def _load(name: str) -> Whisper:
    """Load upstream's model, whatever is installed at the moment."""
    load_model = inspect.unwrap(whisper.load_model)  # WHISPER_BACKEND may have put ours in front
    return loading.load_unaccelerated(name, upstream_load_model=load_model).eval()
