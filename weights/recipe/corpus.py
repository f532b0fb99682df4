"""The corpus: utterances, the times of their words and phonemes, and where their audio lies."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .grammar import LANGUAGES, is_held_out
from .tokens import SAMPLE_RATE, Task, TimedTokens

AUDIO_FILE, UTTERANCES_FILE, PHONEMES_FILE = "audio.npy", "utterances.jsonl", "phonemes.json"


@dataclass(frozen=True)
class Utterance:
    """One spoken sentence.

    Attributes
    ----------
    first, length : int
        Where its samples lie in the corpus' audio.
    language, text, voice : str
    words : TimedTokens
        Tokens of `text`, in seconds from the utterance's start.
    english : str or None
        Translation of a Spanish or German text.
    english_words : TimedTokens or None
        Tokens of `english`, each at the time of the phrase that it translates.
    phonemes : list of (int, float, float)
        Number, start and end.
    """

    first: int
    length: int
    language: str
    text: str
    voice: str
    words: TimedTokens
    english: str | None = None
    english_words: TimedTokens | None = None
    phonemes: list[tuple[int, float, float]] = dataclasses.field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Its duration."""
        return self.length / SAMPLE_RATE

    def tokens(self, task: Task) -> TimedTokens:
        """Return what is to be written down: the text or, if there is one, its translation."""
        return self.english_words if task == "translate" and self.english_words else self.words


class Corpus:
    """Utterances and their audio.

    Attributes
    ----------
    audio : np.ndarray, dtype = int16
        All utterances back to back, at 16 kHz.
    utterances : list of Utterance
    phonemes : dict of str to int
        The phonemes' numbers; silence is 0.
    """

    def __init__(self, audio: np.ndarray, utterances: Sequence[Utterance], phonemes: dict[str, int]) -> None:
        self.audio = audio
        self.utterances = list(utterances)
        self.phonemes = phonemes

    def pcm(self, utterance: Utterance) -> np.ndarray:
        """Return an utterance's samples, float32."""
        samples = self.audio[utterance.first : utterance.first + utterance.length]
        return samples.astype(np.float32) / 32768

    def held_out(self, held_out: bool) -> dict[str, list[Utterance]]:
        """Return the utterances of each language that are, or are not, kept out of training."""
        return {
            language: [u for u in self.utterances if u.language == language and is_held_out(u.text) == held_out]
            for language in LANGUAGES
        }

    def save(self, folder: Path) -> None:
        """Write the corpus into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / AUDIO_FILE, self.audio)
        with open(folder / UTTERANCES_FILE, "w", encoding="utf8") as file:
            for utterance in self.utterances:
                file.write(json.dumps(dataclasses.asdict(utterance), ensure_ascii=False) + "\n")
        (folder / PHONEMES_FILE).write_text(json.dumps(self.phonemes, ensure_ascii=False), encoding="utf8")

    @classmethod
    def load(cls, folder: Path) -> Corpus:
        """Read what `save` wrote; the audio stays on disk until it is used."""
        with open(folder / UTTERANCES_FILE, encoding="utf8") as file:
            utterances = [_utterance(json.loads(line)) for line in file]
        phonemes = json.loads((folder / PHONEMES_FILE).read_text(encoding="utf8"))
        return cls(np.load(folder / AUDIO_FILE, mmap_mode="r"), utterances, phonemes)


def _utterance(record: dict[str, Any]) -> Utterance:
    english_words = record.pop("english_words")
    return Utterance(
        words=TimedTokens(**record.pop("words")),
        english_words=TimedTokens(**english_words) if english_words else None,
        phonemes=[(number, start, end) for number, start, end in record.pop("phonemes")],
        **record,
    )
