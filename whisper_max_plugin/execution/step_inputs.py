"""What the graphs ``search`` and ``step`` take: memory that stays where it is, while the values in it change."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from max.driver import Buffer

from whisper_max_plugin.execution.devices import Device, Mirrors, push_all
from whisper_max_plugin.execution.replay import Replay

Ranges = tuple[int, int, int, int]
"""The tokens t that a sequence may choose: text, [0] <= t < [1], and timestamps, [2] <= t < [3]."""

NO_STAMP = -1
NO_TOKEN = -1


@dataclass(frozen=True)
class SearchKind:
    """What searches have in common that run together.

    Attributes
    ----------
    n_vocab : int
    n_candidates : int
        tokens to be found for each sequence
    suppressed : tokens that cannot be chosen
    eot, timestamp_begin : int
        the token that ends a text, or `NO_TOKEN`, and the first timestamp, or `n_vocab`
    """

    n_vocab: int
    n_candidates: int
    suppressed: tuple[int, ...]
    eot: int
    timestamp_begin: int

    @classmethod
    def of_any_token(cls, n_vocab: int, n_candidates: int = 1, suppressed: Sequence[int] = ()) -> SearchKind:
        """Return the kind in which no token means anything."""
        return cls(n_vocab, n_candidates, tuple(suppressed), NO_TOKEN, n_vocab)


class SearchInputs:
    """What is known of each sequence, and what is found to follow it.

    Parameters
    ----------
    device : Device
    batch : int
    n_text_ctx : int
    kind : SearchKind

    Attributes
    ----------
    batch, kind
    found : Mirrors
        what the latest search found: `ids` and `logprobs`
    ids, logprobs : Mirror, shape = (batch, n_candidates)
        each sequence's best next tokens, the best first, and their log-probabilities; -inf and NaN where there are none
    suppressed : Buffer
    logits : Buffer, shape = (batch, n_vocab)
        what a step writes
    filtered : Buffer, shape = (batch, n_vocab)
        the logits of the latest step, -inf where a token cannot be chosen
    allowed : Mirrors
        what the next one may find, and how: `ranges`, `stamps`, `temperatures` and `seeds`
    ranges : Mirror, shape = (batch, 4)
        the `Ranges` of each sequence
    stamps : Mirror, shape = (batch)
        the latest timestamp of each sequence, or `NO_STAMP`
    temperatures : Mirror, shape = (batch)
        0 where the best tokens are to be found; above, they are samples
    seeds : Mirror, shape = (batch)
        of the noise by which the next ones are taken; a step leaves others for the step that follows
    chosen, chosen_logprobs : Mirror, shape = (n_text_ctx, batch)
        the best token behind each position, as the steps have left it
    """

    def __init__(self, device: Device, batch: int, n_text_ctx: int, kind: SearchKind) -> None:
        n_vocab, k = kind.n_vocab, kind.n_candidates
        self.batch = batch
        self.kind = kind
        self.found = Mirrors(device, np.zeros((batch, k), dtype=np.int64), np.zeros((batch, k), dtype=np.float32))
        self.ids, self.logprobs = self.found.each
        self.logits = self.filtered = device.empty((batch, n_vocab))
        any_token = np.full((batch, 4), (0, n_vocab, n_vocab, n_vocab), dtype=np.int64)
        none, no_stamps = np.zeros(batch, dtype=np.int64), np.full(batch, NO_STAMP, dtype=np.int64)
        self.allowed = Mirrors(device, any_token, no_stamps, none.astype(np.float32), none)
        self.ranges, self.stamps, self.temperatures, self.seeds = self.allowed.each
        by_position = n_text_ctx, batch
        self._best = Mirrors(device, np.zeros(by_position, dtype=np.int64), np.zeros(by_position, dtype=np.float32))
        self.chosen, self.chosen_logprobs = self._best.each
        self.suppressed = device.put(suppressed_tokens(kind.suppressed))
        self._rules = device.put(torch.tensor([kind.eot, kind.timestamp_begin, n_vocab]))
        self._device = device
        self._n_text_ctx = n_text_ctx
        self._steps: dict[int, StepInputs] = {}

    def steps_of(self, n_audio: int, n_layer: int) -> StepInputs:
        """Return what the graph ``step`` takes for these sequences, of so many windows: always the same memory."""
        if n_audio not in self._steps:
            self._steps[n_audio] = StepInputs(n_audio, n_layer, self._n_text_ctx, self, self._device)
        return self._steps[n_audio]

    @property
    def buffers(self) -> list[Buffer]:
        """What the graph ``step`` takes of them, in its order."""
        state = self.ranges, self.stamps, self.seeds, self.chosen, self.chosen_logprobs
        buffers = [self.ids.buffer, self.logprobs.buffer, self.logits, *(mirror.buffer for mirror in state)]
        return [*buffers, self.suppressed, self.temperatures.buffer, self._rules]

    def pull(self, n_steps: int = 1) -> None:
        """Bring to the host what the latest search has found or, of several steps, the best token of each."""
        self.filtered = self.logits
        (self.found if n_steps == 1 else self._best).pull()

    def copy_allowed_from(self, other: SearchInputs, rows: slice) -> None:
        """Let `rows` be the sequences of another search, and be found what theirs may be."""
        for mine, its in zip(self.allowed.each, other.allowed.each, strict=True):
            mine.array[rows] = its.array

    def copy_found_to(self, other: SearchInputs, rows: slice, n_steps: int) -> None:
        """Copy what `n_steps` steps have found for `rows` to the search whose sequences they are, on the host."""
        other.filtered = self.logits[rows, :]
        if n_steps == 1:
            other.ids.array[:], other.logprobs.array[:] = self.ids.array[rows], self.logprobs.array[rows]
        else:
            other.chosen.array[:] = self.chosen.array[:, rows]
            other.chosen_logprobs.array[:] = self.chosen_logprobs.array[:, rows]


class SearchPool:
    """Memory of searches that have ended, for others of their kind: so a GPU can go on with what it has recorded of it.

    Parameters
    ----------
    device : Device
    n_text_ctx : int
    """

    N_KEPT = 8

    def __init__(self, device: Device, n_text_ctx: int) -> None:
        self._device = device
        self._n_text_ctx = n_text_ctx
        self._free: deque[SearchInputs] = deque(maxlen=self.N_KEPT)  # the oldest are let go

    def take(self, batch: int, kind: SearchKind) -> SearchInputs:
        """Return memory for as many sequences, which nobody else has."""
        for inputs in tuple(self._free):
            if inputs.kind == kind and inputs.batch == batch:
                try:
                    self._free.remove(inputs)
                except ValueError:
                    continue  # another thread was faster
                return inputs
        return SearchInputs(self._device, batch, self._n_text_ctx, kind)

    def give_back(self, inputs: SearchInputs) -> None:
        """Let others have `inputs`."""
        self._free.append(inputs)


class Cache(Protocol):
    """What a step has to know of the windows that it continues, and of the tokens so far.

    Attributes
    ----------
    n_audio : int
        windows
    n_filled : int
        tokens of each sequence, the step's own included
    holders : shape = (batch, n_text_ctx), int32
        which row holds a sequence's entry at each position
    memory : shape = (n_audio, 1 + 4 * n_text_layer), int64
        where the entries of each window lie, see the graph ``step``
    """

    @property
    def n_audio(self) -> int: ...

    @property
    def n_filled(self) -> int: ...

    @property
    def holders(self) -> npt.NDArray[np.int32]: ...

    @property
    def memory(self) -> npt.NDArray[np.int64]: ...


class StepInputs:
    """What the graph ``step`` takes for some windows, of one decode or of several.

    Parameters
    ----------
    n_audio : int
        windows, of as many sequences each
    n_layer, n_text_ctx : int
        of the decoder
    search : SearchInputs
        of all of their sequences
    device : Device
    """

    def __init__(self, n_audio: int, n_layer: int, n_text_ctx: int, search: SearchInputs, device: Device) -> None:
        batch = search.batch
        self.search = search
        self.replay: Replay | None = None  # made by who runs the graph
        latest = np.zeros((n_audio, batch // n_audio), dtype=np.int64)
        self._start = Mirrors(device, latest, np.zeros(batch, dtype=np.int64))
        self._tokens, self._positions = self._start.each
        of_windows = np.zeros((n_audio, 1 + 4 * n_layer), dtype=np.int64)
        self._places = Mirrors(device, np.zeros((batch, n_text_ctx), dtype=np.int32), of_windows)
        self._holders, self._memory = self._places.each
        self._moved = False
        mirrors = self._tokens, self._positions, self._holders, self._memory
        tokens, positions, holders, memory = (mirror.buffer for mirror in mirrors)
        self.buffers = [tokens, positions, *search.buffers, holders, memory]

    def place(self, cache: Cache, tokens: Sequence[int], first: int = 0) -> None:
        """Write what the next step continues; without it, a step continues what the one before has chosen.

        Parameters
        ----------
        cache : of windows that come to lie from `first` on
        tokens : the latest of each of their sequences, for which the cache has room
        first : int
        """
        n_group = self._tokens.array.shape[1]
        windows = slice(first, first + cache.n_audio)
        rows = slice(windows.start * n_group, windows.stop * n_group)
        self._tokens.array[windows] = np.reshape(tokens, (-1, n_group))
        self._positions.array[rows] = cache.n_filled - 1
        for mirror, place, values in ((self._holders, rows, cache.holders), (self._memory, windows, cache.memory)):
            if not np.array_equal(mirror.array[place], values):
                mirror.array[place] = values
                self._moved = True

    def push(self) -> None:
        """Bring to the device what was written."""
        push_all([*self.changing, self._places] if self._moved else self.changing)
        self._moved = False

    @property
    def changing(self) -> tuple[Mirrors, ...]:
        """What a step reads, and writes for the next: where it starts, and what may follow."""
        return self._start, self.search.allowed


def suppressed_tokens(tokens: Sequence[int]) -> torch.Tensor:
    """Return `tokens` as graphs take them: never none at all, since no device has memory of no size."""
    return torch.tensor([*tokens] or [NO_TOKEN], dtype=torch.int64)
