"""whisper.cpp, by pywhispercpp."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from whisper_max_plugin.bench.cost import Storage
from whisper_max_plugin.bench.protocol import Decoded, Loaded, Setup, Transcription
from whisper_max_plugin.bench.subjects.inputs import Inputs, recording


class WhisperCppSubject:
    """whisper.cpp's own functions on the same weights, which it holds as float16, keys and values too."""

    def prepare(self, setup: Setup) -> float | None:
        """See `Subject.prepare`."""
        import whisper

        from whisper_max_plugin.bench.subjects.ggml_model import write

        write(whisper.load_model(setup.checkpoint, device="cpu"), _path(setup))
        return None

    def load(self, setup: Setup) -> Loaded:
        """See `Subject.load`."""
        started = time.perf_counter()
        import _pywhispercpp

        imported = time.perf_counter()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # it logs to stderr, in C++
        self._library: Any = _pywhispercpp
        parameters = self._library.whisper_context_default_params()
        parameters.use_gpu = False
        self._context = self._library.whisper_init_from_file_with_params(str(_path(setup)), parameters)
        loaded = time.perf_counter()
        self._setup, self._inputs = setup, Inputs(setup)
        self._threads = setup.threads or 4  # its own default
        return Loaded(imported - started, loaded - imported, Storage(2, 2, 2))

    def stages(self) -> Sequence[str]:
        """See `Subject.stages`; the Python binding passes the decoder one token at a time."""
        return ("mel", "encoder", "step")

    def stage_seconds(self, stage: str, n_tokens: int) -> float:
        """See `Subject.stage_seconds`."""
        seconds: float = getattr(self, f"_{stage}")(n_tokens)
        return seconds

    def device_seconds(self, _stage: str, _n_tokens: int) -> None:
        """See `Subject.device_seconds`; it runs on the CPU."""

    def _mel(self, _n_tokens: int) -> float:
        samples = self._inputs.samples()
        started = time.perf_counter()
        self._library.whisper_pcm_to_mel(self._context, samples, len(samples), self._threads)
        return time.perf_counter() - started

    def _encoder(self, _n_tokens: int) -> float:
        self._mel(0)
        started = time.perf_counter()
        self._library.whisper_encode(self._context, 0, self._threads)
        return time.perf_counter() - started

    def _step(self, n_tokens: int) -> float:
        self._encoder(0)
        start = self._setup.start
        for position, token in enumerate(start):
            self._decode(token, position)
        tokens = self._inputs.tokens(n_tokens)
        started = time.perf_counter()
        for position, token in enumerate(tokens, start=len(start)):
            self._decode(token, position)
        return (time.perf_counter() - started) / n_tokens

    def _decode(self, token: int, n_before: int) -> None:
        if self._library.whisper_decode(self._context, token, 1, n_before, self._threads) != 0:
            raise RuntimeError("whisper_decode failed")

    def transcribe(self, transcription: Transcription) -> Decoded:
        """See `Subject.transcribe`."""
        library, context = self._library, self._context
        samples = recording(self._setup.samples, transcription.seconds)
        strategies = library.whisper_sampling_strategy
        if transcription.beam_size is None:
            parameters = library.whisper_full_default_params(strategies.WHISPER_SAMPLING_GREEDY)
            parameters.greedy = {"best_of": 1}
        else:
            parameters = library.whisper_full_default_params(strategies.WHISPER_SAMPLING_BEAM_SEARCH)
            parameters.beam_search = {"beam_size": transcription.beam_size, "patience": -1.0}
        parameters.n_threads = self._threads
        parameters.language = transcription.language
        parameters.temperature_inc = 0.0
        parameters.no_context = False  # as upstream's condition_on_previous_text
        parameters.suppress_nst = True  # as upstream's suppress_tokens
        parameters.print_progress = parameters.print_realtime = False
        started = time.perf_counter()
        if library.whisper_full(context, parameters, samples, len(samples)) != 0:
            raise RuntimeError("whisper_full failed")
        seconds = time.perf_counter() - started
        segments = range(library.whisper_full_n_segments(context))
        text = b"".join(library.whisper_full_get_segment_text(context, segment) for segment in segments)
        tokens = [
            library.whisper_full_get_token_id(context, segment, position)
            for segment in segments
            for position in range(library.whisper_full_n_tokens(context, segment))
        ]
        return Decoded(seconds, text.decode(errors="replace"), tokens)


def _path(setup: Setup) -> Path:
    return setup.folder / "ggml-model.bin"
