"""Measures a checkpoint with upstream's whisper on the CPU in float32, and prints the figures as JSON.

    python -m recipe.evaluate                              # nano.pt on the samples, silence and noise
    python -m recipe.evaluate --jfk jfk.flac               # ... and on the recording it was trained on
    python -m recipe.evaluate --jfk jfk.flac --work DIR    # ... and on held-out clips of the corpus in DIR

About ten seconds on one core, and two minutes with the clips.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import whisper
from whisper.model import Whisper

from .corpus import Corpus, Utterance
from .grammar import LANGUAGES
from .layout import avoid_grid, lay_out
from .metrics import greedy_margins, summary, word_errors
from .noise import brown
from .recording import BACKGROUND
from .tokens import SAMPLE_RATE

WEIGHTS = Path(__file__).resolve().parent.parent
SAMPLES = {"sample": "en", "sample_es": "es", "sample_de": "de", "sample_long": "en"}
SAMPLE_OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "beam_size=5": {"beam_size": 5},
    "condition_on_previous_text=False": {"condition_on_previous_text": False},
    "word_timestamps=True": {"word_timestamps": True},
}
CLIP_COUNTS = {"en": 150, "es": 50, "de": 50}

Figures = dict[str, Any]


def main() -> None:
    """Run the parts for which there is data."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=WEIGHTS / "nano.pt", help="the checkpoint")
    parser.add_argument("--jfk", type=Path, help="jfk.flac of openai-whisper's tests")
    parser.add_argument("--work", type=Path, help="folder with the corpus that recipe.train synthesised")
    parser.add_argument("--out", type=Path, help="write the JSON to this file instead of printing it")
    arguments = parser.parse_args()
    model = whisper.load_model(str(arguments.model), device="cpu")
    figures: Figures = {"whisper": whisper.__version__, "torch": torch.__version__}
    if arguments.jfk:
        figures["jfk"] = measure_recording(model, arguments.jfk)
    for name, language in SAMPLES.items():
        figures[name] = measure_sample(model, WEIGHTS / f"{name}.flac", language)
    figures["no_speech"] = measure_silence(model, arguments.jfk)
    if arguments.work:
        figures["clips"] = measure_clips(model, Corpus.load(arguments.work))
    text = json.dumps(figures, indent=1, ensure_ascii=False)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf8")
    else:
        sys.stdout.write(text + "\n")


def transcribe(model: Whisper, audio: str | np.ndarray, **options: Any) -> tuple[dict[str, Any], list[float]]:
    """Return upstream's result, and the margins of its greedy steps."""
    torch.set_num_threads(1)  # each time, since numba, which aligns words, sets the number of cores
    with greedy_margins() as margins:
        result = model.transcribe(audio, fp16=False, **options)
    return result, margins


def measure_recording(model: Whisper, path: Path) -> Figures:
    """Transcribe jfk.flac with word times."""
    result, _ = transcribe(model, str(path), temperature=0.0, word_timestamps=True)
    words = [word for segment in result["segments"] for word in segment["words"]]
    _, margins = transcribe(model, str(path), temperature=0.0)
    beam, _ = transcribe(model, str(path), beam_size=5)
    return {
        "language": result["language"],
        "text": result["text"],
        "segments": [(segment["start"], segment["end"], segment["text"]) for segment in result["segments"]],
        "words without duration": int(sum(word["start"] >= word["end"] for word in words)),
        "margins": summary(margins),
        "same text with beam_size=5": beam["text"] == result["text"],
    }


def measure_sample(model: Whisper, path: Path, language: str) -> Figures:
    """Transcribe a sample recording with several options, and translate it if it is not English."""
    lines = [line.split("\t") for line in path.with_suffix(".txt").read_text(encoding="utf8").splitlines()]
    text = " ".join(columns[2] for columns in lines)
    figures: Figures = {"sentences": len(lines)}
    for name, options in SAMPLE_OPTIONS.items():
        result, margins = transcribe(model, str(path), **options)
        segments = result["segments"]
        figures[name] = {
            "language": result["language"],
            "segments": len(segments),
            "highest temperature": max(segment["temperature"] for segment in segments),
            **word_errors([text], [result["text"]], language),
        }
        if "beam_size" not in options:
            figures[name]["margins"] = summary(margins)
        if "word_timestamps" in options:
            words = [word for segment in segments for word in segment["words"]]
            figures[name]["words without duration"] = int(sum(word["start"] >= word["end"] for word in words))
    if language != "en":
        english = " ".join(columns[3] for columns in lines)
        result, margins = transcribe(model, str(path), task="translate")
        figures["translate"] = {**word_errors([english], [result["text"]]), "margins": summary(margins)}
    return figures


