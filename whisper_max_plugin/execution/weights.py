"""A model's tensors as its graphs take them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from max.driver import Buffer
from max.dtype import DType
from torch import Tensor

from whisper_max_plugin.errors import PrecisionError
from whisper_max_plugin.execution.devices import Device
from whisper_max_plugin.execution.processor import multiplies_pairs
from whisper_max_plugin.graphs.types import Types
from whisper_max_plugin.precision import DEFAULT

ROWS_AT_A_TIME = 1024  # of a matrix that is looked at, so that no copy of a whole one is made
MOST = 127  # of an int8: as many steps below zero as above it
CONVOLUTIONS = ("encoder.conv1.weight", "encoder.conv2.weight")


def stored_dtype(state: Mapping[str, Tensor]) -> torch.dtype:
    """Return the type that kernels read the decoder's weights in: float16 if they are all exact in it, else float32.

    OpenAI's checkpoints hold float16, which upstream expands to float32 on the CPU. A fine-tune may hold more.
    """
    for name in _stored(state):
        for part in torch.split(state[name].detach(), ROWS_AT_A_TIME):
            if part.dtype != torch.float16 and not torch.equal(part.half().to(part.dtype), part):
                return torch.float32
    return torch.float16


def chosen_dtype(state: Mapping[str, Tensor], precision: str) -> torch.dtype:
    """Return the type that kernels read the decoder's weights in for a `precision`: any but the default rounds them.

    Raises
    ------
    PrecisionError
        if a weight is too large for it
    """
    if precision == DEFAULT:
        return stored_dtype(state)
    dtype: torch.dtype = getattr(torch, precision)
    for name in _stored(state) if dtype == torch.float16 else []:
        if torch.finfo(dtype).max < float(_largest(state[name].detach())) < float("inf"):
            raise PrecisionError(f"{name} holds values that are too large for float16: leave out precision")
    return dtype


def types_for(state: Mapping[str, Tensor], precision: str, device: Device) -> Types:
    """Return what graphs read and multiply for a `precision`.

    On a GPU those of half width are what all products are of, and keys and values, as with upstream's ``fp16``. On the
    CPU any precision but the default keeps keys and values as float16, which a step reads as it reads the weights; and
    those that round more than float16 round what is multiplied to bfloat16 where the CPU is faster with it.

    Raises
    ------
    PrecisionError
        if a weight is too large for it
    """
    stored = DType[_name(chosen_dtype(state, precision))]
    if precision == DEFAULT:
        return Types(stored)
    if device.computes_in_half:
        return Types(stored, stored, stored, stored)
    in_pairs = precision != "float16" and multiplies_pairs()
    return Types(stored, DType.bfloat16 if in_pairs else DType.float32, DType.float16)


def graph_weights(state: Mapping[str, Tensor], types: Types, *, kernels: bool) -> dict[str, Tensor]:
    """Return what the graphs of a model read, for its `state`: tensors on the CPU, as float32.

    Those that are contiguous float32 on the CPU already are shared with the model, not copied, but for the filters of
    convolutions, whose taps come before their channels. For graphs of `kernels` the decoder's matrices are in another
    layout: as stored, with the query, key and value projections of self-attention in one, and side by side in memory.
    Those of int8 come beside the model's own, with scales.

    Raises
    ------
    PrecisionError
        if a weight is not finite, which int8 has no value for
    """
    stored, matrices = torch_type(types.stored), torch_type(types.matrices)
    converted = _stored(state) if kernels else []
    kept = state if stored == torch.int8 else [name for name in state if name not in converted]
    weights = {name: _own(name, state[name], matrices) for name in kept}
    rounded = [] if stored == torch.float32 else converted
    memory = _Memory([state[name].numel() * stored.itemsize for name in rounded])
    for name in converted:
        if ".attn.query" in name:
            parts = [_float32(state[name.replace("query", part)]) for part in ("query", "key", "value")]
            weights |= _as_stored(_stored_name(name), torch.cat(parts), stored, memory)  # (3 * n_state, n_state)
            query, value = (weights[name.replace("query.weight", f"{part}.bias")] for part in ("query", "value"))
            bias = torch.cat([query, torch.zeros_like(query), value])  # the key has none
            weights[_stored_name(name).replace(".weight", ".bias")] = bias
        elif ".attn.key" not in name and ".attn.value" not in name:
            weights |= _as_stored(_stored_name(name), _float32(state[name]), stored, memory)
    return weights


def addresses(weights: Mapping[str, Buffer], n_layer: int) -> Tensor:
    """Return where the parameters of the decoder's layers lie among `weights`, which have to outlive their use.

    Returns
    -------
    addresses : Tensor, shape = (n_layer, 24), int64
        of each layer's parts, in upstream's order: the weight and the bias, and of products the scales, 0 if there are
        none (``Layer.at`` in kernels/layers.mojo)
    """

    def norm(name: str) -> list[int]:
        return [weights[f"decoder.{name}.{kind}"]._data_ptr() for kind in ("weight", "bias")]

    def product(name: str) -> list[int]:
        bias = weights[f"{'stored' if name.endswith('qkv') else 'decoder'}.{name}.bias"]
        scales = weights.get(f"stored.{name}.scales")
        weight = weights[f"stored.{name}.weight"]
        return [weight._data_ptr(), bias._data_ptr(), 0 if scales is None else scales._data_ptr()]

    rows = []
    for layer in range(n_layer):
        name = f"blocks.{layer}"
        attn = [*norm(f"{name}.attn_ln"), *product(f"{name}.attn.qkv"), *product(f"{name}.attn.out")]
        cross_attn = [
            *norm(f"{name}.cross_attn_ln"),
            *product(f"{name}.cross_attn.query"),
            *product(f"{name}.cross_attn.out"),
        ]
        mlp = [*norm(f"{name}.mlp_ln"), *product(f"{name}.mlp.0"), *product(f"{name}.mlp.2")]
        rows.append([*attn, *cross_attn, *mlp])
    return torch.tensor(rows)


def quantized(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row of `matrix` (n, k), float32, to int8 times one number.

    Returns
    -------
    rounded : Tensor, shape = (n, k), int8
        from -127 to 127; to the nearest, so that the error is at most half a scale
    scales : Tensor, shape = (n,), float32
        the largest magnitude of each row by 127; 1 for a row of zeros
    """
    scales = _largest(matrix, dim=1) / MOST
    scales[scales == 0] = 1
    rounded = torch.empty(matrix.shape, dtype=torch.int8)
    for first in range(0, len(matrix), ROWS_AT_A_TIME):
        rows = slice(first, first + ROWS_AT_A_TIME)
        # no further than 127, since a scale that is a denormal number is not exact
        rounded[rows] = (matrix[rows] / scales[rows, None]).round().clamp(-MOST, MOST)
    return rounded, scales


