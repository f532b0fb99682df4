"""Upstream's tokens as the recipe uses them: special tokens, the timestamp grid, words with times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from whisper.tokenizer import get_tokenizer

from .grammar import LANGUAGES

Task = Literal["transcribe", "translate"]
TimedWord = tuple[str, float, float]
"""A word, its start and its end in seconds."""

TOKENIZER = get_tokenizer(True, num_languages=99, language="en", task="transcribe")
LANGUAGE_TOKENS = {language: TOKENIZER.to_language_token(language) for language in LANGUAGES}
TASK_TOKENS: dict[Task, int] = {"transcribe": TOKENIZER.transcribe, "translate": TOKENIZER.translate}
EOT = TOKENIZER.eot
SOT = TOKENIZER.sot
SOT_PREV = TOKENIZER.sot_prev
NO_SPEECH = TOKENIZER.no_speech
NO_TIMESTAMPS = TOKENIZER.no_timestamps
TIMESTAMP_BEGIN: int = TOKENIZER.timestamp_begin

SAMPLE_RATE = 16000
TOKENS_PER_SECOND = 50  # one timestamp token, and one encoder frame, per 20 ms
WINDOW_FRAMES = 1500  # encoder frames of a 30 s window
GRID = 10  # timestamps are multiples of 10 tokens, that is 0.2 s


@dataclass(frozen=True)
class TimedTokens:
    """Tokens with the seconds at which each is spoken."""

    ids: list[int]
    starts: list[float]
    ends: list[float]

    def each(self) -> Iterator[tuple[int, float, float]]:
        """Yield token, start and end."""
        return zip(self.ids, self.starts, self.ends, strict=True)


def start_timestamp(seconds: float) -> int:
    """Return the timestamp token of a start: rounded down to the grid."""
    return TIMESTAMP_BEGIN + int(seconds * TOKENS_PER_SECOND // GRID) * GRID


def end_timestamp(seconds: float) -> int:
    """Return the timestamp token of an end: rounded up to the grid, at most 30 s."""
    return TIMESTAMP_BEGIN + min(WINDOW_FRAMES, -int(-seconds * TOKENS_PER_SECOND // GRID) * GRID)


def time_tokens(words: Iterable[TimedWord]) -> TimedTokens:
    """Split words into tokens; each token gets a share of its word's time by its number of characters."""
    timed = TimedTokens([], [], [])
    for word, start, end in words:
        ids = TOKENIZER.encode(" " + word)
        lengths = [max(1, len(TOKENIZER.decode([token]).strip())) for token in ids]
        share = np.cumsum([0, *lengths]) / max(1, sum(lengths))
        for k, token in enumerate(ids):
            timed.ids.append(token)
            timed.starts.append(float(start + (end - start) * share[k]))
            timed.ends.append(float(start + (end - start) * share[k + 1]))
    return timed


def join_words(timed: TimedTokens) -> list[TimedWord]:
    """Join tokens to words again: the inverse of `time_tokens`."""
    words: list[TimedWord] = []
    for token, start, end in timed.each():
        text = TOKENIZER.decode([token])
        if text.startswith(" ") or not words:
            words.append((text.strip(), start, end))
        else:
            words[-1] = (words[-1][0] + text, words[-1][1], end)
    return words


class Vocabulary:
    """The tokens that the corpus uses, numbered from 0: text and special tokens, then the timestamp grid.

    Attributes
    ----------
    tokens : np.ndarray, shape = (n_used,)
        Upstream's token of each number.
    numbers : np.ndarray, shape = (51865,)
        The number of each of upstream's tokens; -1 where it is unused.
    n_text : int
        How many come before the timestamps.
    """

    def __init__(self, spoken: Iterable[int]) -> None:
        special = {
            EOT,
            SOT,
            SOT_PREV,
            NO_SPEECH,
            NO_TIMESTAMPS,
            *LANGUAGE_TOKENS.values(),
            *TASK_TOKENS.values(),
        }
        text = sorted({*spoken, *special})
        self.n_text = len(text)
        self.tokens = np.array([*text, *range(TIMESTAMP_BEGIN, TIMESTAMP_BEGIN + WINDOW_FRAMES + 1, GRID)])
        self.numbers = np.full(TIMESTAMP_BEGIN + WINDOW_FRAMES + 1, -1)
        self.numbers[self.tokens] = np.arange(len(self.tokens))

    def __len__(self) -> int:
        """Return how many tokens are used."""
        return len(self.tokens)

    def encode(self, tokens: Sequence[int]) -> np.ndarray:
        """Return the numbers of upstream's tokens."""
        return self.numbers[np.asarray(tokens, dtype=np.int64)]
