"""Upstream's filters and search over tokens, with their arithmetic over the vocabulary in graphs."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import whisper.decoding
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

from whisper_max_plugin import patches
from whisper_max_plugin.execution.engine import Engine
from whisper_max_plugin.execution.step_inputs import (
    NO_STAMP,
    NO_TOKEN,
    Ranges,
    SearchInputs,
    SearchKind,
    suppressed_tokens,
)

STEPS_AHEAD = 8
"""Steps that a GPU takes between two looks of the host; up to seven are in vain where a text ends."""

LARGEST_SEED = 2**62


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
        if last_was_timestamp:  # cannot be normal text tokens
            return eot, begin, sequence[-1], self.n_vocab
        # timestamps do not decrease, and segments are not empty
        previous = self.latest_stamp(sequence)
        return 0, begin, begin if previous == NO_STAMP else previous + 1, self.n_vocab

    def latest_stamp(self, sequence: Sequence[int]) -> int:
        """Return the latest timestamp among the sampled tokens, or `NO_STAMP`."""
        if self.timestamps is None:
            return NO_STAMP
        begin = self.timestamps.tokenizer.timestamp_begin
        sampled = (sequence[index] for index in range(len(sequence) - 1, self.sample_begin - 1, -1))
        return next((token for token in sampled if token >= begin), NO_STAMP)


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
    completed : bool
        whether all of them have come to an end
    n_ahead : int
        how many steps the graph may take before `accept` has to look at what they found
    inputs : SearchInputs
    """

    def __init__(self, engine: Engine, rules: Rules, decoder: TokenDecoder, tokens: Tensor) -> None:
        self.sequences: list[list[int]] = tokens.tolist()
        self.completed = False
        self._engine = engine
        self._rules = rules
        self._decoder = decoder
        self._beam = decoder if _is_upstreams(decoder, "update") and type(decoder) is BeamSearchDecoder else None
        self._temperature = self._temperature_of_graph()
        # where the host is the device, looking costs less than a step in vain
        self.n_ahead = STEPS_AHEAD if self._temperature is not None and not engine.device.shares_memory else 1
        batch = len(self.sequences)
        # by torch's generator, so that `torch.manual_seed` repeats a text; not moved on where nothing is sampled
        self._seeds = torch.randint(LARGEST_SEED, (batch,)).numpy() if self._temperature else 0
        self._sums = np.zeros(batch, dtype=np.float32)
        kind = SearchKind(
            rules.n_vocab,
            # one more than beam search looks at, to see whether it is as good as the last of them
            n_candidates=1 if self._beam is None else self._beam.beam_size + 2,
            suppressed=tuple(rules.suppressed),
            eot=getattr(decoder, "eot", NO_TOKEN),
            timestamp_begin=rules.n_vocab if rules.timestamps is None else rules.timestamps.tokenizer.timestamp_begin,
        )
        self.inputs = engine.searches.take(batch, kind)
        self.inputs.temperatures.array[:] = self._temperature or 0  # the memory may have been another search's
        weakref.finalize(self, engine.searches.give_back, self.inputs).atexit = False
        self._suppressed_first = engine.device.put(suppressed_tokens(rules.suppressed_first))

    def _temperature_of_graph(self) -> float | None:
        """Return at which temperature the graph chooses each sequence's next token; None if upstream's code does.

        Samples are the graph's where logits are not on the host. They cannot be upstream's there, which takes them by
        the GPU's own random numbers. On the CPU they are upstream's.
        """
        decoder = self._decoder
        if not (type(decoder) is GreedyDecoder and _is_upstreams(decoder, "update")):
            return None
        is_sampled = not self._engine.device.shares_memory and 0 < decoder.temperature < math.inf
        return decoder.temperature if decoder.temperature == 0 or is_sampled else None

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

    @property
    def _begins(self) -> bool:
        return len(self.sequences[0]) == self._rules.sample_begin

    def write_allowed(self) -> SearchInputs:
        """Write what may follow each sequence, and how it is chosen, to `inputs`, which graphs take; return them."""
        inputs = self.inputs
        inputs.ranges.array[:] = [self._rules.ranges(sequence) for sequence in self.sequences]
        if self.n_ahead > 1:
            inputs.stamps.array[:] = [self._rules.latest_stamp(sequence) for sequence in self.sequences]
        if self._temperature:
            inputs.seeds.array[:] = self._seeds + len(self.sequences[0])  # a step adds one for the step that follows
        return inputs

    def update(self, logits: Buffer) -> None:
        """Extend every sequence by a token, as upstream's filters and decoder do.

        Parameters
        ----------
        logits : Buffer, shape = (batch, n_vocab)
            of the last tokens; they are filtered in place
        """
        self.find_candidates(logits)
        self._accept_last(logits)

    def find_candidates(self, logits: Buffer) -> None:
        """Filter logits (batch, n_vocab) in place, and find the best tokens, as a step does with its own."""
        suppressed = self._suppressed_first if self._begins else self.inputs.suppressed
        self._engine.search(logits, self.write_allowed(), suppressed)
        self.inputs.pull()

    def accept(self, n_steps: int) -> int:
        """Extend every sequence by the tokens that `n_steps` steps have left in `inputs`; return how many count.

        They count up to the end of all sequences, or to a token of which upstream's code has to say what follows.
        """
        if n_steps == 1:
            self._accept_last(self.inputs.filtered)
            return 1
        n_taken = self._accept_best(n_steps)
        if n_taken == n_steps - 1 and not self.completed:  # what the last step has found is upstream's to judge
            self._update_by_upstream(self.inputs.filtered)
            return n_steps
        return n_taken

    def _accept_best(self, n_steps: int) -> int:
        """Extend the sequences by the tokens that the graph has chosen, as long as upstream would choose such."""
        chosen, logprobs = self.inputs.chosen.array, self.inputs.chosen_logprobs.array
        position = len(self.sequences[0]) - 1
        for step in range(n_steps):
            if not np.isfinite(logprobs[position + step]).all():
                self.n_ahead = 1  # from here on the host looks at every step
                return step
            self._choose(chosen[position + step], logprobs[position + step])
            if self.completed:
                return step + 1
        return n_steps

    def _accept_last(self, filtered: Buffer) -> None:
        """Extend the sequences by what the latest search has found, and left of the logits (batch, n_vocab)."""
        ids, logprobs = self.inputs.ids.array, self.inputs.logprobs.array
        if self._temperature is not None and np.isfinite(logprobs).all():
            self._choose(ids[:, 0], logprobs[:, 0])
        elif self._beam is not None and _is_clear(logprobs, self._beam.beam_size + 1):
            self._rank(self._beam, ids, logprobs)
        else:
            # Torch's samples, somebody's own decoder, and what is out of the ordinary: NaN, fewer tokens left than
            # candidates, and equally good ones, whose order is torch's to choose
            self._update_by_upstream(filtered)

    def _update_by_upstream(self, filtered: Buffer) -> None:
        logits = self._engine.device.get(filtered)
        tokens, completed = self._decoder.update(self.tokens, logits, self.sum_logprobs)
        self.sequences = tokens.tolist()
        self.completed = bool(completed)

    def _choose(self, ids: npt.NDArray[np.int64], logprobs: npt.NDArray[np.float32]) -> None:
        """Mirror ``GreedyDecoder.update``, with the tokens that it would choose, or sample."""
        eot = self._decoder.eot
        for index, sequence in enumerate(self.sequences):
            if sequence[-1] == eot:
                sequence.append(eot)
            else:
                self._sums[index] += logprobs[index]
                sequence.append(int(ids[index]))
        self.completed = all(sequence[-1] == eot for sequence in self.sequences)

    def _rank(self, decoder: BeamSearchDecoder, ids: npt.NDArray[np.int64], logprobs: npt.NDArray[np.float32]) -> None:
        """Mirror ``BeamSearchDecoder.update``."""
        size = decoder.beam_size
        n_audio = len(self.sequences) // size
        if decoder.finished_sequences is None:
            decoder.finished_sequences = [{} for _ in range(n_audio)]

        totals = (self._sums[:, None] + logprobs[:, :-1]).tolist()
        tokens = ids.tolist()
        sequences: list[list[int]] = []
        source_indices: list[int] = []
        for first in range(0, len(self.sequences), size):
            # at first all beams are equal, and the last one stands for them; later no two are
            beams = range(first + (size - 1 if self._begins else 0), first + size)
            candidates = [(total, i, token) for i in beams for total, token in zip(totals[i], tokens[i], strict=False)]
            candidates.sort(key=itemgetter(0), reverse=True)
            finished = decoder.finished_sequences[first // size]
            saved = 0
            for total, index, token in candidates:
                if token == decoder.eot:
                    if len(finished) < decoder.max_candidates:  # else the candidate list is full
                        ended = (*self.sequences[index], token)
                        finished[ended] = total
                    continue
                self._sums[len(sequences)] = total
                sequences.append([*self.sequences[index], token])
                source_indices.append(index)
                saved += 1
                if saved == size:
                    break

        self.sequences = sequences
        decoder.inference.rearrange_kv_cache(source_indices)
        self.completed = all(len(ended) >= decoder.max_candidates for ended in decoder.finished_sequences)


def _is_clear(logprobs: npt.NDArray[np.float32], n_candidates: int) -> bool:
    """Tell whether each sequence has so many candidates, of which no two are equally good."""
    return bool((logprobs[:, :n_candidates] > logprobs[:, 1:]).all())  # of -inf, or of NaN, none is


def _is_upstreams(part: Any, method: str) -> bool:
    """Tell whether `part` does what upstream's code says: neither its class nor the method was replaced."""
    return patches.is_defined_in(getattr(type(part), method), whisper.decoding) and method not in vars(part)
