"""How far one text is from another."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np


def word_error_rate(text: str, reference: str, language: str) -> float:
    """Return the changed, dropped and added words per word of `reference`, which must hold at least one."""
    expected = normalized_words(reference, language)
    return edit_distance(normalized_words(text, language), expected) / len(expected)


def normalized_words(text: str, language: str) -> list[str]:
    """Return the words of `text` as upstream normalises them for such comparisons."""
    from whisper.normalizers import BasicTextNormalizer, EnglishTextNormalizer

    normalize = EnglishTextNormalizer() if language == "en" else BasicTextNormalizer()
    return normalize(text).split()


def edit_distance(words: Sequence[Hashable], expected: Sequence[Hashable]) -> int:
    """Return the least number of words, or tokens, to change, drop or add."""
    vocabulary = {word: number for number, word in enumerate({*words, *expected})}
    target = np.array([vocabulary[word] for word in expected], dtype=np.int64)
    positions = np.arange(len(target) + 1)
    row = positions
    for word in words:
        without = row + 1  # this word is dropped
        without[1:] = np.minimum(without[1:], row[:-1] + (target != vocabulary[word]))
        row = np.minimum.accumulate(without - positions) + positions  # and words of `expected` may be missing
    return int(row[-1])


def common_tokens(tokens: Sequence[int], expected: Sequence[int]) -> float:
    """Return which part of the tokens is the same, in the same order; 1.0 if all are."""
    return 1 - edit_distance(tokens, expected) / max(len(tokens), len(expected), 1)
