"""LocalAgreement-2: of the hypotheses about a recording that goes on, what two in a row agree on is confirmed.

The policy is that of Macháček, Dabre and Bojar, "Turning Whisper into Real-Time Transcription System" (2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TOLERANCE = 0.1  # seconds that the time of a word may differ from pass to pass
NEAR = 1.0  # seconds; a hypothesis that begins so near to what is confirmed may repeat it
LONGEST_REPETITION = 5  # words


@dataclass(frozen=True)
class Word:
    """A word as upstream makes it: the text has the space before it, and the punctuation around it."""

    start: float  # seconds since the recording began
    end: float
    text: str


class LocalAgreement:
    """Takes hypotheses, and confirms the longest common beginning of the last two behind what is confirmed.

    Attributes
    ----------
    confirmed : list[Word]
        grows at its end only
    pending : list[Word]
        the latest hypothesis behind it
    """

    def __init__(self) -> None:
        self.confirmed: list[Word] = []
        self.pending: list[Word] = []

    @property
    def end(self) -> float:
        """Where the last confirmed word ends, in seconds."""
        return self.confirmed[-1].end if self.confirmed else 0.0

    def insert(self, hypothesis: Sequence[Word]) -> list[Word]:
        """Compare a hypothesis with the one before it; return the words that are confirmed now.

        Parameters
        ----------
        hypothesis : Sequence[Word]
            words in order; those that lie before the end of the confirmed ones are taken to be the same
        """
        new = self._behind_confirmed(hypothesis)
        n_common = 0
        for ours, theirs in zip(self.pending, new, strict=False):
            if ours.text != theirs.text:
                break
            n_common += 1
        self.pending = new
        return self._confirm(n_common)

    def confirm_until(self, seconds: float) -> list[Word]:
        """Confirm the pending words that end there or before, since no other hypothesis about them will come."""
        n_words = 0
        while n_words < len(self.pending) and self.pending[n_words].end <= seconds:
            n_words += 1
        return self._confirm(n_words)

    def finish(self) -> list[Word]:
        """Confirm all that is pending."""
        return self._confirm(len(self.pending))

    def _confirm(self, n_words: int) -> list[Word]:
        words, self.pending = self.pending[:n_words], self.pending[n_words:]
        self.confirmed.extend(words)
        return words

    def _behind_confirmed(self, hypothesis: Sequence[Word]) -> list[Word]:
        new = [word for word in hypothesis if word.start > self.end - TOLERANCE] if self.confirmed else [*hypothesis]
        if new and new[0].start - self.end < NEAR:
            # Times are not exact: the last confirmed words may be among those that are left.
            for n_words in range(1, min(len(self.confirmed), len(new), LONGEST_REPETITION) + 1):
                if [word.text for word in self.confirmed[-n_words:]] == [word.text for word in new[:n_words]]:
                    return new[n_words:]
        return new
