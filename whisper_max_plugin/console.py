"""Tables and sizes, as the parts of ``whisper-max`` print them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with equal column widths."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return ["  ".join(row).rstrip() for row in padded]


def size_of_model(dims: Mapping[str, int]) -> str:
    """Upstream's `ModelDimensions` in words."""
    encoder = f"encoder {dims['n_audio_layer']} x {dims['n_audio_state']}"
    decoder = f"decoder {dims['n_text_layer']} x {dims['n_text_state']}"
    return f"{dims['n_mels']} mels, {encoder}, {decoder}, {dims['n_vocab']} tokens"
