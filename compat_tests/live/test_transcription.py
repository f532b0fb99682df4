"""`LiveTranscription`: what is confirmed, when, and how much audio it keeps; without a clock."""

from __future__ import annotations

import functools
import types
from typing import Any

import numpy as np
import pytest
import torch
import whisper
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from whisper_max_plugin.live.transcription import LiveTranscription

from ..conftest import Pair
from ..data import SAMPLE, SAMPLE_DE, reference

RATE = 16000


def feed_all(live: LiveTranscription, samples: np.ndarray, seconds: float) -> None:
    """Feed `samples` in equal chunks, and finish; what was confirmed stays."""
    chunk = round(seconds * RATE)
    for begin in range(0, len(samples), chunk):
        before = live.confirmed
        told = live.feed(samples[begin : begin + chunk])
        assert live.confirmed == before + told
        assert live.buffered <= 25
    before = live.confirmed
    assert live.finish() == live.confirmed[len(before) :]
    assert live.confirmed[: len(before)] == before


# With a model


@pytest.mark.parametrize("which", ["max", "torch"])
def test_speech_is_transcribed_as_from_a_file(nano: Pair, which: str) -> None:
    sentences = [sentence for sentence in reference(SAMPLE) if sentence.end < 10.5]
    samples = whisper.load_audio(str(SAMPLE))[: round(10.8 * RATE)]
    live = LiveTranscription(getattr(nano, which), language="en")
    feed_all(live, samples, 1.0)
    assert live.text.strip() == " ".join(sentence.text for sentence in sentences)
    assert live.seconds == 10.8
    firsts = [word for word in live.confirmed if word.text.strip() in ("The", "There")]
    assert [word.start for word in firsts[:1]] == pytest.approx([sentences[0].start], abs=0.5)
    assert [word.end for word in live.confirmed][-1] == pytest.approx(sentences[-1].end, abs=0.5)


def test_words_are_confirmed_soon(nano: Pair) -> None:
    live = LiveTranscription(nano.max, language="en")
    samples = whisper.load_audio(str(SAMPLE))[: 10 * RATE]
    delays = []
    for begin in range(0, len(samples), RATE):
        delays += [live.seconds - word.end for word in live.feed(samples[begin : begin + RATE])]
    assert len(delays) > 15
    assert np.median(delays) < 3.5
    assert max(delays) < 6


def test_the_buffer_is_trimmed_where_a_confirmed_segment_ends(nano: Pair) -> None:
    live = LiveTranscription(nano.max, language="en")
    feed_all(live, whisper.load_audio(str(SAMPLE)), 1.0)
    expected = " ".join(sentence.text for sentence in reference(SAMPLE))
    assert live.text.strip() == expected


def test_the_language_is_detected_until_words_are_confirmed(nano: Pair) -> None:
    live = LiveTranscription(nano.max)
    samples = whisper.load_audio(str(SAMPLE_DE))
    assert live.language is None
    languages = []
    for begin in range(0, 8 * RATE, RATE):
        live.feed(samples[begin : begin + RATE])
        languages.append((live.language, bool(live.confirmed)))
    assert all((language is None) is not confirmed for language, confirmed in languages)
    known = [language for language, _ in languages if language]
    assert known == known[:1] * len(known)
    assert known


