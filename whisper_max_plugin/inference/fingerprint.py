"""Tells whether a model's tensors are still what graphs were bound to; asked several times for each window."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

SAMPLES = 16  # of each tensor, evenly spread
RAW = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # what NumPy has for any type, by its size


class Fingerprint:
    """What modules held when this was made: which submodules and tensors, where those lay, and what was in them.

    Writes in place are seen by torch's version counters, except those through ``.data``; for these a few values of each
    tensor are compared, bit by bit, since to compare all would take a tenth of an encoder run.

    Parameters
    ----------
    roots : modules, with all that is inside
    """

    def __init__(self, roots: Iterable[nn.Module]) -> None:
        modules = list(chain.from_iterable(root.modules() for root in roots))
        self._holders: list[dict[str, Any]] = [
            holder for module in modules for holder in (module._parameters, module._buffers, module._modules)
        ]
        self._held = list(self._values())  # kept, so that nothing else is ever in the place of one of them
        self._ids = list(map(id, self._held))
        self._names = list(chain.from_iterable(self._holders))
        self._tensors = [x for x in self._held if isinstance(x, Tensor)]
        self._counted = [x for x in self._tensors if not x.is_inference()]  # others have no version
        self._places = [(x.data_ptr(), x.shape) for x in self._tensors]
        self._versions = [x._version for x in self._counted]
        self._elsewhere = [x.detach() for x in self._tensors if not _is_at_hand(x)]
        self._views: dict[int, list[npt.NDArray[Any]]] = {}  # of the others, by the size of a value
        for x in self._tensors:
            if _is_at_hand(x):
                view = _sample(x.detach()).view(RAW[x.element_size()]).numpy()
                self._views.setdefault(x.element_size(), []).append(view)
        self._samples = self._read()

    def fits(self) -> bool:
        """Tell whether nothing has changed."""
        return (
            list(map(id, self._values())) == self._ids
            and list(chain.from_iterable(self._holders)) == self._names
            and [(x.data_ptr(), x.shape) for x in self._tensors] == self._places
            and [x._version for x in self._counted] == self._versions
            and all(map(np.array_equal, self._read(), self._samples))
        )

    def _values(self) -> Iterator[Any]:
        return chain.from_iterable(holder.values() for holder in self._holders)

    def _read(self) -> list[npt.NDArray[Any]]:
        """Return the samples; the arrays at hand are views, of the values as they are now."""
        copied = [_sample(x).to("cpu").contiguous().view(torch.uint8).numpy() for x in self._elsewhere]
        return [*map(np.concatenate, self._views.values()), *copied]


def _is_at_hand(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.layout == torch.strided and x.is_contiguous() and not x.is_complex()


def _sample(x: Tensor) -> Tensor:
    return x.reshape(-1)[:: max(1, x.numel() // SAMPLES)]
