"""The one real recording that nano is trained on, jfk.flac of openai-whisper's tests, and windows with it."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from .corpus import Utterance
from .layout import Placed
from .resample import resample
from .tokens import SAMPLE_RATE, TimedWord, time_tokens


@dataclass(frozen=True)
class RecordedSentence:
    """A sentence of the recording, in seconds from its start."""

    words: tuple[TimedWord, ...]
    start: float
    end: float


# Word times were read off the spectrogram, with dynamic time warping against espeak-ng as a guide.
SENTENCES = (
    RecordedSentence(
        (
            ("And", 0.28, 0.58),
            ("so", 0.58, 0.96),
            ("my", 0.96, 1.23),
            ("fellow", 1.23, 1.62),
            ("Americans", 1.62, 2.26),
            ("ask", 3.26, 3.70),
            ("not", 3.94, 4.34),
            ("what", 5.38, 5.62),
            ("your", 5.62, 5.82),
            ("country", 5.82, 6.39),
            ("can", 6.39, 6.72),
            ("do", 6.72, 6.98),
            ("for", 6.98, 7.20),
            ("you", 7.20, 7.62),
        ),
        start=0.0,
        end=7.62,
    ),
    RecordedSentence(
        (
            ("ask", 8.16, 8.57),
            ("what", 8.57, 8.83),
            ("you", 8.83, 9.07),
            ("can", 9.07, 9.38),
            ("do", 9.38, 9.58),
            ("for", 9.58, 9.79),
            ("your", 9.79, 9.96),
            ("country.", 9.96, 10.44),
        ),
        start=7.9,
        end=10.44,
    ),
)
DURATION = 11.0
SECOND_SENTENCE = 7.9  # seconds; where the recording may be cut in two
SPEEDS = (94, 96, 97, 98, 99, 101, 102, 103, 104, 106)  # percent of the duration; the pitch changes with it
BACKGROUND = (38400, 49600)  # samples of a pause, with the recording's own noise


def recording_window(r: random.Random, recording: np.ndarray, seconds: float) -> tuple[np.ndarray, list[Placed], float]:
    """Put the recording, or one of its two sentences, somewhere in a window.

    Returns
    -------
    audio : np.ndarray, shape = (seconds * 16000,), dtype = float32
    placed : list of Placed
    end : float
        Second at which the recording ends.
    """
    parts = _draw_parts(r, seconds)
    first_part_end = r.uniform(7.75, 7.9)
    clip_start = 0.0 if 0 in parts else SECOND_SENTENCE
    clip_end = DURATION if 1 in parts else first_part_end
    clip = recording[int(clip_start * SAMPLE_RATE) : int(clip_end * SAMPLE_RATE)]
    stretch = 1.0
    if r.random() < 0.6:
        percent = r.choice(SPEEDS)
        stretch = percent / 100
        clip = resample(clip, percent, 100)
    clip = clip[: int(seconds * SAMPLE_RATE)]
    room = seconds - len(clip) / SAMPLE_RATE
    offset = 0.0
    if r.random() < 0.5 and room > 0.2:
        latest = 1.0 if r.random() < 0.5 else 19.0
        offset = r.uniform(0.02, min(room, latest))
    audio = np.zeros(int(seconds * SAMPLE_RATE), np.float32)
    first = int(offset * SAMPLE_RATE)
    audio[first : first + len(clip)] = clip * r.uniform(0.5, 1.2)

    def moved(time: float) -> float:
        return offset + (time - clip_start) * stretch

    placed = []
    for part in parts:
        sentence = SENTENCES[part]
        words = [(word, moved(start), moved(end)) for word, start, end in sentence.words]
        utterance = Utterance(
            first=0,
            length=0,
            language="en",
            text=" ".join(word for word, _, _ in sentence.words),
            voice="",
            words=time_tokens(words),
        )
        continued = part == 1 and len(parts) == 2
        placed.append(Placed(utterance, moved(sentence.start), moved(sentence.end), 0.0, continued))
    return audio, placed, offset + len(clip) / SAMPLE_RATE


def _draw_parts(r: random.Random, seconds: float) -> tuple[int, ...]:
    """Draw which of the two sentences a window of that duration holds."""
    if seconds >= 11.9 and r.random() < 0.75:
        return (0, 1)
    if seconds > 8.6:
        return (r.choice((0, 1)),)
    return (1,)
