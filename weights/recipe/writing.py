"""Writes down what is heard in a window: the tokens to be predicted, each with the time it is heard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .layout import Placed
from .tokens import TIMESTAMP_BEGIN, Task, end_timestamp, start_timestamp

NOWHERE = (-1.0, -1.0)  # the span of a token that is not heard at any time
LATEST_FIRST_TIMESTAMP = TIMESTAMP_BEGIN + 50  # upstream's max_initial_timestamp, 1 s
WORD_MARGIN = 0.01  # seconds by which a word's span is longer than the word, at either end


@dataclass
class Written:
    """The tokens of a window's content, and the seconds at which each is heard."""

    tokens: list[int] = field(default_factory=list)
    spans: list[tuple[float, float]] = field(default_factory=list)

    def add(self, token: int, span: tuple[float, float]) -> None:
        """Append a token."""
        self.tokens.append(token)
        self.spans.append(span)


def write_down(content: Sequence[Placed], task: Task, seconds: float, offset: float, with_timestamps: bool) -> Written:
    """Write down the utterances of a window.

    A sentence that the window cuts gets a start timestamp and nothing else, so that the next window begins
    with it; without timestamps the words that are heard are written.

    Parameters
    ----------
    content : sequence of Placed
    task : str
    seconds : float
        Duration of the window.
    offset : float
        The window's place in the 30 s, in seconds; timestamps count from the start of the 30 s, spans do not.
    with_timestamps : bool

    Returns
    -------
    Written
        With one more span than tokens if there is one for the end of the text, at the end of the speech.
    """
    written = Written()
    previous_end = TIMESTAMP_BEGIN
    for i, placed in enumerate(content):
        if with_timestamps:
            start = previous_end if placed.starts_at_previous_end else start_timestamp(placed.start + offset)
            if i == 0 and offset == 0:
                start = min(start, LATEST_FIRST_TIMESTAMP)
            around_start = (placed.start - 0.1, placed.start + 0.16)
            written.add(start, NOWHERE if placed.starts_at_previous_end else around_start)
        if placed.end is None:
            if not with_timestamps:
                _write_words(written, placed, task, until=seconds)
            break
        _write_words(written, placed, task)
        previous_end = end_timestamp(placed.end + offset)
        if with_timestamps:
            written.add(previous_end, (placed.end - 0.16, placed.end + 0.1))
    if not written.tokens and with_timestamps:
        written.add(TIMESTAMP_BEGIN, NOWHERE)
    if content and content[-1].end is not None:
        written.spans.append((content[-1].end, content[-1].end + 0.4))
    return written


def _write_words(written: Written, placed: Placed, task: Task, until: float | None = None) -> None:
    for token, start, end in placed.utterance.tokens(task).each():
        if until is not None and placed.origin + end > until:
            return
        written.add(token, (placed.origin + start - WORD_MARGIN, placed.origin + end + WORD_MARGIN))
