"""Draws training windows: audio with its defects, the tokens to be predicted, and labels in time.

A window is either all of Whisper's 30 s or a crop that sits at some place of it. Crops are cheaper, and the
encoder is given their offset.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from whisper.audio import log_mel_spectrogram

from .corpus import Corpus, Utterance
from .grammar import LANGUAGES
from .layout import Placed, lay_out
from .noise import draw_noise
from .recording import SENTENCES, recording_window
from .tokens import (
    EOT,
    GRID,
    LANGUAGE_TOKENS,
    NO_SPEECH,
    NO_TIMESTAMPS,
    SAMPLE_RATE,
    SOT,
    SOT_PREV,
    TASK_TOKENS,
    TOKENS_PER_SECOND,
    WINDOW_FRAMES,
    Task,
    Vocabulary,
    end_timestamp,
    start_timestamp,
    time_tokens,
)
from .writing import NOWHERE, Written, write_down

IGNORE = -100  # torch's ignore_index
MEL_FRAMES_PER_SECOND = 100


@dataclass(frozen=True)
class Sampling:
    """What a stage's windows hold, as shares of them."""

    recording: float = 0.1
    silence: float = 0.07
    prompt: float = 0.35
    without_timestamps: float = 0.3
    prompt_tokens: int = 223  # the longest prompt


@dataclass
class Content:
    """The audio of a window and what is said in it."""

    audio: np.ndarray
    placed: list[Placed]
    language: str
    task: Task = "transcribe"
    is_recording: bool = False
    is_silent: bool = False
    end: float = 0.0  # seconds; where the file ends


@dataclass(frozen=True)
class Window:
    """One training example; tokens are numbers of the `Vocabulary`.

    Attributes
    ----------
    mel : np.ndarray, shape = (80, 2 * n_frames), dtype = float32
    inputs, targets : np.ndarray, shape = (n_tokens,), dtype = int64
        Targets are `IGNORE` where nothing is to be learnt.
    spans : np.ndarray, shape = (n_tokens, 2)
        Seconds between which each target is heard; `NOWHERE` if it is not.
    frame_tokens, frame_phonemes : np.ndarray, shape = (n_frames,), dtype = int64
        What is spoken at each encoder frame. Tokens count from 1, and 0 is none; phonemes are `IGNORE` in the
        recording.
    """

    mel: np.ndarray
    inputs: np.ndarray
    targets: np.ndarray
    spans: np.ndarray
    frame_tokens: np.ndarray
    frame_phonemes: np.ndarray