def test_silence_confirms_nothing_and_needs_no_memory(nano: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    # nano has not learnt what silence is; with these thresholds upstream takes everything for it
    silent = functools.partial(whisper.transcribe, no_speech_threshold=-1.0, logprob_threshold=None)
    monkeypatch.setattr(whisper, "transcribe", silent)
    live = LiveTranscription(nano.max, language="en")
    feed_all(live, np.zeros(60 * RATE, np.float32), 2.5)
    assert live.text == ""


# With a model that knows what is said, but not yet how the last words end


class Speech:
    """Words with their times; the samples are numbered, so that a buffer tells where it begins."""

    def __init__(self, gaps_and_durations: list[tuple[float, float]], per_segment: int, unsure: float) -> None:
        self.words = []
        self.per_segment = per_segment
        self.unsure = unsure
        time = 0.0
        for index, (gap, duration) in enumerate(gaps_and_durations):
            self.words.append((time + gap, time + gap + duration, f" w{index}"))
            time += gap + duration
        self.samples = np.arange(round((time + 0.5) * RATE), dtype=np.float32)
        self.passes = 0
        self.prompts: list[str | None] = []
        self.longest = 0.0

    def transcribe(self, _model: Any, buffer: np.ndarray, *, initial_prompt: str | None, **_options: Any) -> dict:
        self.passes += 1
        self.prompts.append(initial_prompt)
        self.longest = max(self.longest, len(buffer) / RATE)
        begin, end = float(buffer[0]) / RATE, float(buffer[-1] + 1) / RATE
        heard = []
        for start, stop, text in self.words:
            if start < begin - 0.1 or start >= end:
                continue  # less than a tenth of a second of a word may be missing
            sure = stop <= end - self.unsure
            shift = 0.04 * (-1) ** self.passes
            heard.append(
                {
                    "start": max(start + shift - begin, 0.0),
                    "end": min(stop + shift, end) - begin,
                    "word": text if sure else f" unsure{self.passes}",
                }
            )
        groups = [heard[i : i + self.per_segment] for i in range(0, len(heard), self.per_segment)]
        segments = [{"end": group[-1]["end"], "words": group} for group in groups]
        return {"segments": segments, "language": "en"}


speeches = st.builds(
    Speech,
    st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.4, 3.0, 12.0]), st.floats(0.2, 1.5)), min_size=1, max_size=60),
    st.sampled_from([1, 4, 1000]),
    st.sampled_from([0.0, 0.7, 2.0]),
)


def listen(speech: Speech, monkeypatch: pytest.MonkeyPatch, chunk: float, min_chunk: float) -> LiveTranscription:
    model = types.SimpleNamespace(device=torch.device("cpu"))
    with monkeypatch.context() as patch:
        patch.setattr(whisper, "transcribe", speech.transcribe)
        live = LiveTranscription(model, language="en", min_chunk=min_chunk)
        feed_all(live, speech.samples, chunk)
    return live


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(speeches, st.sampled_from([0.1, 0.5, 1.0, 2.3, 7.0, 40.0]), st.sampled_from([0.3, 1.0, 5.0]))
def test_each_word_is_confirmed_once_and_in_order(
    monkeypatch: pytest.MonkeyPatch, speech: Speech, chunk: float, min_chunk: float
) -> None:
    live = listen(speech, monkeypatch, chunk, min_chunk)
    sure = [text for _, stop, text in speech.words if stop <= len(speech.samples) / RATE - speech.unsure]
    assert [word.text for word in live.confirmed][: len(sure)] == sure
    assert len(live.confirmed) == len(speech.words)
    assert speech.longest <= 25


def test_the_text_before_the_buffer_is_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    speech = Speech([(0.1, 0.4)] * 200, per_segment=4, unsure=0.5)
    live = listen(speech, monkeypatch, 1.0, 1.0)
    prompts = list(dict.fromkeys(speech.prompts))
    assert prompts[0] is None
    assert len(prompts) > 5
    assert all(len(prompt) <= 200 and prompt in live.text for prompt in prompts[1:])
    assert [live.text.index(prompt) for prompt in prompts[1:]] == sorted(
        live.text.index(prompt) for prompt in prompts[1:]
    )


def test_a_pass_waits_for_min_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    speech = Speech([(0.1, 0.4)] * 19, per_segment=4, unsure=0.5)  # 10 s
    listen(speech, monkeypatch, 0.1, 2.0)
    assert speech.passes == 5


# What it refuses


@pytest.mark.parametrize("samples", [np.zeros((2, 100), np.float32), np.zeros(100), np.zeros(100, np.int16)])
def test_samples_of_another_type_or_shape_are_an_error(nano: Pair, samples: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"give float32, shape \(n_samples,\)"):
        LiveTranscription(nano.max).feed(samples)


@pytest.mark.parametrize("min_chunk", [0, -1, 5.1, float("nan")])
def test_a_min_chunk_that_cannot_be_is_an_error(nano: Pair, min_chunk: float) -> None:
    with pytest.raises(ValueError, match="give seconds above 0 and up to 5"):
        LiveTranscription(nano.max, min_chunk=min_chunk)
