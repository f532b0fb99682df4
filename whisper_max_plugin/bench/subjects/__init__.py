"""The subjects of ``whisper-max bench``: which there are; their classes are imported in their own processes only."""

from __future__ import annotations

import importlib.util

from ..protocol import Kind

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


def is_installed(kind: Kind) -> bool:
    """Tell whether `kind` can be imported."""
    return importlib.util.find_spec(kind.module_needed) is not None