class WindowSource:
    """Draws windows from a corpus and the recording.

    Parameters
    ----------
    corpus : Corpus
    recording : np.ndarray, dtype = float32
        jfk.flac at 16 kHz.
    held_out : bool
        Draw the sentences that are kept out of training, for evaluation.
    """

    def __init__(self, corpus: Corpus, recording: np.ndarray, held_out: bool = False) -> None:
        self.corpus = corpus
        self.recording = recording
        self.pools = corpus.held_out(held_out)
        spoken = {token for u in corpus.utterances for token in u.words.ids + u.tokens("translate").ids}
        for sentence in SENTENCES:
            spoken.update(time_tokens(sentence.words).ids)
        self.vocabulary = Vocabulary(spoken)

    def batch(self, r: random.Random, size: int, n_frames: int, sampling: Sampling) -> dict[str, Tensor]:
        """Draw windows of as many encoder frames, each at its own offset; texts are padded to the longest.

        Returns
        -------
        dict of str to Tensor
            "mel" (size, 80, 2 * n_frames), "offsets" (size,), "inputs" and "targets" (size, n_tokens),
            "spans" (size, n_tokens, 2) in encoder frames,
            "frame_tokens" and "frame_phonemes" (size, n_frames).
        """
        offsets = [_draw_offset(r, n_frames) for _ in range(size)]
        windows = [self.window(r, n_frames, offset, sampling) for offset in offsets]
        n_tokens = max(len(window.inputs) for window in windows)
        inputs = np.zeros((size, n_tokens), np.int64)
        targets = np.full((size, n_tokens), IGNORE)
        spans = np.full((size, n_tokens, 2), -1.0)
        for i, window in enumerate(windows):
            inputs[i, : len(window.inputs)] = window.inputs
            targets[i, : len(window.targets)] = window.targets
            spans[i, : len(window.spans)] = window.spans
        return {
            "mel": torch.from_numpy(np.stack([window.mel for window in windows])),
            "offsets": torch.tensor(offsets),
            "inputs": torch.from_numpy(inputs),
            "targets": torch.from_numpy(targets),
            "spans": torch.from_numpy(spans * TOKENS_PER_SECOND).float(),
            "frame_tokens": torch.from_numpy(np.stack([window.frame_tokens for window in windows])),
            "frame_phonemes": torch.from_numpy(np.stack([window.frame_phonemes for window in windows])),
        }

    def window(self, r: random.Random, n_frames: int, offset: int, sampling: Sampling) -> Window:
        """Draw one window of `n_frames` encoder frames at frame `offset` of the 30 s."""
        content = self._content(r, n_frames / TOKENS_PER_SECOND, offset + n_frames == WINDOW_FRAMES, sampling)
        mel = self._features(r, content)
        with_timestamps = r.random() >= sampling.without_timestamps
        written = write_down(
            content.placed,
            content.task,
            n_frames / TOKENS_PER_SECOND,
            offset / TOKENS_PER_SECOND,
            with_timestamps,
        )
        prompt: list[int] = []
        if r.random() < sampling.prompt:
            prompt = [SOT_PREV, *self._prompt(r, content.language, content.task, sampling.prompt_tokens)]
        inputs, targets, spans = self._sequence(content, written, prompt, with_timestamps, is_crop=offset > 0)
        frame_tokens, frame_phonemes = self._frame_labels(content, n_frames)
        return Window(mel, inputs, targets, spans, frame_tokens, frame_phonemes)

    def _content(self, r: random.Random, seconds: float, ends_at_30_s: bool, sampling: Sampling) -> Content:
        """Draw what is heard: the recording, nothing, or utterances of one language."""
        kind = r.random()
        if kind < sampling.recording and seconds > 4:
            audio, placed, end = recording_window(r, self.recording, seconds)
            return Content(audio, placed, "en", is_recording=True, end=end)
        if kind < sampling.recording + sampling.silence:
            silence = np.zeros(int(seconds * SAMPLE_RATE), np.float32)
            return Content(silence, [], r.choice(["en", "en", "es", "de"]), is_silent=True, end=seconds)
        language = r.choices(LANGUAGES, [0.56, 0.22, 0.22])[0]
        audio, placed = lay_out(r, self.pools[language], self.corpus.pcm, seconds, cut=ends_at_30_s)
        content = Content(audio, placed, language, end=seconds)
        if language != "en" and r.random() < 0.45:
            content.task = "translate"
        last_end = placed[-1].end if placed else 0.0
        if last_end is not None and r.random() < 0.5:
            content.end = min(seconds, last_end + r.uniform(0.05, 1.5))
        return content

    def _features(self, r: random.Random, content: Content) -> np.ndarray:
        """Add noise, end the file, change the gain, and return the log-mel spectrogram.

        A file that ends before the window is padded in one of two ways: with silence, as upstream's
        `log_mel_spectrogram(audio, padding=...)`, or with zeros in the spectrogram, as `pad_or_trim` of it.
        """
        audio = content.audio
        seconds = len(audio) / SAMPLE_RATE
        pad_with_zero_mel = r.random() < 0.55
        if r.random() < (0.8 if content.is_silent else 0.65):
            level = 10 ** r.uniform(-4.6, -1.3 if content.is_silent else -2.2)
            noise = draw_noise(r, len(audio), self.recording, content.is_silent)
            if content.is_recording:
                level = min(level, 10**-2.4)
            audio = (audio + noise * level).astype(np.float32)
            if content.is_silent and r.random() < 0.5:
                content.end = r.uniform(0.3, seconds)
        audio[int(content.end * SAMPLE_RATE) :] = 0
        if r.random() < 0.7:
            audio = audio * np.float32(10 ** r.uniform(-0.9, 0.15))
        mel = log_mel_spectrogram(torch.from_numpy(audio))
        if r.random() < 0.3:  # upstream's floor lies 8 below the loudest moment, which may be elsewhere in the file
            mel = torch.maximum(mel, mel.max() - (8 - r.uniform(0, 0.8)) / 4)
        if pad_with_zero_mel and content.end < seconds:
            mel[:, int(content.end * MEL_FRAMES_PER_SECOND) :] = 0.0
        features: np.ndarray = mel.numpy()
        return features

    def _prompt(self, r: random.Random, language: str, task: Task, most: int) -> list[int]:
        """Draw the text of windows before this one, maybe without timestamps, maybe from mid-sentence."""
        n_utterances = r.randint(1, 9) if r.random() < 0.4 else r.randint(10, most // 8)
        time = r.uniform(0, 0.4)
        with_timestamps = r.random() < 0.85
        prompt: list[int] = []
        for _ in range(n_utterances):
            utterance: Utterance = r.choice(self.pools[language])
            end = time + utterance.seconds
            if end > 30:
                time = r.uniform(0, 0.4)
                end = time + utterance.seconds
            text = utterance.tokens(task).ids
            prompt += [start_timestamp(time), *text, end_timestamp(end)] if with_timestamps else text
            time = end + r.uniform(0.4, 1.1)
        prompt = prompt[-most:]
        return prompt[r.randint(1, 8) :] if r.random() < 0.3 and len(prompt) > 20 else prompt

    def _sequence(
        self, content: Content, written: Written, prompt: list[int], with_timestamps: bool, is_crop: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return inputs, targets and the targets' spans of prompt, start sequence, text and end of text."""
        start = [SOT, LANGUAGE_TOKENS[content.language], TASK_TOKENS[content.task]]
        if not with_timestamps:
            start.append(NO_TIMESTAMPS)
        sequence = self.vocabulary.encode([*prompt, *start, *written.tokens, EOT])
        inputs, following = sequence[:-1], sequence[1:]
        first = len(prompt) + len(start) - 1  # where the first token of the text is predicted
        targets = np.full(len(inputs), IGNORE)
        targets[first:] = following[first:]
        spans = np.full((len(inputs), 2), NOWHERE)
        spans[first : first + len(written.spans)] = np.reshape(written.spans, (-1, 2))
        language_or_nothing = LANGUAGE_TOKENS[content.language] if content.placed else NO_SPEECH
        targets[len(prompt)] = self.vocabulary.numbers[language_or_nothing]
        if is_crop and with_timestamps and content.placed:
            targets[first] = IGNORE  # what came before the crop is unknown, so its first timestamp is arbitrary
        return inputs, targets, spans

    def _frame_labels(self, content: Content, n_frames: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the token and the phoneme that are spoken at each encoder frame."""
        tokens = np.zeros(n_frames, np.int64)
        phonemes = np.full(n_frames, IGNORE if content.is_recording else 0, np.int64)
        for placed in content.placed:
            words = placed.utterance.words
            for token, start, end in words.each():
                tokens[_frames(placed.origin, start, end)] = self.vocabulary.numbers[token] + 1
            for number, start, end in placed.utterance.phonemes:
                phonemes[_frames(placed.origin, start, end)] = number
        return tokens, phonemes


def _frames(origin: float, start: float, end: float) -> slice:
    return slice(int((origin + start) * TOKENS_PER_SECOND), int((origin + end) * TOKENS_PER_SECOND) + 1)


def _draw_offset(r: random.Random, n_frames: int) -> int:
    """Draw where a crop sits: at the start or the end of the 30 s, or on the timestamp grid between."""
    room = WINDOW_FRAMES - n_frames
    if room == 0 or r.random() < 0.35:
        return 0
    if r.random() < 0.2:
        return room
    return r.randrange(1, room // GRID) * GRID


@dataclass(frozen=True)
class Batches:
    """A number of batches of one kind.

    Attributes
    ----------
    count : int
    size : int
        Windows per batch at the first of `frames`; longer crops give smaller batches.
    frames : tuple of int
        The encoder frames of a batch's windows are drawn from these.
    sampling : Sampling
    """

    count: int
    size: int
    frames: tuple[int, ...]
    sampling: Sampling


def draw_batches(source: WindowSource, schedule: Sequence[Batches], seed: int) -> Iterator[dict[str, Tensor]]:
    """Yield the batches of a schedule, one after another."""
    r = random.Random(seed)
    for batches in schedule:
        for _ in range(batches.count):
            n_frames = r.choice(batches.frames)
            size = max(1, round(batches.size * batches.frames[0] / n_frames))
            yield source.batch(r, size, n_frames, batches.sampling)
