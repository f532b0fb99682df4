"""Graphs of half width, which upstream's ``fp16`` asks a GPU for, on a device of the CPU that computes so too.

Their kernels for GPUs are compared with torch in gpu/test_tensor.py; here it is how the graphs are made of them.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import whisper
from torch import Tensor
from whisper.model import Whisper

import whisper_max_plugin
from whisper_max_plugin import vad
from whisper_max_plugin.cli import main
from whisper_max_plugin.doctor import comparison, parity_checks
from whisper_max_plugin.inference.model import MaxWhisper, accelerate
from whisper_max_plugin.live.transcription import LiveTranscription
from whisper_max_plugin.ray.worker import Transcriber

from ..compare import skip_unless_upstream_knows
from ..conftest import Pair
from ..data import NANO, SAMPLE, SAMPLE_DE
from ..seam.fixtures import TOKENS, mel, mels, no_grad
from ..voice_activity.fixtures import needs_silero
from .fixtures import HALF, upstreams_nano

__all__ = ["mel", "mels", "no_grad"]  # fixtures, found by name


@pytest.fixture(scope="module")
def half() -> MaxWhisper:
    """nano on a device where the numbers that a caller brings decide."""
    return accelerate(upstreams_nano(), HALF)


@pytest.mark.parametrize("precision", ["float16", pytest.param("bfloat16", marks=pytest.mark.large)])
def test_graphs_differ_from_torch_by_rounding(nano: Pair, precision: str) -> None:
    window = parity_checks.prepare(nano.torch, parity_checks.synthetic_audio())
    upstreams = comparison.compute_upstreams(nano.torch, window)
    rows = comparison.compare(accelerate(upstreams_nano(), HALF, precision), window, upstreams)
    rounded = {"float16": 2**-11, "bfloat16": 2**-8}[precision]
    assert all(row.ok for row in rows)
    found = {row.name: row for row in rows if row.name not in ("ranking", "ahead")}
    for row in (found.pop("mel"), found.pop("words")):  # which are not rounded
        assert row.error < row.limit == comparison.LIMITS["float32"]
    assert all(rounded / 8 < row.error < 4 * rounded for row in found.values())
    assert found["steps"].equal_tokens == 20


def transcribed(model: Whisper, **options: Any) -> dict[str, Any]:
    return model.transcribe(str(SAMPLE), language="en", temperature=0.0, **options)


@pytest.mark.parametrize("options", [{}, {"beam_size": 5, "word_timestamps": True}], ids=["greedy", "beams"])
def test_upstreams_default_is_half_width_without_its_warning(
    nano: Pair, half: MaxWhisper, options: dict[str, Any]
) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="FP16 is not supported on CPU")
        result = transcribed(half, **options)
    assert result["text"] == transcribed(nano.torch, fp16=False, **options)["text"]
    assert half.decoder.runtime.engine().types.are_half


def test_fp16_false_is_float32(nano: Pair, half: MaxWhisper, mel: Tensor) -> None:
    expected = nano.torch.encoder(mel)
    torch.testing.assert_close(half.encoder(mel), expected, rtol=1e-4, atol=1e-4)
    rounded = half.encoder(mel.half())
    assert rounded.dtype == torch.float16
    assert 1e-4 < float((rounded.float() - expected).abs().max()) < 1e-2 * float(expected.abs().max())
    result = transcribed(half, fp16=False)
    assert [s["tokens"] for s in result["segments"]] == [
        s["tokens"] for s in transcribed(nano.torch, fp16=False)["segments"]
    ]


def test_a_precision_that_was_asked_for_holds_whatever_numbers_come(mel: Tensor) -> None:
    model = accelerate(upstreams_nano(), HALF, "float32")
    for given in (mel, mel.half()):
        model.encoder(given)
    assert whisper_max_plugin.status()["precision"] == "float32"
    assert list(model.decoder.runtime._engines) == ["float32"]


def test_the_device_is_the_cpu_for_tensors_and_not_for_upstreams_comparison(half: MaxWhisper, nano: Pair) -> None:
    assert half.device.type == "cpu"
    assert half.device != torch.device("cpu")  # what transcribe() gives up fp16 for
    assert torch.zeros(1).to(half.device).device == torch.zeros(1).device
    assert copy.deepcopy(half).device == half.device
    assert nano.max.device == torch.device("cpu")


# What is not upstream's own and says `fp16` to it, or makes windows


def hear_live(model: MaxWhisper, _folder: Path) -> None:
    live = LiveTranscription(model, language="en")
    live.feed(whisper.load_audio(str(SAMPLE))[:32000])
    live.finish()


def run_live(_model: MaxWhisper, folder: Path) -> None:
    (folder / "noise.raw").write_bytes(np.random.default_rng(0).bytes(32000))
    assert main(["live", str(NANO), "--language", "en", "--input", str(folder / "noise.raw")]) == 0


def run_in_ray(_model: MaxWhisper, _folder: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed, the extra ray")
    Transcriber(str(NANO), options={"temperature": 0.0})({"path": np.array([str(SAMPLE)], dtype=object)})


def hear_speech_only(model: MaxWhisper, _folder: Path) -> None:
    skip_unless_upstream_knows({"clip_timestamps": "0"})
    vad.only_speech(whisper.transcribe)(model, str(SAMPLE_DE), temperature=0.0)


@pytest.mark.parametrize("use", [hear_live, run_live, run_in_ray, pytest.param(hear_speech_only, marks=needs_silero)])
def test_ours_ask_for_half_width_as_upstream_does(
    use: Callable[[MaxWhisper, Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or other graphs are compiled than those that the model was loaded with."""
    model = accelerate(upstreams_nano(), HALF)
    monkeypatch.setattr(whisper, "load_model", lambda *_arguments, **_options: model)
    monkeypatch.setattr(whisper_max_plugin, "install", lambda: None)
    monkeypatch.setattr("whisper_max_plugin.live.sources.QUIET", 0.1)
    use(model, tmp_path)
    assert list(model.decoder.runtime._engines) == ["float16"]


def test_entries_of_a_cache_of_half_width_are_float32_to_callers(half: MaxWhisper, nano: Pair, mel: Tensor) -> None:
    features = nano.torch.encoder(mel)
    entries = []
    for model, xa in ((nano.torch, features), (half, features.half())):
        cache, hooks = model.install_kv_cache_hooks()
        model.decoder(TOKENS, xa, kv_cache=cache)
        for hook in hooks:
            hook.remove()
        entries.append([value.detach() for value in cache.values()])
    kept, wanted = sorted(entries[1], key=len), sorted(entries[0], key=len)
    assert {entry.dtype for entry in kept} == {torch.float32}
    assert {entry.shape for entry in kept} == {entry.shape for entry in wanted}
    assert all(torch.equal(entry.half().float(), entry) for entry in kept)  # of what was rounded


def test_a_cache_that_a_caller_fills_is_as_wide_as_its_entries(half: MaxWhisper, nano: Pair, mel: Tensor) -> None:
    features = nano.torch.encoder(mel).half()
    cache, hooks = half.install_kv_cache_hooks()
    half.decoder(TOKENS[:, :-1], features, kv_cache=cache)
    again, more_hooks = half.install_kv_cache_hooks({module: value.half() for module, value in cache.items()})
    logits = [half.decoder(TOKENS[:, -1:], features, kv_cache=entries) for entries in (cache, again)]
    for hook in (*hooks, *more_hooks):
        hook.remove()
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=0)
