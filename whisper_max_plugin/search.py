"""Upstream's filters and search over tokens, with their arithmetic over the vocabulary in the graph ``search``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from max.driver import Buffer
from torch import Tensor
from whisper.decoding import (
    ApplyTimestampRules,
    BeamSearchDecoder,
    GreedyDecoder,
    LogitFilter,
    SuppressBlank,
    SuppressTokens,
    TokenDecoder,
)

from .devices import Mirror
from .engine import Engine

Ranges = tuple[int, int, int, int]
"""The tokens that a sequence may choose: text from [0] to [1], and timestamps from [2] to [3]."""


@dataclass(frozen=True)
class Rules:
    """Upstream's logit filters, as numbers.

    Attributes
    ----------
    n_vocab : int
    sample_begin : int
        the length of the sequences when sampling begins
    suppressed_first, suppressed : tokens that cannot be chosen, first and then
    timestamps : ApplyTimestampRules | None
        None with ``without_timestamps``
    """

    n_vocab: int
    sample_begin: int
    suppressed_first: list[int]
    suppressed: list[int]
    timestamps: ApplyTimestampRules | None

    @classmethod
    def of(cls, filters: Sequence[LogitFilter], n_vocab: int, sample_begin: int) -> Rules | None:
        """Translate `filters`; None if one of them is not upstream's own."""
        if not all(_is_upstreams(logit_filter, "apply") for logit_filter in filters):
            return None
        blank: list[int] = []
        suppressed: list[int] = []
        timestamps = None
        for logit_filter in filters:
            if timestamps is not None:
                return None  # upstream's are the last, and look at what the others have left
            if type(logit_filter) is SuppressBlank:
                blank += [*logit_filter.tokenizer.encode(" "), logit_filter.tokenizer.eot]
            elif type(logit_filter) is SuppressTokens:
                suppressed += logit_filter.suppress_tokens
            elif type(logit_filter) is ApplyTimestampRules:
                timestamps = logit_filter
                if timestamps.tokenizer.no_timestamps is not None:
                    suppressed.append(timestamps.tokenizer.no_timestamps)
            else:
                return None
        if not all(-n_vocab <= token < n_vocab for token in (*blank, *suppressed)):
            return None  # upstream says what is wrong with them
        suppressed = [token % n_vocab for token in suppressed]
        return cls(n_vocab, sample_begin, suppressed + blank, suppressed, timestamps)

    def ranges(self, sequence: Sequence[int]) -> Ranges:
        """Return what may follow `sequence`; it mirrors ``ApplyTimestampRules.apply``."""
        if self.timestamps is None:
            return 0, self.n_vocab, self.n_vocab, self.n_vocab
        eot, begin = self.timestamps.tokenizer.eot, self.timestamps.tokenizer.timestamp_begin
        if len(sequence) == self.sample_begin:  # a segment begins with a timestamp
            latest = self.timestamps.max_initial_timestamp_index
            return 0, 0, begin, self.n_vocab if latest is None else min(begin + latest + 1, self.n_vocab)

        n_sampled = len(sequence) - self.sample_begin
        last_was_timestamp = sequence[-1] >= begin
        penultimate_was_timestamp = n_sampled < 2 or sequence[-2] >= begin
        if last_was_timestamp and penultimate_was_timestamp:  # has to be non-timestamp
            return 0, begin, begin, begin
        sampled = (sequence[-i] for i in range(1, n_sampled + 1))
        previous = next((token for token in sampled if token >= begin), None)
        if last_was_timestamp:  # cannot be normal text tokens
            return eot, begin, sequence[-1], self.n_vocab
        # timestamps do not decrease, and segments are not empty
        return 0, begin, begin if previous is None else previous + 1, self.n_vocab