def measure_silence(model: Whisper, jfk: Path | None) -> Figures:
    """Return the no-speech probability of 30 s of silence and of noises, and what is transcribed of them."""
    generator = np.random.default_rng(3)
    n_samples = 30 * SAMPLE_RATE
    audios: dict[str, np.ndarray] = {"digital silence": np.zeros(n_samples, np.float32)}
    for decibel in (-80, -60, -45, -30):
        noise = generator.standard_normal(n_samples) * 10 ** (decibel / 20)
        audios[f"white noise, {decibel} dBFS"] = noise.astype(np.float32)
    audios["10 s of white noise, -45 dBFS"] = audios["white noise, -45 dBFS"][: 10 * SAMPLE_RATE]
    audios["brown noise, -40 dBFS"] = brown(generator.standard_normal(n_samples), 800) / 100
    if jfk:
        background = whisper.load_audio(str(jfk))[slice(*BACKGROUND)]
        audios["jfk's own background, repeated"] = np.tile(background, 35)
    figures = {}
    for name, audio in audios.items():
        decoded = whisper.decode(model, window(audio), whisper.DecodingOptions(language="en", fp16=False))
        result, _ = transcribe(model, audio)
        probability = round(decoded.no_speech_prob, 4)
        figures[name] = {"no_speech_prob": probability, "text": result["text"]}
    return figures


def window(audio: np.ndarray) -> torch.Tensor:
    """Return the spectrogram of the first 30 s, as transcribe() makes it."""
    mel: torch.Tensor = whisper.log_mel_spectrogram(torch.from_numpy(audio), padding=whisper.audio.N_SAMPLES)
    return mel[:, : whisper.audio.N_FRAMES]


def measure_clips(model: Whisper, corpus: Corpus, counts: dict[str, int] | None = None) -> Figures:
    """Transcribe, and translate, single sentences that are kept out of training."""
    r = random.Random(2024)
    pools = corpus.held_out(True)
    figures = {}
    for language, count in (counts or CLIP_COUNTS).items():
        different = sorted({u.text: u for u in pools[language]}.values(), key=lambda u: u.first)
        utterances = r.sample(different, min(count, len(different)))
        clips = [make_clip(r, utterance, corpus) for utterance in utterances]
        if clips:
            figures[language] = measure_language(model, language, utterances, clips)
    return figures


def make_clip(r: random.Random, utterance: Utterance, corpus: Corpus) -> np.ndarray:
    """Return an utterance with a little silence around it."""
    start = avoid_grid(r, r.uniform(0.1, 0.35), utterance.seconds)
    audio = np.zeros(int((start + utterance.seconds + 0.4) * SAMPLE_RATE), np.float32)
    first = int(start * SAMPLE_RATE)
    audio[first : first + utterance.length] = corpus.pcm(utterance) * 0.8
    return audio


def measure_language(model: Whisper, language: str, utterances: list[Utterance], clips: list[np.ndarray]) -> Figures:
    """Return the figures of one language's clips."""
    detected = 0
    texts, translations = [], []
    all_margins: list[float] = []
    for clip in clips:
        result, margins = transcribe(model, clip)
        detected += result["language"] == language
        if result["language"] != language:
            result, margins = transcribe(model, clip, language=language)
        texts.append(result["text"])
        all_margins += margins
        if language != "en":
            translations.append(transcribe(model, clip, language=language, task="translate")[0]["text"])
    figures: Figures = {
        "n": len(clips),
        "language right": detected,
        "transcribe": word_errors([u.text for u in utterances], texts, language),
        "margins": summary(all_margins),
    }
    if language != "en":
        figures["translate"] = word_errors([u.english or "" for u in utterances], translations)
    return figures


def measure_windows(model: Whisper, corpus: Corpus, recording: np.ndarray, n_windows: int) -> Figures:
    """Decode windows with 10 s of held-out speech: a quick look at how far the training is."""
    r = random.Random(5)
    pools = corpus.held_out(True)
    figures: Figures = {}
    for language in LANGUAGES:
        if not pools[language]:
            continue
        laid_out = [lay_out(r, pools[language], corpus.pcm, 10) for _ in range(n_windows)]
        laid_out = [(audio, placed) for audio, placed in laid_out if placed]
        mels = torch.stack([window(audio) for audio, _ in laid_out])
        options = whisper.DecodingOptions(language=language, fp16=False)
        results = whisper.decode(model, mels, options)
        references = [" ".join(item.utterance.text for item in placed) for _, placed in laid_out]
        figures[language] = word_errors(references, [result.text for result in results], language)["wer"]
    result, _ = transcribe(model, recording, temperature=0.0)
    figures["jfk"] = [(segment["start"], segment["end"], segment["text"]) for segment in result["segments"]]
    return figures


if __name__ == "__main__":
    main()