def _largest(matrix: Tensor, dim: int | None = None) -> Tensor:
    """Return the largest magnitudes along `dim`, or of all; `matrix.abs()` would be a copy of it."""
    dims = tuple(range(matrix.ndim)) if dim is None else (dim,)
    return torch.maximum(matrix.amax(dims), -matrix.amin(dims))


class _Memory:
    """One piece of memory for the weights that a step reads, in huge pages where the system has them for who asks.

    NumPy asks for large arrays, torch for none. With small pages a core looks up a new one after every few rows.

    Parameters
    ----------
    sizes : bytes of each tensor that will lie there
    """

    LINE = 64  # bytes, of which a tensor begins with the first

    def __init__(self, sizes: Iterable[int]) -> None:
        lines = sum(-(-size // self.LINE) for size in sizes)
        memory = torch.from_numpy(np.empty((lines + 1) * self.LINE, dtype=np.uint8))
        self._free = memory[-memory.data_ptr() % self.LINE :]

    def keep(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a copy of a tensor, as `dtype`."""
        n_bytes = tensor.numel() * dtype.itemsize
        place, self._free = self._free[:n_bytes], self._free[-(-n_bytes // self.LINE) * self.LINE :]
        return place.view(dtype).view(tensor.shape).copy_(tensor)


def _as_stored(name: str, matrix: Tensor, stored: torch.dtype, memory: _Memory) -> dict[str, Tensor]:
    if stored == torch.float32:
        return {name: matrix}  # the model's own
    if stored != torch.int8:
        return {name: memory.keep(matrix, stored)}
    rounded, scales = quantized(matrix)
    if not torch.isfinite(scales).all():
        raise PrecisionError(
            f"{name.replace('stored', 'decoder', 1)} holds values that are not finite, for which int8 has none: "
            "leave out precision"
        )
    return {name: memory.keep(rounded, stored), name.replace(".weight", ".scales"): scales}


def _own(name: str, tensor: Tensor, matrices: torch.dtype) -> Tensor:
    own = _float32(tensor)
    if name in CONVOLUTIONS:
        own = own.transpose(1, 2).contiguous()  # (n_out, 3, n_in)
    return own.to(matrices) if name.endswith(".weight") and own.ndim > 1 else own


def torch_type(dtype: DType) -> torch.dtype:
    """Return what torch calls a type of MAX."""
    found: torch.dtype = getattr(torch, dtype.name)
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _float32(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous()


def _stored(state: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the matrices that kernels read."""
    return [
        name
        for name in state
        if name == "decoder.token_embedding.weight"
        or (name.startswith("decoder.blocks") and state[name].ndim == 2 and not _is_of_cross_kv(name))
    ]


def _is_of_cross_kv(name: str) -> bool:
    return name.endswith((".cross_attn.key.weight", ".cross_attn.value.weight"))


def _stored_name(name: str) -> str:
    return name.replace("decoder.", "stored.", 1).replace(".attn.query", ".attn.qkv")
