"""The heads whose cross-attention tells the times of words, in the form that `Whisper.set_alignment_heads` takes."""

from __future__ import annotations

import base64
import gzip
import zlib
from collections.abc import Iterable

import numpy as np
from whisper.model import ModelDimensions

from whisper_max_plugin.errors import CheckpointError

KEY = "alignment_heads"  # of a `.pt` that was converted; upstream reads 'dims' and 'model_state_dict' alone


def dump(heads: Iterable[tuple[int, int]], dims: ModelDimensions) -> str:
    """Return the pairs of layer and head as upstream writes them: a boolean array, gzip, base85."""
    mask = np.zeros((dims.n_text_layer, dims.n_text_head), dtype=bool)
    for layer, head in heads:
        mask[layer, head] = True
    return base64.b85encode(gzip.compress(mask.tobytes(), mtime=0)).decode()


def check(dumped: str, dims: ModelDimensions, *, source: str) -> None:
    """Check that `dumped` is what `dump` returns for a model of `dims`.

    Raises
    ------
    CheckpointError
        if it is damaged, or of another model
    """
    n_heads = dims.n_text_layer * dims.n_text_head
    unpacker = zlib.decompressobj(wbits=31)
    try:
        mask = unpacker.decompress(base64.b85decode(dumped), n_heads + 1)  # and not whatever it may unpack to
    except (ValueError, zlib.error):
        mask = b""
    if len(mask) != n_heads or not unpacker.eof or unpacker.unused_data:
        raise CheckpointError(f"{source} has damaged '{KEY}', or another model's: convert the checkpoint again")
