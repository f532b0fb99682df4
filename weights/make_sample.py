"""Makes the sample recordings and their references with espeak-ng: ``python weights/make_sample.py``.

No sentence was in nano's training set. They are laid out as in its training windows, and a noise floor is
added. The same version of espeak-ng gives the same samples. A reference has one line per sentence: start, end
(seconds), sentence and, in the other languages than English, its English, with tabs between.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from recipe.corpus import Corpus
from recipe.grammar import Sentence, draw_sentence, is_held_out
from recipe.layout import Placed, lay_out
from recipe.synthesis import Recorder
from recipe.tokens import SAMPLE_RATE

ESPEAK_VERSION = "1.51"  # of the committed files
POOL_SIZES = {"en": 400, "es": 60, "de": 60}
POOL_SEED = 20
NOISE_SEED = 0
NOISE_LEVEL = 1e-3
TAIL = 0.5  # seconds without speech at the end


@dataclass(frozen=True)
class Sample:
    """A recording: sentences of a language, until `seconds` are used up."""

    name: str
    language: str
    seconds: float
    seed: int


SAMPLES = (
    Sample("sample", "en", 33.0, seed=3),
    Sample("sample_long", "en", 186.0, seed=27),
    Sample("sample_es", "es", 6.5, seed=18),
    Sample("sample_de", "de", 6.5, seed=5),
)


def main() -> None:
    """Write the recordings and the references."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    folder: Path = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    corpus = speak_pool()
    for sample in SAMPLES:
        audio, placed = render(sample, corpus)
        write_flac(folder / f"{sample.name}.flac", audio)
        (folder / f"{sample.name}.txt").write_text(reference(placed), encoding="utf8")


def speak_pool() -> Corpus:
    """Speak different sentences of each language, all of them kept out of nano's training."""
    r = random.Random(POOL_SEED)
    recorder = Recorder()
    for language, size in POOL_SIZES.items():
        sentences: dict[str, Sentence] = {}
        while len(sentences) < size:
            sentence = draw_sentence(r, language)
            if is_held_out(sentence.text):
                sentences[sentence.text] = sentence
        for sentence in sentences.values():
            recorder.speak(language, sentence, r)
    return recorder.corpus()


def render(sample: Sample, corpus: Corpus) -> tuple[np.ndarray, list[Placed]]:
    """Return a recording as int16 samples, and its sentences."""
    r = random.Random(sample.seed)
    pool = [utterance for utterance in corpus.utterances if utterance.language == sample.language]
    speech, placed = lay_out(r, pool, corpus.pcm, sample.seconds, fill=True)
    audio = np.concatenate([speech, np.zeros(int(TAIL * SAMPLE_RATE))])
    audio += np.random.default_rng(NOISE_SEED).standard_normal(len(audio)) * NOISE_LEVEL
    return np.clip(np.rint(audio * 32768), -32768, 32767).astype(np.int16), placed


def reference(placed: list[Placed]) -> str:
    """Return the reference's text."""
    lines = []
    for item in placed:
        columns = [f"{item.start:.2f}", f"{item.end:.2f}", item.utterance.text]
        if item.utterance.english:
            columns.append(item.utterance.english)
        lines.append("\t".join(columns) + "\n")
    return "".join(lines)


def write_flac(path: Path, audio: np.ndarray) -> None:
    """Write int16 samples as a 16 kHz mono FLAC."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=SAMPLE_RATE, options={"compression_level": "12"})
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(audio[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


if __name__ == "__main__":
    main()