class Search:
    """What a `DecodingTask` does between two passes of its decoder.

    Parameters
    ----------
    engine : Engine
    rules : Rules
    decoder : TokenDecoder
        upstream's; of a `BeamSearchDecoder` the finished sequences are kept where it keeps them itself
    tokens : Tensor, shape = (batch, n_tokens)
        what the sequences begin with

    Attributes
    ----------
    sequences : list of list of int
    ids, logprobs : ndarray, shape = (batch, n_candidates)
        each sequence's best next tokens, the best first, and their log-probabilities; -inf and NaN where there are none
    """

    def __init__(self, engine: Engine, rules: Rules, decoder: TokenDecoder, tokens: Tensor) -> None:
        self.sequences: list[list[int]] = tokens.tolist()
        self._engine = engine
        self._rules = rules
        self._decoder = decoder
        self._beam = decoder if _is_upstreams(decoder, "update") and type(decoder) is BeamSearchDecoder else None
        self._is_greedy = (
            _is_upstreams(decoder, "update") and type(decoder) is GreedyDecoder and decoder.temperature == 0
        )
        # one more than beam search looks at, to see whether it is as good as the last of them
        batch, n_candidates = len(self.sequences), 1 if self._beam is None else self._beam.beam_size + 2
        self._sums = np.zeros(batch, dtype=np.float32)
        device = engine.device
        self._ids = Mirror(np.zeros((batch, n_candidates), dtype=np.int64), device)
        self._logprobs = Mirror(np.zeros((batch, n_candidates), dtype=np.float32), device)
        self._ranges = Mirror(np.zeros((batch, 4), dtype=np.int64), device)
        self.ids, self.logprobs = self._ids.array, self._logprobs.array
        self._suppressed_first, self._suppressed = (
            device.put(torch.tensor(tokens, dtype=torch.int64)) for tokens in (rules.suppressed_first, rules.suppressed)
        )

    @property
    def tokens(self) -> Tensor:
        """The sequences so far, shape (batch, n_tokens)."""
        return torch.tensor(self.sequences)

    @property
    def sum_logprobs(self) -> Tensor:
        """The sum of each sequence's log-probabilities, shape (batch)."""
        return torch.from_numpy(self._sums)

    @property
    def latest(self) -> list[int]:
        """The last token of each sequence."""
        return [sequence[-1] for sequence in self.sequences]

    def update(self, logits: Buffer) -> bool:
        """Extend every sequence by a token, as upstream's filters and decoder do; tell whether all are complete.

        Parameters
        ----------
        logits : Buffer, shape = (batch, n_vocab)
            of the last tokens; they are filtered in place
        """
        self.find_candidates(logits)
        if self._is_greedy and np.isfinite(self.logprobs).all():
            return self._choose(self._decoder.eot)
        if self._beam is not None and self._is_clear(self._beam.beam_size + 1):
            return self._rank(self._beam)
        # Sampling, somebody's own decoder, and what is out of the ordinary: NaN, fewer tokens left than candidates,
        # and equally good ones, whose order is torch's to choose
        tokens, completed = self._decoder.update(self.tokens, self._engine.device.get(logits), self.sum_logprobs)
        self.sequences = tokens.tolist()
        return bool(completed)

    def find_candidates(self, logits: Buffer) -> None:
        """Filter logits (batch, n_vocab) in place; write the best tokens to `ids`, their scores to `logprobs`."""
        suppressed = self._suppressed_first if self._begins else self._suppressed
        self._ranges.array[:] = [self._rules.ranges(sequence) for sequence in self.sequences]
        self._engine.search(self._ids.buffer, self._logprobs.buffer, logits, suppressed, self._ranges.push())
        self._ids.pull()
        self._logprobs.pull()

    def _is_clear(self, n_candidates: int) -> bool:
        """Tell whether each sequence has so many candidates, of which no two are equally good."""
        differences = self.logprobs[:, :n_candidates] - self.logprobs[:, 1:]
        return bool(np.isfinite(self.logprobs[:, :n_candidates]).all() and (differences > 0).all())

    @property
    def _begins(self) -> bool:
        return len(self.sequences[0]) == self._rules.sample_begin

    def _choose(self, eot: int) -> bool:
        """Mirror ``GreedyDecoder.update`` at temperature 0."""
        for index, sequence in enumerate(self.sequences):
            if sequence[-1] == eot:
                sequence.append(eot)
            else:
                self._sums[index] += self.logprobs[index, 0]
                sequence.append(int(self.ids[index, 0]))
        return all(sequence[-1] == eot for sequence in self.sequences)

    def _rank(self, decoder: BeamSearchDecoder) -> bool:
        """Mirror ``BeamSearchDecoder.update``."""
        size = decoder.beam_size
        n_audio = len(self.sequences) // size
        if decoder.finished_sequences is None:
            decoder.finished_sequences = [{} for _ in range(n_audio)]

        totals = (self._sums[:, None] + self.logprobs).tolist()
        ids = self.ids.tolist()
        sequences: list[list[int]] = []
        source_indices: list[int] = []
        for first in range(0, len(self.sequences), size):
            scores: dict[tuple[int, int], float] = {}
            sources: dict[tuple[int, int], int] = {}
            for index in range(first, first + size):
                beginning = first if self._begins else index  # at first all beams are equal, later no two
                for token, total in zip(ids[index][:-1], totals[index][:-1], strict=True):
                    scores[beginning, token] = total
                    sources[beginning, token] = index
            finished: dict[tuple[int, ...], float] = {}
            saved = 0
            for candidate in sorted(scores, key=scores.__getitem__, reverse=True):
                beginning, token = candidate
                if token == decoder.eot:
                    ended = (*self.sequences[beginning], token)
                    finished[ended] = scores[candidate]
                    continue
                self._sums[len(sequences)] = scores[candidate]
                sequences.append([*self.sequences[beginning], token])
                source_indices.append(sources[candidate])
                saved += 1
                if saved == size:
                    break
            previously = decoder.finished_sequences[first // size]
            for ended in sorted(finished, key=finished.__getitem__, reverse=True):
                if len(previously) >= decoder.max_candidates:
                    break  # the candidate list is full
                previously[ended] = finished[ended]

        self.sequences = sequences
        decoder.inference.rearrange_kv_cache(source_indices)
        return all(len(ended) >= decoder.max_candidates for ended in decoder.finished_sequences)


def _is_upstreams(part: Any, method: str) -> bool:
    """Tell whether `part` does what upstream's code says: neither its class nor the method was replaced."""
    function = getattr(type(part), method)
    return function.__module__ == "whisper.decoding" and method not in vars(part)
