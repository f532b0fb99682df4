"""The stages of the training, as data.

They were not planned. Each stage was started from the one before after a defect was seen: stage 2 adds
windows of 30 s, 3 more windows without timestamps and larger attention losses, 4 more of the recording, 5 a
higher rate again, attention spread over the word and longer prompts, 6 long prompts on crops too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .network import LossWeights
from .tokens import WINDOW_FRAMES
from .windows import Batches, Sampling

CORPUS_SIZES = {"en": 16000, "es": 5000, "de": 5000}
SMOKE_CORPUS_SIZES = {"en": 40, "es": 10, "de": 10}

CROP_FRAMES = (400, 600)


@dataclass(frozen=True)
class Stage:
    """One run of the optimiser, from the raw weights of the stage before.

    Attributes
    ----------
    name : str
    seed : int
    processes : int
        Each draws its own batches; gradients are averaged.
    learning_rate : float
        At its highest: it rises at first and falls from 30 % of the schedule on.
    schedule : tuple of Batches
    steps : int
        How many batches of the schedule are used; the learning rate knows the whole schedule.
    refines : bool
        Whether the frame losses are small and the attention losses large from the start.
    """

    name: str
    seed: int
    processes: int
    learning_rate: float
    schedule: tuple[Batches, ...]
    steps: int
    refines: bool = False

    @property
    def schedule_length(self) -> int:
        """The batches of the whole schedule."""
        return sum(batches.count for batches in self.schedule)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        progress = step / self.schedule_length
        rise = min(1.0, (step + 1) / (50 if self.refines else 150))
        fall = (1 - progress) / 0.7 if progress > 0.3 else 1.0
        return max(2e-5, self.learning_rate * rise * fall)

    def loss_weights(self, step: int) -> LossWeights:
        """Return the losses' weights at a step."""
        if self.refines:
            return LossWeights(attention=0.6, spread=0.3, frames=0.1)
        progress = step / self.schedule_length
        frames = 0.5 if progress < 0.25 else 0.2 if progress < 0.5 else 0.1
        return LossWeights(attention=0.3 if progress < 0.3 else 0.1, spread=0.1, frames=frames)


def crops(count: int) -> Batches:
    """Return batches of 16 crops of 8 s, or 11 of 12 s."""
    return Batches(count, 16, CROP_FRAMES, Sampling(prompt=0.3))


def full_windows(count: int, without_timestamps: float = 0.3, recording: float = 0.13) -> Batches:
    """Return batches of 4 windows of 30 s."""
    sampling = Sampling(prompt=0.6, without_timestamps=without_timestamps, recording=recording)
    return Batches(count, 4, (WINDOW_FRAMES,), sampling)


LONG_PROMPTS = (
    Batches(1, 16, CROP_FRAMES, Sampling(prompt=0.8, prompt_tokens=330, without_timestamps=0.25, recording=0.05)),
    Batches(1, 4, (WINDOW_FRAMES,), Sampling(prompt=0.7, without_timestamps=0.4, recording=0.17)),
)

STAGES = (
    Stage("1", 1, 1, 2e-3, (crops(4400), full_windows(1500)), steps=4000),
    Stage("2", 3, 2, 1e-3, (crops(100), full_windows(1500)), steps=1000),
    Stage("3", 4, 2, 7e-4, (full_windows(1300, 0.45, 0.13),), steps=900, refines=True),
    Stage("4", 5, 2, 3.2e-4, (full_windows(480, 0.5, 0.2),), steps=480, refines=True),
    Stage("5", 6, 2, 5e-4, (full_windows(600, 0.4, 0.17),), steps=450, refines=True),
    Stage("6", 7, 2, 5e-4, LONG_PROMPTS * 380, steps=760, refines=True),
)


def shortened(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Return the stages with two steps of two windows each, which show that everything runs."""
    short = []
    for stage in stages:
        kinds = stage.schedule[:2] if len(stage.schedule) > 1 else stage.schedule * 2
        schedule = tuple(replace(batches, count=1, size=2) for batches in kinds)
        short.append(replace(stage, schedule=schedule, steps=2))
    return tuple(short)
