"""The graph of a step on a GPU, operation by operation, whose kernels the interpreter of PTX runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from max.graph import DeviceRef, Module
from torch import Tensor
from whisper.model import ModelDimensions

from whisper_max_plugin.graphs import Types, kernel_library
from whisper_max_plugin.graphs.step import build_step
from whisper_max_plugin.graphs.step_kernels import KEYS_OF_A_BLOCK, TOKENS_OF_A_BLOCK

from .fixtures import Kernels, blocks, run_linear, unset

HEAD_DIM = 64
_WEIGHT = re.compile(r'(%\w+) = mo\.constant\.external \[name = "([^"]+)"')
_NUMBER = re.compile(r"(%\w+) = mo\.constant <#M\.dense_array<(\d+)>")
_LOAD = re.compile(r"(%\w+), %\w+ = rmo\.mo\.mutable\.load\((%\w+),")
_OPERATION = re.compile(r'(%\w+)(?::\d+)? = mo\.custom \[symbol = "whisper_(\w+)".*?\]\((.*?)\) :')

Value = Any
"""A tensor, which stands for a buffer too, a table of addresses, or a number."""


_library = cache(kernel_library)


class StepGraph:
    """A step that computes what the graph says, on what a GPU would run.

    Parameters
    ----------
    kernels
    dims, types
        what the graph is built for
    weights
        as `weights.graph_weights` returns them
    """

    def __init__(self, kernels: Kernels, dims: ModelDimensions, types: Types, weights: dict[str, Tensor]) -> None:
        module = Module()
        build_step(module, dims, types, DeviceRef.GPU(), _library())
        self._text: str = module._to_mlir_str()
        self._kernels, self._weights = kernels, weights
        self._half = types.are_half
        self._stored = types.stored.name
        self._of_kv = types.cache.name
        self._n_head = dims.n_text_head
        self.n_operations = 0

    def run(self, inputs: Sequence[Value]) -> None:
        """Run the operations in the graph's order, on what it takes, of which it writes to buffers."""
        values: dict[str, Value] = {f"%arg{i}": each for i, each in enumerate(inputs)}
        for line in self._text.splitlines():
            if found := _WEIGHT.search(line):
                values[found[1]] = self._weights[found[2]]
            elif found := _NUMBER.search(line):
                values[found[1]] = int(found[2])
            elif found := _LOAD.search(line):
                values[found[1]] = values[found[2]]
            elif found := _OPERATION.search(line):
                self.n_operations += 1
                operation: Callable[..., list[Value]] = getattr(self, f"_{found[2]}")
                results = operation(*(values[each] for each in found[3].split(", ") if each in values))
                if results:
                    values[found[1]] = results[0]
                values |= {f"{found[1]}#{i}": each for i, each in enumerate(results)}

    def _embed(self, tokens: Tensor, positions: Tensor, of_tokens: Tensor, of_positions: Tensor) -> list[Value]:
        n_state = of_tokens.shape[1]
        x, at = unset(len(positions), n_state), torch.full_like(positions, -1)
        inputs, settled = [tokens, positions, of_tokens, of_positions], [of_tokens, of_positions]
        self._kernels.run(f"embed {self._stored}", len(positions), 256, [x, at], inputs, n_state, settled=settled)
        return [x, at]

    def _norm_linear(self, x: Tensor, norm: Tensor, norm_bias: Tensor, w: Tensor, bias: Tensor) -> list[Value]:
        return self._linear("norm bias", unset(len(x), len(w)), x, [norm, norm_bias], w, bias, x)

    def _norm_linear_gelu(self, x: Tensor, norm: Tensor, norm_bias: Tensor, w: Tensor, bias: Tensor) -> list[Value]:
        return self._linear("norm gelu", unset(len(x), len(w)), x, [norm, norm_bias], w, bias, x)

    def _linear_add(self, x: Tensor, w: Tensor, bias: Tensor, residual: Tensor) -> list[Value]:
        return self._linear("add", unset(len(x), len(w)), x, [x, x], w, bias, residual)

    def _norm_project(self, logits: Tensor, x: Tensor, norm: Tensor, norm_bias: Tensor, w: Tensor) -> list[Value]:
        return self._linear("norm", logits, x, [norm, norm_bias], w, x, x)

    def _linear(
        self, kind: str, y: Tensor, x: Tensor, norm: list[Tensor], w: Tensor, bias: Tensor, residual: Tensor
    ) -> list[Value]:
        assert len(x) <= 5, "more rows take several launches"
        name = f"tensor linear {kind} {self._stored}"
        if not self._half:
            name = f"linear {kind} {self._stored} {1 if len(x) == 1 else 5}"
        return [run_linear(self._kernels, name, y, x, w, bias, residual, *norm)]

    def _self_attention(
        self, qkv: Tensor, memory: Value, holders: Tensor, positions: Tensor, layer: int
    ) -> list[Value]:
        batch, n_state = len(qkv), qkv.shape[1] // 3
        y, inputs = unset(batch, n_state), [qkv, memory, holders, positions]
        sizes = len(memory[0]), layer, batch // len(memory), holders.shape[1], n_state
        name, grid = f"self_attention {self._of_kv} {HEAD_DIM}", (batch, n_state // HEAD_DIM)
        self._kernels.run(name, grid, 256, [y], inputs, *sizes, settled=inputs[1:])
        return [y]

    def _cross_attention_parts(self, q: Tensor, memory: Value, layer: int, n_keys: int) -> list[Value]:
        n_audio, n_head = len(memory), self._n_head
        n_group, n_parts = len(q) // n_audio, blocks(n_keys, KEYS_OF_A_BLOCK)
        parts = unset(n_audio * n_head, n_parts, n_group, HEAD_DIM + 2)
        sizes = len(memory[0]), layer, 0, n_group, n_head, n_keys
        name, grid = f"cross_attention {self._of_kv} {1 if n_group == 1 else 5}", (n_parts, n_audio * n_head)
        self._kernels.run(name, grid, 256, [parts], [q, memory], *sizes, settled=[memory])
        return [parts]

    def _cross_attention_merge(self, parts: Tensor) -> list[Value]:
        n_heads, n_parts, n_group, _ = parts.shape  # of all windows
        y = unset(n_heads // self._n_head * n_group, self._n_head * HEAD_DIM)
        self._kernels.run("merge", n_heads, 256, [y], [parts], n_group, self._n_head, n_parts)
        return [y]

    def _search_parts(self, logits: Tensor, suppressed: Tensor, *allowed: Tensor) -> list[Value]:
        batch, n_vocab = logits.shape
        n_parts = blocks(n_vocab, TOKENS_OF_A_BLOCK)
        totals, best = unset(batch, n_parts, 2, 2), unset(batch, n_parts, 2, 1)
        tokens = torch.full((batch, n_parts, 2, 1), -1, dtype=torch.int32)
        outputs, inputs, grid = [totals, best, tokens, logits], [suppressed, *allowed], (n_parts, batch)
        self._kernels.run("search parts", grid, 256, outputs, inputs, n_vocab, len(suppressed), 1, settled=inputs)
        return [totals, best, tokens]

    def _search_merge(self, ids: Tensor, logprobs: Tensor, logits: Tensor, *inputs: Tensor) -> list[Value]:
        *_, temperatures = inputs
        outputs, sizes = [ids, logprobs, logits], (logits.shape[1], 1)
        self._kernels.run("search merge", len(ids), 256, outputs, inputs, *sizes, settled=[temperatures])
        return []

    def _follow(self, *buffers: Tensor) -> list[Value]:
        *written, ids, logprobs, rules = buffers
        self._kernels.run("follow", 1, 32, written, [ids, logprobs, rules], len(ids), 1, settled=[rules])
        return []
