"""The decoder's key/value cache: preallocated, and a mapping as `install_kv_cache_hooks` promises it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from max.driver import Buffer
from torch import Tensor, nn
from whisper.model import TextDecoder

from whisper_max_plugin.execution.devices import Device
from whisper_max_plugin.execution.engine import CrossKV, Engine
from whisper_max_plugin.execution.step_inputs import SearchInputs, SearchKind, StepInputs
from whisper_max_plugin.execution.weights import torch_type
from whisper_max_plugin.inference.runtime import Runtime


class KVCache(MutableMapping[nn.Module, Tensor]):
    """Keys and values of the tokens decoded so far, and of the audio they attend to.

    Upstream's cache is a dict from each ``key`` and ``value`` projection module to what it has returned so far,
    shape (batch, n_filled, n_state), and callers index it so, for instance to reorder beams. The same reads and
    writes work here. Underneath, each self-attention entry is the front of one preallocated buffer
    (n_text_ctx, batch, n_state) on the graphs' device: time comes first so that the filled front is contiguous, which
    the decoder graph takes as it is and extends in place. Like upstream's, the cache is empty until the first forward
    pass, and the cross-attention entries are computed in that pass and kept.

    To reorder beams, no keys or values are moved: a table says which row holds a sequence's entry at each position.
    The graph ``step`` follows it; for everybody else the rows are put in order first.

    Parameters
    ----------
    decoder : TextDecoder
    runtime : Runtime
        what runs its graphs
    entries : Mapping[nn.Module, Tensor] | None
        what it holds from the start
    n_copies : int
        how many sequences will start from each of those in the first passes, by `rearrange`: they have rows already.
        An attribute as well, 1 from then on.
    """

    def __init__(
        self,
        decoder: TextDecoder,
        runtime: Runtime,
        entries: Mapping[nn.Module, Tensor] | None = None,
        n_copies: int = 1,
    ) -> None:
        self._self_modules = [m for block in decoder.blocks for m in (block.attn.key, block.attn.value)]
        self._cross_modules = [m for block in decoder.blocks for m in (block.cross_attn.key, block.cross_attn.value)]
        self._n_text_ctx = decoder.positional_embedding.shape[0]
        self._n_head = decoder.blocks[0].cross_attn.n_head
        self._n_vocab = decoder.token_embedding.num_embeddings
        self._runtime = runtime
        self.n_copies = n_copies
        self.clear()
        self.update(entries or {})

    def clear(self) -> None:
        """Forget everything, as a dict does: the next pass is a first one."""
        self._storage: dict[nn.Module, Buffer] = {}  # (n_text_ctx, batch, n_state)
        self._n_filled: dict[nn.Module, int] = {}
        self._holders: npt.NDArray[np.int32] | None = None  # (batch, n_text_ctx)
        self._in_order = True  # whether every sequence's entries are in its own row
        self._memory: npt.NDArray[np.int64] | None = None
        self._search: SearchInputs | None = None  # for steps of somebody who searches by other means
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
        self._memory = None

    @property
    def n_audio(self) -> int:
        """The number of windows."""
        return next(iter(self._cross.values())).shape[0]

    @property
    def holders(self) -> npt.NDArray[np.int32]:
        """Which row holds a sequence's entry at each position, (batch, n_text_ctx)."""
        if self._holders is None:
            self._holders = _own_rows(self._batch, self._n_text_ctx)
        return self._holders

    @property
    def memory(self) -> npt.NDArray[np.int64]:
        """Where the entries of each window lie, (n_audio, 1 + 4 * n_text_layer), see the graph ``step``."""
        if self._memory is None:
            own = np.array([self._storage[module]._data_ptr() for module in self._self_modules])
            audio = [self._cross[module] for module in self._cross_modules]
            n_audio, *of_window = audio[0].shape
            windows = np.arange(n_audio)[:, None] * np.prod(of_window) * audio[0].dtype.size_in_bytes
            addresses = np.empty((n_audio, len(own) // 2, 4), dtype=np.int64)
            addresses[:, :, :2] = own.reshape(-1, 2)
            addresses[:, :, 2:] = (windows + [buffer._data_ptr() for buffer in audio]).reshape(n_audio, -1, 2)
            self._memory = np.insert(addresses.reshape(n_audio, -1), 0, self._batch, axis=1)
        return self._memory

    def extend(self, batch: int, n_tokens: int) -> list[Buffer]:
        """Make room for `n_tokens` more and return every front, (n_filled, n_rows, n_state), key 0, value 0, ….

        Raises
        ------
        RuntimeError
            if the batch is not that of the cache
        """
        self._put_in_order()
        n_filled = self.grow(batch * self.n_copies, n_tokens)
        return [self._storage[module][:n_filled, :, :] for module in self._self_modules]

    def next_step(self, tokens: Sequence[int], search: SearchInputs | None = None) -> StepInputs:
        """Make room for one token of each sequence, and return what the graph ``step`` takes.

        Parameters
        ----------
        tokens : the latest of each sequence
        search : what is found to follow them; by default, every token may, and it is not looked at

        Raises
        ------
        RuntimeError
            if there are not as many tokens as sequences in the cache
        """
        self.grow(len(tokens), 1)
        if search is None:
            search = self._search = self._search or SearchInputs(
                self._device, len(tokens), self._n_text_ctx, SearchKind.of_any_token(self._n_vocab)
            )
        step = search.steps_of(self.n_audio, len(self._self_modules) // 2)
        step.place(self, tokens)
        step.push()
        return step

    def advance(self, n_steps: int) -> None:
        """Note that the graph ``step`` has gone on by itself for so many tokens; negative if it went too far."""
        self._n_filled = dict.fromkeys(self._self_modules, self.n_filled + n_steps)

    def rearrange(self, source_indices: list[int]) -> None:
        """Let sequence i continue what was sequence ``source_indices[i]``, as beam search asks after a step."""
        n_filled, batch, held = self.n_filled, len(source_indices), self._batch
        source_indices = [index * self.n_copies for index in source_indices]
        self._in_order, self.n_copies = False, 1
        if batch == held:
            self.holders[:, :n_filled] = self.holders[source_indices, :n_filled]
            return
        holders = _own_rows(batch, self._n_text_ctx)
        holders[:, :n_filled] = self.holders[source_indices, :n_filled]
        self._holders, self._search = holders, None
        if batch < held:
            self._put_in_order()
        else:  # further sequences start from the rows that there are
            for module, storage in self._storage.items():
                self._storage[module] = self._stored(self._device.get(storage[:n_filled, :, :]), batch)

    @property
    def _device(self) -> Device:
        assert self.engine is not None, "what an empty cache will hold lies nowhere yet"
        return self.engine.device

    @property
    def _batch(self) -> int:
        return next(iter(self._storage.values())).shape[1]

    def grow(self, batch: int, n_tokens: int) -> int:
        """Make room for `n_tokens` more; return how many there are then.

        Raises
        ------
        RuntimeError
            if the batch is not that of the cache
        """
        n_filled = self.n_filled + n_tokens
        for module in self._self_modules:
            if module not in self._storage:
                self._storage[module] = self._empty(batch, module.out_features)
                self._memory = None
        if self._batch != batch:
            raise RuntimeError(f"the kv_cache holds {self._batch} sequences, but {batch} were given")
        self._n_filled = dict.fromkeys(self._self_modules, n_filled)
        return n_filled

    def _put_in_order(self) -> None:
        """Move each sequence's entries to its own row."""
        if self._in_order:
            return
        n_filled = self.n_filled
        rows = torch.from_numpy(self.holders[:, :n_filled]).to(torch.int64).T  # (n_filled, batch)
        positions = torch.arange(n_filled)[:, None]
        for module, storage in self._storage.items():
            self._storage[module] = self._stored(self._device.get(storage)[positions, rows], rows.shape[1])
        self._holders, self._in_order = None, True

    def _stored(self, filled: Tensor, batch: int) -> Buffer:
        """Return new memory for entries of a batch, of which `filled` (n_filled, rows, n_state) are the first."""
        n_filled, rows, n_state = filled.shape
        self._memory = None
        storage = self._empty(batch, n_state)
        if self._device.shares_memory:
            self._device.get(storage)[:n_filled, :rows] = filled
        elif n_filled > 0:
            front = torch.zeros(n_filled, batch, n_state, dtype=torch_type(storage.dtype))
            front[:, :rows] = filled
            self._device.write(storage[:n_filled, :, :], front)
        return storage

    def _empty(self, batch: int, n_state: int) -> Buffer:
        assert self.engine is not None, "the type of entries is the engine's"
        return self._device.empty((self._n_text_ctx, batch, n_state), self.engine.types.cache)

    # -- the mapping that upstream's callers see -----------------------------------------------------------------

    def __getitem__(self, module: nn.Module) -> Tensor:
        self._put_in_order()
        if module in self._storage:
            filled = self._storage[module][: self._n_filled[module], :, :]
            return self._device.get(filled).transpose(0, 1).float()
        heads = self._device.get(self._cross[module])
        return heads.transpose(1, 2).flatten(2).float()  # (n_audio, n_audio_ctx, n_state)

    def __setitem__(self, module: nn.Module, x: Tensor) -> None:
        self._put_in_order()
        self._search = self._memory = self._holders = None
        self.n_copies = 1  # rows are those that are given
        self.engine = self.engine or self._runtime.engine(x.dtype)
        x = x.detach().to("cpu", torch_type(self.engine.types.cache))
        if module in self._self_modules:
            self._storage[module] = self._stored(x.transpose(0, 1), x.shape[0])  # a copy: x may be a view of the old
            self._n_filled[module] = x.shape[1]
        elif module in self._cross_modules:
            heads = x.view(*x.shape[:2], self._n_head, -1).transpose(1, 2)
            self._cross[module] = self._device.put(heads)
        else:
            raise KeyError(module)

    def __delitem__(self, module: nn.Module) -> None:
        raise TypeError("single entries of an accelerated model's kv_cache cannot be deleted; clear() it instead")

    def __iter__(self) -> Iterator[nn.Module]:
        for i in range(0, len(self._self_modules), 2):  # layer by layer, as upstream's passes fill it
            yield from (module for module in self._self_modules[i : i + 2] if module in self._storage)
            yield from (module for module in self._cross_modules[i : i + 2] if module in self._cross)

    def __len__(self) -> int:
        return len(self._storage) + len(self._cross)

    def copy(self) -> dict[nn.Module, Tensor]:
        """Return the entries as they are now, in a dict; `update` brings them back."""
        return dict(self)

    def __or__(self, other: Mapping[nn.Module, Tensor]) -> dict[nn.Module, Tensor]:
        return {**self, **other}

    def __ior__(self, other: Mapping[nn.Module, Tensor]) -> KVCache:
        self.update(other)
        return self


def _own_rows(batch: int, n_text_ctx: int) -> npt.NDArray[np.int32]:
    """Return the table in which every sequence's entries are in its own row, (batch, n_text_ctx)."""
    return np.repeat(np.arange(batch, dtype=np.int32)[:, None], n_text_ctx, axis=1)
