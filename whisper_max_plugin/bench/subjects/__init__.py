"""The subjects of ``whisper-max bench``: which there are; their classes are imported in their own processes only."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import replace

from whisper_max_plugin import environment, precision
from whisper_max_plugin.bench.protocol import Kind

UPSTREAM = Kind(
    name="upstream",
    title="upstream (torch)",
    module=f"{__name__}.whisper_models",
    cls="WhisperSubject",
    module_needed="whisper",
    requirement="openai-whisper",
    options={"backend": "torch"},
)
MAX = Kind(
    name="max",
    title="whisper-max",
    module=f"{__name__}.whisper_models",
    cls="WhisperSubject",
    module_needed="max",
    requirement="max",
    version_of="whisper-max-plugin",
    thread_choice=False,
    options={"backend": "max"},
)
PEERS = (
    Kind(
        name="faster-whisper",
        title="faster-whisper float32",
        module=f"{__name__}.faster_whisper",
        cls="FasterWhisperSubject",
        module_needed="faster_whisper",
        requirement="faster-whisper",
        options={"compute_type": "float32"},
    ),
    Kind(
        name="faster-whisper-int8",
        title="faster-whisper int8",
        module=f"{__name__}.faster_whisper",
        cls="FasterWhisperSubject",
        module_needed="faster_whisper",
        requirement="faster-whisper",
        options={"compute_type": "int8"},
    ),
    Kind(
        name="whisper.cpp",
        title="whisper.cpp float16",
        module=f"{__name__}.whisper_cpp",
        cls="WhisperCppSubject",
        module_needed="pywhispercpp",
        requirement="pywhispercpp",
        fixed_length=False,
        word_timestamps=False,
        note="its encoder includes cross-attention's K and V, its step is the forward pass without filters and search, "
        "and it transcribes neither random weights nor with word timestamps; "
        "it takes a model of two text layers for a distilled one, which it decodes without timestamps",
    ),
)


UPSTREAM_ON_GPU = replace(
    UPSTREAM, options={**UPSTREAM.options, "precision": "float16"}, note="float16, its default on CUDA"
)
PEERS_ON_GPU = (replace(PEERS[0], title="faster-whisper float16", options={"compute_type": "float16"}),)


def with_precision(name: str) -> Kind:
    """Return this plugin with one of `precision.PRECISIONS`."""
    if name == precision.DEFAULT:
        return MAX
    options = {**MAX.options, "precision": name}
    return replace(MAX, name=f"{MAX.name}-{name}", title=f"{MAX.title} {name}", options=options)


def choose(peers: Sequence[str], device: str, precisions: Sequence[str] | None = None) -> tuple[list[Kind], list[str]]:
    """Return who is measured on a device, and one line for each that is left out, which says why.

    Parameters
    ----------
    peers : Sequence[str]
        names of `PEERS`
    device : str
        as torch names it: "cpu", "cuda:0"
    precisions : Sequence[str]
        of `precision.PRECISIONS`, each of which this plugin is measured with; by default the default,
        and float16 before it on a GPU, where upstream takes that
    """
    of_device = [precision.DEFAULT] if device == "cpu" else ["float16", precision.DEFAULT]
    ours = list(map(with_precision, precisions or of_device))
    wanted = [kind for kind in PEERS if kind.name in peers]
    missing = sorted({kind.requirement for kind in wanted if not is_installed(kind)})
    left_out = [f"{name} is not installed and was left out: {environment.install(name)}" for name in missing]
    wanted = [kind for kind in wanted if is_installed(kind)]
    if device == "cpu":
        return [UPSTREAM, *ours, *wanted], left_out
    chosen = ours
    if (reason := _torch_without_gpu(device)) is None:
        chosen = [UPSTREAM_ON_GPU, *ours]
    else:
        left_out.append(f"{UPSTREAM.title} was left out, and ratios with it: {reason}")
    for kind in wanted:
        on_gpu = next((one for one in PEERS_ON_GPU if one.name == kind.name), None)
        if on_gpu is None:
            left_out.append(f"{kind.title} was left out: it is measured on the CPU alone")
        elif (reason := _ctranslate2_without_gpu(device)) is not None:
            left_out.append(f"{on_gpu.title} was left out: {reason}")
        else:
            chosen.append(on_gpu)
    return chosen, left_out


def _torch_without_gpu(device: str) -> str | None:
    import torch

    if torch.version.cuda is None:
        return f"this build of torch, {torch.__version__}, has no CUDA"
    if torch.device(device).index >= torch.cuda.device_count():
        return f"torch {torch.__version__} sees {torch.cuda.device_count()} GPUs"
    return None


def _ctranslate2_without_gpu(device: str) -> str | None:
    import ctranslate2

    n_gpus: int = ctranslate2.get_cuda_device_count()
    return None if int(device.partition(":")[2]) < n_gpus else f"CTranslate2 sees {n_gpus} GPUs"


def is_installed(kind: Kind) -> bool:
    """Tell whether `kind` can be imported."""
    return importlib.util.find_spec(kind.module_needed) is not None
