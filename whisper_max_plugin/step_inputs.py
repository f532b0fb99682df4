"""What the graphs ``search`` and ``step`` take: memory that stays where it is, while the values in it change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from max.driver import Buffer

from .devices import Device, Mirror, push_all
from .replay import Replay

if TYPE_CHECKING:
    from .engine import CrossKV

Ranges = tuple[int, int, int, int]
"""The tokens that a sequence may choose: text from [0] to [1], and timestamps from [2] to [3]."""

NO_STAMP = -1
NO_TOKEN = -1


class SearchInputs:
    """What is known of each sequence, and what is found to follow it.

    Parameters
    ----------
    device : Device
    batch : int
    n_candidates : int
        tokens to be found for each sequence
    n_vocab, n_text_ctx : int
    suppressed : tokens that cannot be chosen
    eot, timestamp_begin : int
        the token that ends a text, and the first timestamp; the size of the vocabulary where there is none

    Attributes
    ----------
    ids, logprobs : Mirror, shape = (batch, n_candidates)
        each sequence's best next tokens, the best first, and their log-probabilities; -inf and NaN where there are none
    suppressed : Buffer
    logits : Buffer, shape = (batch, n_vocab)
        of the latest step, -inf where a token cannot be chosen
    ranges : Mirror, shape = (batch, 4)
        the `Ranges` of each sequence
    stamps : Mirror, shape = (batch)
        the latest timestamp of each sequence, or `NO_STAMP`
    chosen, chosen_logprobs : Mirror, shape = (n_text_ctx, batch)
        the best token behind each position, as the steps have left it
    """

    def __init__(
        self,
        device: Device,
        batch: int,
        n_vocab: int,
        n_text_ctx: int,
        *,
        n_candidates: int = 1,
        suppressed: Sequence[int] = (),
        eot: int = NO_TOKEN,
        timestamp_begin: int | None = None,
    ) -> None:
        begin = n_vocab if timestamp_begin is None else timestamp_begin
        self.ids = Mirror(np.zeros((batch, n_candidates), dtype=np.int64), device)
        self.logprobs = Mirror(np.zeros((batch, n_candidates), dtype=np.float32), device)
        self.logits = device.empty((batch, n_vocab))
        self.ranges = Mirror(np.full((batch, 4), (0, n_vocab, n_vocab, n_vocab), dtype=np.int64), device)
        self.stamps = Mirror(np.full(batch, NO_STAMP, dtype=np.int64), device)
        self.chosen = Mirror(np.zeros((n_text_ctx, batch), dtype=np.int64), device)
        self.chosen_logprobs = Mirror(np.zeros((n_text_ctx, batch), dtype=np.float32), device)
        self.suppressed = device.put(suppressed_tokens(suppressed))
        self._rules = device.put(torch.tensor([eot, begin, n_vocab]))

    @property
    def buffers(self) -> list[Buffer]:
        """What the graph ``step`` takes of them, in its order."""
        state = self.ranges, self.stamps, self.chosen, self.chosen_logprobs
        buffers = [self.ids.buffer, self.logprobs.buffer, self.logits, *(mirror.buffer for mirror in state)]
        return [*buffers, self.suppressed, self._rules]


class StepInputs:
    """What the graph ``step`` takes.

    Parameters
    ----------
    storage : the cache's memory, each (n_text_ctx, n_audio * n_group, n_state)
    cross_kv : as the graph ``cross_kv`` returned them for n_audio windows
    holders : ndarray, shape = (n_audio * n_group, n_text_ctx), int32
        the row of the cache that holds a sequence's entry at each position
    search : SearchInputs
    device : Device
    """

    def __init__(
        self,
        storage: Sequence[Buffer],
        cross_kv: CrossKV,
        holders: npt.NDArray[np.int32],
        search: SearchInputs,
        device: Device,
    ) -> None:
        n_text_ctx, batch, n_state = storage[0].shape
        n_audio = cross_kv[0].shape[0]
        self.search = search
        self.replay: Replay | None = None  # made by who runs the graph
        self.holders = Mirror(holders, device)
        self._tokens = Mirror(np.zeros((n_audio, batch // n_audio), dtype=np.int64), device)
        self._position = Mirror(np.zeros(1, dtype=np.int64), device)
        self.buffers = [
            self._tokens.buffer,
            self._position.buffer,
            *search.buffers,
            self.holders.buffer,
            *(x.view(x.dtype, (n_text_ctx, n_audio, batch // n_audio, n_state)) for x in storage),
            *cross_kv,
        ]

    def start_at(self, position: int, tokens: Sequence[int]) -> None:
        """Say what the next step continues; without it, a step continues what the one before has chosen."""
        self._tokens.array[:] = np.reshape(tokens, self._tokens.array.shape)
        self._position.array[0] = position
        push_all(self.changing)

    @property
    def changing(self) -> tuple[Mirror, ...]:
        """What a step reads, and writes for the next: where it starts, and what may follow."""
        return self._tokens, self._position, self.search.ranges, self.search.stamps


def suppressed_tokens(tokens: Sequence[int]) -> torch.Tensor:
    """Return `tokens` as graphs take them: never none at all, since no device has memory of no size."""
    return torch.tensor([*tokens] or [NO_TOKEN], dtype=torch.int64)
