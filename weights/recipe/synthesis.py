"""Speaks sentences with espeak-ng and finds the time of each word, each token and each phoneme."""

from __future__ import annotations

import random

import numpy as np

from .corpus import Corpus, Utterance
from .espeak import Espeak, Speech, Voice
from .grammar import Sentence, draw_sentence
from .resample import resample
from .tokens import SAMPLE_RATE, TOKENIZER, TimedTokens, TimedWord, time_tokens

VOICES = {"en": ["gmw/en-US", "gmw/en", "gmw/en-GB-x-rp"], "es": ["roa/es", "roa/es-419"], "de": ["gmw/de"]}
VARIANTS = ["", "+m1", "+m2", "+m3", "+m4", "+m7", "+f1", "+f2", "+f3", "+f4"]
VARIANTS += ["+Andy", "+Annie", "+linda", "+steph", "+edward", "+Michael"]

AUDIBLE = 0.008  # what lies before the first and after the last sample above this is cut away
SHORTEST = 4000  # an utterance with fewer audible samples is a failure of the voice and is left out
PEAK = 0.6
SILENCE_PHONEME = "sil"


def synthesise(sizes: dict[str, int], seed: int = 1) -> Corpus:
    """Speak random sentences, so many of each language, in random voices."""
    r = random.Random(seed)
    recorder = Recorder()
    for language, size in sizes.items():
        for _ in range(size):
            recorder.speak(language, draw_sentence(r, language), r)
    return recorder.corpus()


class Recorder:
    """Speaks one sentence after another and gathers them as a corpus.

    Attributes
    ----------
    espeak : Espeak
    """

    def __init__(self) -> None:
        self.espeak = Espeak()
        self._audio: list[np.ndarray] = []
        self._length = 0
        self._utterances: list[Utterance] = []
        self._phonemes = {SILENCE_PHONEME: 0}

    def corpus(self) -> Corpus:
        """Return all that has been spoken."""
        return Corpus(np.concatenate(self._audio), self._utterances, self._phonemes)

    def speak(self, language: str, sentence: Sentence, r: random.Random) -> None:
        """Speak a sentence in a voice drawn from `r`; one that is hardly audible is left out."""
        name = r.choice(VOICES[language]) + r.choice(VARIANTS)
        voice = Voice(name, rate=r.randint(125, 185), pitch=r.randint(30, 70), range=r.randint(30, 70))
        speech = self.espeak.say(sentence.text, voice)
        wave = resample(speech.samples / 32768, SAMPLE_RATE, self.espeak.sample_rate)
        audible = np.flatnonzero(np.abs(wave) > AUDIBLE)
        if len(audible) < SHORTEST:
            return
        first, last = int(audible[0]), int(audible[-1])
        wave = wave[first : last + 1]
        wave = wave * (PEAK / np.abs(wave).max())
        timer = _Timer(self.espeak.sample_rate, first / SAMPLE_RATE, len(wave) / SAMPLE_RATE)
        words = timer.words(sentence.text, speech)
        self._utterances.append(
            Utterance(
                first=self._length,
                length=len(wave),
                language=language,
                text=sentence.text,
                voice=name,
                words=_checked(words, sentence.text),
                english=sentence.english,
                english_words=_translated(sentence.english, sentence.slots, words) if sentence.english else None,
                phonemes=timer.phonemes(speech, self._phonemes),
            )
        )
        self._audio.append((wave * 32767).astype(np.int16))
        self._length += len(wave)


class _Timer:
    """Turns espeak-ng's sample numbers into seconds of the trimmed utterance."""

    def __init__(self, sample_rate: int, start: float, duration: float) -> None:
        self.sample_rate = sample_rate
        self.start = start
        self.duration = duration

    def seconds(self, sample: int) -> float:
        return float(min(max(sample / self.sample_rate - self.start, 0.0), self.duration))

    def words(self, text: str, speech: Speech) -> list[TimedWord]:
        """Return the words of a text with their times.

        A word without a start of its own was spoken as one with the word before: they share the time by
        their numbers of characters.
        """
        words = text.split()
        starts: dict[int, float] = {}
        position = 0
        for i, word in enumerate(words):
            position = text.index(word, position)
            sample = speech.word_samples.get(position + word.startswith("¿"), speech.word_samples.get(position))
            if sample is not None:
                starts[i] = self.seconds(sample)
            position += len(word)
        starts[0] = 0.0
        known = sorted(starts)
        timed: list[TimedWord] = []
        for i, following in zip(known, [*known[1:], len(words)], strict=True):
            timed += share(words[i:following], starts[i], starts.get(following, self.duration))
        return timed

    def phonemes(self, speech: Speech, numbers: dict[str, int]) -> list[tuple[int, float, float]]:
        """Return number, start and end of each phoneme; a new phoneme gets the next free number."""
        heard = [
            (numbers.setdefault(name, len(numbers)), self.seconds(sample))
            for name, sample in speech.phonemes
            if not name.startswith("_")
        ]
        ends = [start for _, start in heard[1:]] + [self.duration]
        return [(number, start, end) for (number, start), end in zip(heard, ends, strict=True)]


def share(words: list[str], start: float, end: float) -> list[TimedWord]:
    """Divide a time among words by their numbers of characters."""
    lengths = np.cumsum([0] + [len(word) for word in words])
    times = [float(start + (end - start) * length / lengths[-1]) for length in lengths]
    return list(zip(words, times[:-1], times[1:], strict=True))


def _translated(english: str, slots: tuple[tuple[int, int], ...], words: list[TimedWord]) -> TimedTokens:
    """Return the English words' tokens, which share the time of the phrase that they translate."""
    english_words = english.split()
    timed: list[TimedWord] = []
    position = 0
    for n_words, n_english in slots:
        start, end = words[position][1], words[position + n_words - 1][2]
        timed += share(english_words[len(timed) : len(timed) + n_english], start, end)
        position += n_words
    return _checked(timed, english)


def _checked(words: list[TimedWord], text: str) -> TimedTokens:
    """Return the words' tokens, which must be those of the text as a whole."""
    timed = time_tokens(words)
    if timed.ids != TOKENIZER.encode(" " + text):
        raise ValueError(f"The tokens of the words are not those of {text!r}.")
    return timed
