"""faster-whisper, and CTranslate2 below it for the stages; both return when the device has finished."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from whisper_max_plugin.bench.cost import Storage
from whisper_max_plugin.bench.protocol import Decoded, Loaded, Setup, Transcription
from whisper_max_plugin.bench.stages import BEAM_SIZE
from whisper_max_plugin.bench.subjects.inputs import Inputs, recording


class FasterWhisperSubject:
    """``faster_whisper.WhisperModel`` of the same weights, computing with `compute_type`."""

    def __init__(self, compute_type: str) -> None:
        self._compute_type = compute_type

    def prepare(self, setup: Setup) -> float | None:
        """See `Subject.prepare`."""
        import whisper

        from whisper_max_plugin.bench.subjects.ctranslate2_model import write

        write(whisper.load_model(setup.checkpoint, device="cpu"), setup.folder)
        return None

    def load(self, setup: Setup) -> Loaded:
        """See `Subject.load`."""
        started = time.perf_counter()
        import faster_whisper

        imported = time.perf_counter()
        device, _, number = setup.device.partition(":")
        self._whisper = faster_whisper.WhisperModel(
            str(setup.folder),
            device=device,
            device_index=int(number or 0),
            compute_type=self._compute_type,
            cpu_threads=setup.threads or 0,
        )
        loaded = time.perf_counter()
        self._setup, self._inputs = setup, Inputs(setup)
        half = self._compute_type == "float16"
        weights = {"float32": 4, "float16": 2, "int8": 1}[self._compute_type]
        return Loaded(imported - started, loaded - imported, Storage(weights, weights, 2 if half else 4, half))

    def stages(self) -> Sequence[str]:
        """See `Subject.stages`; keys and values of cross-attention are computed inside the first pass."""
        return ("mel", "encoder", "prefill", "step", "beam_step", "alignment")

    def stage_seconds(self, stage: str, n_tokens: int) -> float:
        """See `Subject.stage_seconds`."""
        seconds: float = getattr(self, f"_{stage}")(n_tokens)
        return seconds

    def device_seconds(self, _stage: str, _n_tokens: int) -> None:
        """See `Subject.device_seconds`; CTranslate2 has no events."""

    def _mel(self, _n_tokens: int) -> float:
        samples = self._inputs.samples()
        started = time.perf_counter()
        self._whisper.feature_extractor(samples)
        return time.perf_counter() - started

    def _encoder(self, _n_tokens: int) -> float:
        mel = self._inputs.mel()
        started = time.perf_counter()
        self._whisper.encode(mel)
        return time.perf_counter() - started

    def _prefill(self, _n_tokens: int) -> float:
        prompt = [self._setup.start_of_previous, *self._inputs.prompt, *self._setup.start]
        return self._generate_seconds(self._features(), prompt, 1, beam_size=1)

    def _step(self, n_tokens: int, beam_size: int = 1) -> float:
        features, start = self._features(), self._setup.start
        first = self._generate_seconds(features, start, 1, beam_size=beam_size)
        return (self._generate_seconds(features, start, n_tokens + 1, beam_size=beam_size) - first) / n_tokens

    def _beam_step(self, n_tokens: int) -> float:
        return self._step(n_tokens, BEAM_SIZE)

    def _alignment(self, n_tokens: int) -> float:
        features, text = self._features(), self._inputs.tokens(n_tokens)
        start = self._setup.start[:-1]  # it adds <|notimestamps|> itself
        started = time.perf_counter()
        self._whisper.model.align(features, start, [text], 2 * self._setup.dims["n_audio_ctx"])
        return time.perf_counter() - started

    def _features(self) -> Any:
        import ctranslate2

        return ctranslate2.StorageView.from_array(self._inputs.audio_features())

    def _generate_seconds(self, features: Any, prompt: list[int], n_tokens: int, *, beam_size: int) -> float:
        """Time one decode of exactly `n_tokens` tokens."""
        started = time.perf_counter()
        (result,) = self._whisper.model.generate(
            features,
            [prompt],
            beam_size=beam_size,
            max_length=_max_length(len(prompt), n_tokens),
            suppress_tokens=[self._setup.end_of_text],
        )
        seconds = time.perf_counter() - started
        if len(result.sequences_ids[0]) != n_tokens:
            raise RuntimeError(f"{len(result.sequences_ids[0])} tokens were decoded instead of {n_tokens}")
        return seconds

    def transcribe(self, transcription: Transcription) -> Decoded:
        """See `Subject.transcribe`."""
        samples = recording(self._setup.samples, transcription.seconds)
        n_start, options = len(self._setup.start), dict[str, Any]()
        if transcription.n_tokens is not None:
            options = {
                "max_new_tokens": _max_length(n_start, transcription.n_tokens) - n_start,  # it adds the latter again
                "suppress_tokens": self._setup.suppressed,
                "without_timestamps": True,
                "condition_on_previous_text": False,
                "no_speech_threshold": None,
            }
        started = time.perf_counter()
        segments, _ = self._whisper.transcribe(
            samples,
            language=transcription.language,
            temperature=0.0,
            beam_size=transcription.beam_size or 1,
            word_timestamps=transcription.word_timestamps,
            **options,
        )
        found = list(segments)  # decoded one by one
        seconds = time.perf_counter() - started
        tokens = [token for segment in found for token in segment.tokens]
        return Decoded(seconds, "".join(segment.text for segment in found), tokens)


def _max_length(n_prompt: int, n_tokens: int) -> int:
    """Return the limit at which CTranslate2 decodes `n_tokens`: half of it, or what the prompt leaves of it."""
    return max(2 * n_tokens, n_prompt + n_tokens - 1)
