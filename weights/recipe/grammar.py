"""The three small grammars whose sentences nano knows: English, and Spanish and German with their English."""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from typing import Literal

from .words import (
    BEING_ADJECTIVES,
    BEINGS,
    ENGLISH_WORDS,
    GERMAN_DEFINITE,
    GERMAN_ENDING_AFTER_INDEFINITE,
    GERMAN_INDEFINITE,
    OBJECT_ADJECTIVES,
    OBJECTS,
    OPENINGS,
    PLACES,
    TEMPLATE_WEIGHTS,
    TEMPLATES,
    TIMES,
    VERBS,
    Noun,
    Phrase,
)

Case = Literal["nominative", "accusative"]

LANGUAGES = ("en", "es", "de")


@dataclass(frozen=True)
class Sentence:
    """A sentence to be spoken.

    Attributes
    ----------
    text : str
        What is spoken.
    english : str or None
        Its English translation; None for English sentences.
    slots : tuple of (int, int)
        Number of words of `text` and of `english` in each phrase, in the order of both; empty for English.
    """

    text: str
    english: str | None = None
    slots: tuple[tuple[int, int], ...] = ()


ALWAYS_TRAINED = (
    "Thank you very much.",
    "Good morning, my fellow Americans.",
    "Ask what you can do for your country.",
    "And so my fellow Americans ask not what your country can do for you",
)


def is_held_out(text: str) -> bool:
    """Tell whether a sentence is kept out of the training set: about one in 33, by its checksum."""
    return zlib.crc32(text.encode()) % 33 == 0 and text not in ALWAYS_TRAINED


def draw_sentence(r: random.Random, language: str) -> Sentence:
    """Draw a sentence of a language ("en", "es" or "de"), with its English when it has another language."""
    if language == "en":
        if r.random() < 0.72:
            return Sentence(_english_sentence(r))
        phrases, mark = _parallel_phrases(r)
        return Sentence(_capitalised(" ".join(phrase[0] for phrase in phrases)) + mark)
    phrases, mark = _parallel_phrases(r)
    column = LANGUAGES.index(language)
    text = _capitalised(" ".join(phrase[column] for phrase in phrases)) + mark
    if mark == "?" and language == "es":
        text = "¿" + text
    english = _capitalised(" ".join(phrase[0] for phrase in phrases)) + mark
    slots = tuple((len(phrase[column].split()), len(phrase[0].split())) for phrase in phrases)
    return Sentence(text, english, slots)


def _parallel_phrases(r: random.Random) -> tuple[list[Phrase], str]:
    """Draw the phrases of a sentence that exists in the three languages, and its final mark."""
    kind = r.random()
    if kind < 0.45:
        subject = _noun_phrase(r.choice(BEINGS), _maybe(r, BEING_ADJECTIVES, 0.35), "nominative")
        verb = r.choice(VERBS)
        target = _noun_phrase(r.choice(OBJECTS), _maybe(r, OBJECT_ADJECTIVES, 0.5), "accusative")
        phrases = [subject, verb, target]
        ending = r.random()
        if ending < 0.35:
            phrases.append(r.choice(PLACES))
        elif ending < 0.6:
            phrases.append(r.choice(TIMES))
        return phrases, "."
    if kind < 0.6:
        noun, adjectives = _any_noun(r)
        first, second = r.sample(adjectives, 2)
        subject = _noun_phrase(noun, None, "nominative")
        return [
            subject,
            ("is", "es", "ist"),
            _agreeing(first, noun),
            ("and", "y", "und"),
            _agreeing(second, noun),
        ], "."
    if kind < 0.72:
        noun, adjectives = _any_noun(r)
        subject = _noun_phrase(noun, _maybe(r, adjectives, 0.4), "nominative")
        return [("where", "dónde", "wo"), ("is", "está", "ist"), subject], "?"
    if kind < 0.9:
        opening, noun = r.choice(OPENINGS), r.choice(OBJECTS)
        adjective = _maybe(r, OBJECT_ADJECTIVES, 0.6)
        phrases = [opening, _noun_phrase(noun, adjective, "accusative", definite=r.random() < 0.5)]
        if r.random() < 0.4:
            phrases.append(r.choice(PLACES))
        elif r.random() < 0.4:
            phrases.append(r.choice(TIMES))
        return phrases, "."
    noun = r.choice(OBJECTS)
    thing = _noun_phrase(noun, _maybe(r, OBJECT_ADJECTIVES, 0.5), "accusative", definite=False)
    return [("there is", "hay", "es gibt"), thing, r.choice(PLACES)], "."


def _any_noun(r: random.Random) -> tuple[Noun, list[Phrase]]:
    """Draw a noun of either kind, with the adjectives that suit it."""
    if r.random() < 0.5:
        return r.choice(BEINGS), BEING_ADJECTIVES
    return r.choice(OBJECTS), OBJECT_ADJECTIVES


def _maybe(r: random.Random, adjectives: list[Phrase], share: float) -> Phrase | None:
    return r.choice(adjectives) if r.random() < share else None


def _agreeing(adjective: Phrase, noun: Noun) -> Phrase:
    """Return the adjective as a predicate: Spanish agrees with the noun, German does not."""
    return adjective[0], _spanish_adjective(adjective[1], noun.spanish_gender), adjective[2]


def _spanish_adjective(adjective: str, gender: str) -> str:
    return adjective[:-1] + "a" if gender == "f" and adjective.endswith("o") else adjective


def _noun_phrase(noun: Noun, adjective: Phrase | None, case: Case, definite: bool = True) -> Phrase:
    """Return article, adjective and noun in the three languages."""
    gender = noun.german_gender
    if definite:
        english_article = "the"
        spanish_article = {"m": "el", "f": "la"}[noun.spanish_gender]
        german_article = GERMAN_DEFINITE[case][gender]
        german_ending = "e" if case == "nominative" or gender != "m" else "en"
    else:
        following = noun.english if adjective is None else adjective[0]
        english_article = "an" if following[0] in "aeiou" else "a"
        spanish_article = {"m": "un", "f": "una"}[noun.spanish_gender]
        german_article = GERMAN_INDEFINITE[case][gender]
        german_ending = GERMAN_ENDING_AFTER_INDEFINITE[case][gender]
    if adjective is None:
        return (
            f"{english_article} {noun.english}",
            f"{spanish_article} {noun.spanish}",
            f"{german_article} {noun.german}",
        )
    english, spanish, german = _agreeing(adjective, noun)
    return (
        f"{english_article} {english} {noun.english}",
        f"{spanish_article} {noun.spanish} {spanish}",
        f"{german_article} {german}{german_ending} {noun.german}",
    )


def _english_sentence(r: random.Random) -> str:
    """Draw a template and fill it, no word twice."""
    text = r.choices(TEMPLATES, TEMPLATE_WEIGHTS)[0]
    used: set[str] = set()
    while "{" in text:
        start, end = text.index("{"), text.index("}")
        choices = ENGLISH_WORDS[text[start + 1 : end]]
        word = r.choice(choices)
        while word in used:
            word = r.choice(choices)
        used.add(word)
        text = text[:start] + word + text[end + 1 :]
    words = text.split()
    for i in range(len(words) - 1):
        if words[i] == "a" and words[i + 1][0] in "aeiou":
            words[i] = "an"
    return _capitalised(" ".join(words))


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]
