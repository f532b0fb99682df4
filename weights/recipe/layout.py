"""Lays out utterances in time, as training windows and sample recordings have them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .corpus import Utterance
from .tokens import GRID, SAMPLE_RATE, TOKENS_PER_SECOND

GRID_SECONDS = GRID / TOKENS_PER_SECOND
MARGIN = 0.025  # neither end of an utterance comes closer to a timestamp of the grid, in seconds
MOST_UTTERANCES = 99


@dataclass(frozen=True)
class Placed:
    """An utterance in a window.

    Attributes
    ----------
    utterance : Utterance
    start : float
        In seconds from the window's start.
    end : float or None
        None if the window ends before the utterance does.
    origin : float
        What is added to the times of the utterance's words and phonemes.
    starts_at_previous_end : bool
        Its start timestamp repeats the end timestamp before it, as Whisper writes continuous speech.
    """

    utterance: Utterance
    start: float
    end: float | None
    origin: float
    starts_at_previous_end: bool = False


def avoid_grid(r: random.Random, start: float, seconds: float) -> float:
    """Return `start`, shifted a little so that neither end is close to where its timestamp would change."""
    for _ in range(40):
        ends = (start % GRID_SECONDS, (start + seconds) % GRID_SECONDS)
        if all(MARGIN < end < GRID_SECONDS - MARGIN for end in ends):
            break
        start += r.uniform(0.005, 0.03)
    return start


def lay_out(
    r: random.Random,
    pool: Sequence[Utterance],
    pcm: Callable[[Utterance], np.ndarray],
    seconds: float,
    *,
    cut: bool = False,
    fill: bool = False,
) -> tuple[np.ndarray, list[Placed]]:
    """Draw utterances with gaps until the time is used up.

    Parameters
    ----------
    r : random.Random
    pool : sequence of Utterance
        What is drawn from, with repetition.
    pcm : callable
        Gives an utterance's samples.
    seconds : float
        Duration of the result.
    cut : bool
        Let the end of the window cut the last utterance.
    fill : bool
        Use all of the time; otherwise three of ten results end after at most six utterances.

    Returns
    -------
    audio : np.ndarray, shape = (seconds * 16000,), dtype = float32
    placed : list of Placed
    """
    audio = np.zeros(int(seconds * SAMPLE_RATE), np.float32)
    placed: list[Placed] = []
    time = _first_start(r)
    if r.random() < 0.08:  # the tail of something that was said before
        before = r.choice(pool)
        n_tail = int(r.uniform(0.02, 0.1) * SAMPLE_RATE)
        audio[:n_tail] += pcm(before)[-n_tail:] * r.uniform(0.5, 1)
        time = max(time, 0.15) + 0.1
    main_voice = r.choice(pool).voice if r.random() < 0.5 else None
    most = MOST_UTTERANCES if fill or r.random() < 0.7 else r.randint(1, 6)
    while len(placed) < most:
        utterance = r.choice(pool)
        if main_voice and r.random() < 0.8:
            utterance = _in_voice(r, pool, utterance, main_voice)
        if time > 0:
            time = avoid_grid(r, time, utterance.seconds)
        wave = pcm(utterance) * r.uniform(0.5, 1.0)
        first = int(time * SAMPLE_RATE)
        if time + utterance.seconds > seconds - 0.02:
            if cut and seconds - time > 0.12:
                audio[first:] += wave[: len(audio) - first]
                placed.append(Placed(utterance, time, None, time))
            break
        audio[first : first + len(wave)] += wave
        placed.append(Placed(utterance, time, time + utterance.seconds, time))
        gap = r.uniform(0.45, 1.1) if r.random() < 0.85 else r.uniform(1.1, 3.0)
        time += utterance.seconds + gap
    return audio, placed


def _first_start(r: random.Random) -> float:
    kind = r.random()
    if kind < 0.15:
        return 0.0
    if kind < 0.7:
        return r.uniform(0.03, 0.4)
    if kind < 0.93:
        return r.uniform(0.03, 1.0)
    return r.uniform(1, 2.5)


def _in_voice(r: random.Random, pool: Sequence[Utterance], drawn: Utterance, voice: str) -> Utterance:
    """Draw again, at most twelve times, until the voice is the wanted one."""
    for _ in range(12):
        if drawn.voice == voice:
            break
        drawn = r.choice(pool)
    return drawn
