"""`LiveTranscription`: a recording that goes on is transcribed again and again, and what is confirmed is kept.

There is no clock and no device in here: who feeds the samples decides when.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import whisper
from whisper.audio import SAMPLE_RATE

from whisper_max_plugin.half import takes_half
from whisper_max_plugin.live import MIN_CHUNK
from whisper_max_plugin.live.local_agreement import LocalAgreement, Word

if TYPE_CHECKING:
    from whisper.model import Whisper

LONGEST = 25.0  # seconds of audio in the buffer; upstream's window has 30
TRIMMED = 15.0  # seconds; a longer buffer is cut where a confirmed segment ends
KEPT = 20.0  # seconds that are left at most of a full buffer without such an end
MAX_CHUNK = LONGEST - KEPT  # seconds of new audio for one pass
PROMPT = 200  # characters of the confirmed text before the buffer, which upstream gets as `initial_prompt`


class LiveTranscription:
    """Transcribes audio while it is being recorded, by the policy LocalAgreement-2.

    Each pass transcribes a buffer, which is the recording since the end of a confirmed segment and has at most 25 s.
    What two passes in a row agree on is confirmed, and never changes any more.

    Parameters
    ----------
    model : whisper.model.Whisper
        accelerated or upstream's own
    language : str | None
        as upstream takes it; None detects it, until the first words are confirmed
    task : str
        "transcribe" or "translate"
    min_chunk : float
        seconds of new audio that a pass waits for: less makes confirmation earlier, and work more

    Attributes
    ----------
    language : str | None
        its code, once it was given or the first words are confirmed
    """

    def __init__(
        self, model: Whisper, *, language: str | None = None, task: str = "transcribe", min_chunk: float = MIN_CHUNK
    ) -> None:
        if not 0 < min_chunk <= MAX_CHUNK:
            raise ValueError(f"min_chunk is {min_chunk:g}: give seconds above 0 and up to {MAX_CHUNK:g}")
        self.model = model
        self.language = language
        self.min_chunk = min_chunk
        self._n_samples = 0
        self._options: dict[str, Any] = {"task": task, "fp16": takes_half(model)}
        self._agreement = LocalAgreement()
        self._buffer: npt.NDArray[np.float32] = np.zeros(0, np.float32)
        self._heard = 0.0  # seconds of the recording that a pass has seen
        self._segment_ends: list[float] = []  # of the latest pass, but for the last segment, which may go on

    @property
    def confirmed(self) -> list[Word]:
        """All confirmed words, in order."""
        return list(self._agreement.confirmed)

    @property
    def text(self) -> str:
        """The confirmed words as one text."""
        return "".join(word.text for word in self._agreement.confirmed)

    @property
    def seconds(self) -> float:
        """Seconds of audio that were fed."""
        return self._n_samples / SAMPLE_RATE

    @property
    def buffered(self) -> float:
        """Seconds of audio in the buffer."""
        return len(self._buffer) / SAMPLE_RATE

    def feed(self, samples: npt.NDArray[np.float32]) -> list[Word]:
        """Take what was recorded since the last call; return the words that are confirmed now.

        Parameters
        ----------
        samples : np.ndarray
            float32, shape (n_samples,), 16 kHz, mono; what is longer than 5 s takes several passes

        Raises
        ------
        ValueError
            when it is not float32 or has another shape
        """
        if samples.ndim != 1 or samples.dtype != np.float32:
            raise ValueError(f"samples are {samples.dtype}, shape {samples.shape}: give float32, shape (n_samples,)")
        words: list[Word] = []
        while samples.size:
            n_samples = min(round((self._heard + MAX_CHUNK - self.seconds) * SAMPLE_RATE), samples.size)
            self._buffer = np.concatenate([self._buffer, samples[:n_samples]])
            self._n_samples += n_samples
            samples = samples[n_samples:]
            if samples.size or self.seconds - self._heard >= self.min_chunk:
                words += self._pass()
        return words

    def finish(self) -> list[Word]:
        """Confirm the rest, after a last pass if there is audio that none has seen; return it."""
        words = self._pass() if self.seconds > self._heard else []
        words += self._agreement.finish()
        self._buffer = self._buffer[:0]
        return words

    def _pass(self) -> list[Word]:
        hypothesis, language = self._hypothesis()
        words = self._agreement.insert(hypothesis)
        if words:
            self.language = language
        self._heard = self.seconds
        if self.buffered > TRIMMED:
            ends = [end for end in self._segment_ends if end <= self._agreement.end]
            if ends:
                self._cut(max(ends))
        if self.buffered > KEPT:
            words += self._cut_without_segment()
        return words

    def _hypothesis(self) -> tuple[list[Word], str]:
        """Transcribe the buffer; return its words and their language."""
        offset = self.seconds - self.buffered
        before = "".join(word.text for word in self._agreement.confirmed if word.start < offset)
        result = whisper.transcribe(
            self.model,
            self._buffer,
            language=self.language,
            temperature=0.0,  # a hypothesis that was sampled would agree with no other
            word_timestamps=True,
            initial_prompt=before[-PROMPT:] or None,
            **self._options,
        )
        segments = result["segments"]
        self._segment_ends = [segment["end"] + offset for segment in segments[:-1]]
        words = [
            Word(float(word["start"]) + offset, float(word["end"]) + offset, word["word"])  # from numpy's
            for segment in segments
            for word in segment["words"]
        ]
        return words, result["language"]

    def _cut(self, seconds: float) -> None:
        """Take what lies before out of the buffer."""
        n_samples = round((self.seconds - seconds) * SAMPLE_RATE)
        self._buffer = self._buffer[len(self._buffer) - n_samples :]

    def _cut_without_segment(self) -> list[Word]:
        """Make room for the next pass: in front of the word, if any, that is being said 15 s before the end."""
        cut = self.seconds - TRIMMED
        for word in self._agreement.pending:
            if word.start < cut < word.end:
                cut = max(word.start, self.seconds - KEPT)
        words = self._agreement.confirm_until(cut)
        self._cut(cut)
        return words
