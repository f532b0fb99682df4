"""What training finds: a graph has no backward pass, and says so, where else nothing would be learned in silence."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


class _Graph(torch.autograd.Function):
    """A graph's result, as autograd sees it."""

    @staticmethod
    def forward(_ctx: Any, result: Tensor, _source: Tensor) -> Tensor:
        return result.view_as(result)

    @staticmethod
    def backward(_ctx: Any, *_: Tensor) -> None:
        raise RuntimeError(
            'compiled graphs have no backward pass: load the model with backend="torch" to train it, or run it in '
            "torch.no_grad() to train something else on what it returns"
        )


def without_backward(result: Tensor, x: Tensor, module: nn.Module) -> Tensor:
    """Return a graph's result, which needs gradients where upstream's would, and refuses them when they are computed.

    Parameters
    ----------
    result : Tensor
    x : Tensor
        what the graph took
    module : nn.Module
        whose pass it was
    """
    if not torch.is_grad_enabled():
        return result
    source = next((source for source in chain([x], module.parameters()) if source.requires_grad), None)
    return result if source is None else _Graph.apply(result, source)  # type: ignore[no-untyped-call]
