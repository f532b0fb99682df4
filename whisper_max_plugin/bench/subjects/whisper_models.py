"""The subjects that are upstream's object: upstream itself, and this plugin."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from whisper_max_plugin.bench.cost import Storage
from whisper_max_plugin.bench.protocol import Decoded, Loaded, Setup, Transcription
from whisper_max_plugin.bench.stages import BEAM_SIZE
from whisper_max_plugin.bench.subjects.inputs import Inputs, recording

if TYPE_CHECKING:
    from torch import Tensor

    from whisper_max_plugin.execution.devices import Device
    from whisper_max_plugin.execution.engine import Engine


class WhisperSubject:
    """``whisper.load_model(…, backend=…, precision=…)``; on a GPU float16 is upstream's ``fp16=True``, its default."""

    def __init__(self, backend: str, precision: str = "float32") -> None:
        self._backend = backend
        self._precision = precision
        self._half = False
        self._clock: Callable[[], float] = self._clock_on_the_wall

    def _install(self) -> None:
        import whisper_max_plugin

        whisper_max_plugin.install(self._backend, self._precision if self._backend == "max" else None)

    def prepare(self, setup: Setup) -> float | None:
        """See `Subject.prepare`."""
        import whisper

        self._install()
        if self._backend == "max":
            from whisper_max_plugin.report import REPORT

            whisper.load_model(setup.checkpoint, device=setup.device)
            seconds: float = REPORT.snapshot()["compile_seconds"]
            return seconds
        if not os.path.isfile(setup.checkpoint):
            whisper.load_model(setup.checkpoint, device="cpu")
        return None

    def load(self, setup: Setup) -> Loaded:
        """See `Subject.load`."""
        if self._backend == "max" and setup.threads is not None:
            # MAX takes as many threads as the process may use processors, and has no other setting.
            if not hasattr(os, "sched_setaffinity"):
                raise RuntimeError("this system cannot limit MAX's threads: leave out --threads")
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: setup.threads])
        self._half = self._precision == "float16" and (self._backend == "torch" or setup.device != "cpu")
        started = time.perf_counter()
        import torch
        import whisper

        from whisper_max_plugin.bench.subjects.vocabulary import tokenizer_of

        self._install()
        if self._backend == "max":
            import max.engine  # noqa: F401  belongs to the imports' time

        imported = time.perf_counter()
        if setup.threads is not None:
            torch.set_num_threads(setup.threads)
        torch.set_grad_enabled(False)
        self._model = whisper.load_model(setup.checkpoint, device=setup.device, backend=self._backend).eval()
        loaded = self._clock()

        self._setup, self._inputs = setup, Inputs(setup)
        self._tokenizer = tokenizer_of(setup.dims)
        storage = Storage(kv=2, half_products=True) if self._half else Storage()
        if self._backend == "max":
            storage = Storage.of_graphs(self._engine().types)
        return Loaded(imported - started, loaded - imported, storage)

    def _engine(self) -> Engine:
        """Return what computes this plugin's passes for inputs such as `_tensor` makes."""
        import torch

        engine: Engine = self._model.encoder.runtime.engine(torch.float16 if self._half else torch.float32)
        return engine

    def _clock_on_the_wall(self) -> float:
        """Return the time, when the device has finished what it was told."""
        if self._backend == "max":
            self._model.encoder.runtime.device.driver.synchronize()
        elif self._model.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._model.device)
        return time.perf_counter()

    def stages(self) -> Sequence[str]:
        """See `Subject.stages`."""
        return ("mel", "encoder", "cross_kv", "prefill", "step", "beam_step", "alignment")

    def stage_seconds(self, stage: str, n_tokens: int) -> float:
        """See `Subject.stage_seconds`."""
        seconds: float = getattr(self, f"_{stage}")(n_tokens)
        return seconds

    def device_seconds(self, stage: str, n_tokens: int) -> float | None:
        """See `Subject.device_seconds`; upstream's own passes are not told apart from the host's work."""
        if self._backend != "max" or stage == "mel":  # which the host makes
            return None
        from whisper_max_plugin.bench.subjects.device_clock import DeviceClock

        device: Device = self._model.encoder.runtime.device
        if device.index is None:
            return None
        try:
            with DeviceClock(device.driver).running() as clock:
                self._clock = clock.read
                return self.stage_seconds(stage, n_tokens)
        finally:
            self._clock = self._clock_on_the_wall

    def _mel(self, _n_tokens: int) -> float:
        import torch
        from whisper.audio import log_mel_spectrogram

        samples, n_mels = torch.from_numpy(self._inputs.samples()), self._setup.dims["n_mels"]
        started = self._clock()
        if self._backend == "max":  # which `transcribe` takes of such a model
            self._engine().log_mel(samples, padding=0)
        else:
            log_mel_spectrogram(samples, n_mels)
        return self._clock() - started

    def _encoder(self, _n_tokens: int) -> float:
        mel = self._tensor(self._inputs.mel())
        started = self._clock()
        self._model.encoder(mel)
        return self._clock() - started

    def _cross_kv(self, _n_tokens: int) -> float:
        features = self._tensor(self._inputs.audio_features())
        if self._backend == "max":
            engine = self._engine()
            started = self._clock()
            self._model.encoder.runtime.cross_kv(features, engine)
            return self._clock() - started
        started = self._clock()
        for block in self._model.decoder.blocks:
            block.cross_attn.key(features)
            block.cross_attn.value(features)
        return self._clock() - started

    def _prefill(self, _n_tokens: int) -> float:
        features = self._tensor(self._inputs.audio_features())[0]
        return self._decode_seconds(features, 1, prompt=self._inputs.prompt)

    def _step(self, n_tokens: int, **options: object) -> float:
        features = self._tensor(self._inputs.audio_features())[0]
        # This plugin keeps the keys and values of the latest features: so that both decodes find them, and no step is
        # paid for by the difference.
        self._decode_seconds(features, 1, **options)
        first = self._decode_seconds(features, 1, **options)
        return (self._decode_seconds(features, n_tokens + 1, **options) - first) / n_tokens

    def _beam_step(self, n_tokens: int) -> float:
        return self._step(n_tokens, beam_size=BEAM_SIZE)

    def _alignment(self, n_tokens: int) -> float:
        from whisper.timing import find_alignment

        mel, text = self._tensor(self._inputs.mel())[0], self._inputs.tokens(n_tokens)
        self._model.encoder(mel[None])  # as decoding has done before; this plugin remembers it, upstream does it again
        started = self._clock()
        find_alignment(self._model, self._tokenizer, text, mel, mel.shape[-1])
        return self._clock() - started

    def _decode_seconds(self, features: Tensor, n_tokens: int, **options: Any) -> float:
        """Time one decode of exactly `n_tokens` tokens."""
        from whisper import DecodingOptions

        task = DecodingOptions(
            language="en",
            fp16=self._half,
            without_timestamps=True,
            suppress_tokens=[self._setup.end_of_text],
            sample_len=n_tokens,
            **options,
        )
        started = self._clock()
        result = self._model.decode(features, task)
        seconds = self._clock() - started
        if len(result.tokens) != n_tokens:
            raise RuntimeError(f"{len(result.tokens)} tokens were decoded instead of {n_tokens}")
        return seconds

    def transcribe(self, transcription: Transcription) -> Decoded:
        """See `Subject.transcribe`."""
        samples = recording(self._setup.samples, transcription.seconds)
        options: dict[str, Any] = {}
        if transcription.n_tokens is not None:
            options = {
                "sample_len": transcription.n_tokens,
                "suppress_tokens": self._setup.suppressed,
                "without_timestamps": True,
                "condition_on_previous_text": False,
                "no_speech_threshold": None,
            }
        started = self._clock()
        result = self._model.transcribe(
            samples,
            language=transcription.language,
            temperature=0.0,
            beam_size=transcription.beam_size,
            word_timestamps=transcription.word_timestamps,
            fp16=self._half,
            verbose=None,
            **options,
        )
        seconds = self._clock() - started
        tokens = [token for segment in result["segments"] for token in segment["tokens"]]
        return Decoded(seconds, result["text"], tokens)

    def _tensor(self, array: Any) -> Tensor:
        """Return an input as the model takes it: this plugin's is on the host, whatever graphs run on."""
        import torch

        tensor = torch.from_numpy(array).to(self._model.device)
        return tensor.half() if self._half else tensor
