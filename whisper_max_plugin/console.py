"""Tables and sizes, as the parts of ``whisper-max`` print them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def aligned(rows: Sequence[Sequence[str]], *, figures: bool = False) -> list[str]:
    """Return rows of cells as lines with equal column widths; `figures`, behind the first column, to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    padded = [
        [
            cell.rjust(width) if figures and column > 0 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    return ["  ".join(row).rstrip() for row in padded]


def layers_of_model(dims: Mapping[str, int]) -> str:
    """Return the numbers of layers, and their widths, in words; `dims` are upstream's `ModelDimensions`."""
    encoder = f"encoder {dims['n_audio_layer']} x {dims['n_audio_state']}"
    return f"{encoder}, decoder {dims['n_text_layer']} x {dims['n_text_state']}"


def size_of_model(dims: Mapping[str, int]) -> str:
    """Return upstream's `ModelDimensions` in words."""
    return f"{dims['n_mels']} mels, {layers_of_model(dims)}, {dims['n_vocab']} tokens"
