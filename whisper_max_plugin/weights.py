"""A model's tensors as its graphs take them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

ROWS_AT_A_TIME = 1024  # of a matrix that is looked at, so that no copy of a whole one is made


def stored_dtype(state: Mapping[str, Tensor]) -> torch.dtype:
    """Return the type that kernels read the decoder's weights in: float16 if they are all exact in it, else float32.

    OpenAI's checkpoints hold float16, which upstream expands to float32 on the CPU. A fine-tune may hold more.
    """
    for name in _stored(state):
        for part in torch.split(state[name].detach(), ROWS_AT_A_TIME):
            if part.dtype != torch.float16 and not torch.equal(part.half().to(part.dtype), part):
                return torch.float32
    return torch.float16


def graph_weights(state: Mapping[str, Tensor], stored: torch.dtype, *, kernels: bool) -> dict[str, Tensor]:
    """Return what the graphs of a model read, for its `state`: tensors on the CPU, as float32.

    Those that are contiguous float32 on the CPU already are shared with the model, not copied. For graphs of `kernels`
    the decoder's matrices are in another layout: as `stored`, with the query, key and value projections of
    self-attention in one.
    """
    converted = _stored(state) if kernels else []
    weights = {name: _float32(tensor) for name, tensor in state.items() if name not in converted}
    for name in converted:
        if ".attn.query" in name:
            parts = [_float32(state[name.replace("query", part)]) for part in ("query", "key", "value")]
            weights[_stored_name(name)] = torch.cat(parts).to(stored)  # (3 * n_state, n_state)
            query, value = (weights[name.replace("query.weight", f"{part}.bias")] for part in ("query", "value"))
            bias = torch.cat([query, torch.zeros_like(query), value])  # the key has none
            weights[_stored_name(name).replace(".weight", ".bias")] = bias
        elif ".attn.key" not in name and ".attn.value" not in name:
            weights[_stored_name(name)] = _float32(state[name]).to(stored)
    return weights


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
