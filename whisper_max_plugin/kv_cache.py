"""The decoder's key/value cache: preallocated, and a mapping as `install_kv_cache_hooks` promises it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING

import torch
from max.driver import Buffer
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack

if TYPE_CHECKING:
    from whisper.model import TextDecoder

    from .engine import CrossKV, Engine


class KVCache(MutableMapping[nn.Module, Tensor]):
    """Keys and values of the tokens decoded so far, and of the audio they attend to.

    Upstream's cache is a dict from each ``key`` and ``value`` projection module to what it has returned so far,
    shape (batch, n_filled, n_state), and callers index it so, for instance to reorder beams. The same reads and
    writes work here. Underneath, each self-attention entry is the front of one preallocated tensor
    (n_text_ctx, batch, n_state): time comes first so that the filled front is contiguous, which the decoder graph
    takes as it is and extends in place. Like upstream's, the cache is empty until the first forward pass, and
    the cross-attention entries are computed in that pass and kept.
    """

    def __init__(self, decoder: TextDecoder, entries: Mapping[nn.Module, Tensor] | None = None) -> None:
        self._self_modules = [m for block in decoder.blocks for m in (block.attn.key, block.attn.value)]
        self._cross_modules = [m for block in decoder.blocks for m in (block.cross_attn.key, block.cross_attn.value)]
        self._n_text_ctx = decoder.positional_embedding.shape[0]
        self._n_head = decoder.blocks[0].cross_attn.n_head
        self.clear()
        self.update(entries or {})

    def clear(self) -> None:
        """Forget everything, as a dict does: the next pass is a first one."""
        self._storage: dict[nn.Module, Tensor] = {}  # (n_text_ctx, batch, n_state)
        self._spare: dict[nn.Module, Tensor] = {}  # what a reorder copies into, before the two swap
        self._n_filled: dict[nn.Module, int] = {}
        self.engine: Engine | None = None  # what computed the entries, from the first pass on
        self.checked_modules: list[nn.Module] = []  # the decoder's, once they were found to be upstream's
        self._cross: dict[nn.Module, Buffer] = {}  # (n_audio, n_head, n_audio_ctx, head_dim)

    # -- what the forward pass uses ------------------------------------------------------------------------------

    @property
    def n_filled(self) -> int:
        """The number of tokens in the cache.

        Raises
        ------
        RuntimeError
            if entries were replaced so that their lengths differ
        """
        lengths = set(self._n_filled.values())
        if len(lengths) > 1:
            raise RuntimeError(f"the kv_cache's entries differ in length: {sorted(lengths)}; replace all or none")
        return lengths.pop() if lengths else 0

    @property
    def cross_kv(self) -> CrossKV | None:
        """The cross-attention entries as graphs take them, key 0, value 0, …; None before the first pass."""
        if len(self._cross) < len(self._cross_modules):
            return None
        return [self._cross[module] for module in self._cross_modules]

    @cross_kv.setter
    def cross_kv(self, buffers: CrossKV) -> None:
        self._cross = dict(zip(self._cross_modules, buffers, strict=True))

    def extend(self, batch: int, n_tokens: int) -> list[Tensor]:
        """Make room for `n_tokens` more and return every front, (n_filled, batch, n_state), key 0, value 0, ….

        Raises
        ------
        RuntimeError
            if the batch is not that of the cache
        """
        n_filled = self.n_filled + n_tokens
        for module in self._self_modules:
            if module not in self._storage:
                self._storage[module] = torch.empty(self._n_text_ctx, batch, module.out_features)
            if (held := self._storage[module].shape[1]) != batch:
                raise RuntimeError(f"the kv_cache holds {held} sequences, but {batch} were given")
        self._n_filled = dict.fromkeys(self._self_modules, n_filled)
        return [self._storage[module][:n_filled] for module in self._self_modules]

    def rearrange(self, source_indices: list[int]) -> None:
        """Let sequence i continue what was sequence ``source_indices[i]``, as beam search asks after a step."""
        indices = torch.tensor(source_indices)
        for module, storage in self._storage.items():
            n_filled = self._n_filled[module]
            spare = self._spare.get(module)
            if spare is None or spare.shape[1] != len(source_indices):
                spare = storage.new_empty(self._n_text_ctx, len(source_indices), storage.shape[2])
            torch.index_select(storage[:n_filled], 1, indices, out=spare[:n_filled])
            self._storage[module], self._spare[module] = spare, storage

    # -- the mapping that upstream's callers see -----------------------------------------------------------------

    def __getitem__(self, module: nn.Module) -> Tensor:
        if module in self._storage:
            return self._storage[module][: self._n_filled[module]].transpose(0, 1)
        heads = from_dlpack(self._cross[module])
        return heads.transpose(1, 2).flatten(2)  # (n_audio, n_audio_ctx, n_state)

    def __setitem__(self, module: nn.Module, x: Tensor) -> None:
        x = x.detach().to("cpu", torch.float32)
        if module in self._self_modules:
            batch, n_filled, n_state = x.shape
            # new memory, since x may be a view of the old
            self._storage[module] = torch.empty(self._n_text_ctx, batch, n_state)
            self._storage[module][:n_filled] = x.transpose(0, 1)
            self._n_filled[module] = n_filled
        elif module in self._cross_modules:
            heads = x.view(*x.shape[:2], self._n_head, -1).transpose(1, 2)
            self._cross[module] = Buffer.from_dlpack(heads.contiguous())
        else:
            raise KeyError(module)

    def __delitem__(self, module: nn.Module) -> None:
        raise TypeError("single entries of an accelerated model's kv_cache cannot be deleted; clear() it instead")

    def __iter__(self) -> Iterator[nn.Module]:
        yield from self._storage
        yield from self._cross

    def __len__(self) -> int:
        return len(self._storage) + len(self._cross)
