"""Bad audio, mels, tokens, options, devices, backends: upstream's own error where it has one, else a clear sentence."""

from __future__ import annotations

import copy
import json
import os
import shutil
import site
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import whisper
from torch import Tensor
from whisper.model import Whisper

import whisper_max_plugin
from whisper_max_plugin.audio import load_audio
from whisper_max_plugin.backends import UnknownBackendError
from whisper_max_plugin.max_backend import INSTALL_MAX
from whisper_max_plugin.model import DeviceError

from .compare import assert_close, assert_same_result
from .conftest import Pair
from .data import NANO, SAMPLE
from .errors import assert_one_sentence, assert_same_error, error_of

EOT, SOT, SOT_PREV = 50257, 50258, 50361
TOKENS = torch.tensor([[SOT, 50259, 50359, 50364]])
QUICK: dict[str, Any] = {"language": "en", "fp16": False, "sample_len": 3}

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg command is not on PATH")


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    whisper_max_plugin.install()
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def mel() -> Tensor:
    """The first window of the sample recording, shape = (80, 3000)."""
    return whisper.log_mel_spectrogram(whisper.pad_or_trim(load_audio(SAMPLE)))


def assert_same_outcome(nano: Pair, call: Callable[[Whisper], object]) -> None:
    """On both models the call raises the same error."""
    assert_same_error(lambda: call(nano.max), lambda: call(nano.torch))


# Audio

AUDIO_FILES: dict[str, bytes | None] = {
    "missing.wav": None,
    "empty.wav": b"",
    "text.wav": b"This is no audio.\n" * 50,
    "noise.mp3": bytes(range(256)) * 40,
    "header only.wav": b"RIFF\x24\x00\x00\x00WAVEfmt ",
}


@pytest.fixture(params=[*AUDIO_FILES, "a folder"])
def bad_audio(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The name of a file that is not audio."""
    path = tmp_path / request.param
    if request.param == "a folder":
        path.mkdir()
    elif (content := AUDIO_FILES[request.param]) is not None:
        path.write_bytes(content)
    return str(path)


@needs_ffmpeg
def test_bad_audio_with_ffmpeg_is_upstreams_error(nano: Pair, bad_audio: str) -> None:
    ours = error_of(lambda: nano.max.transcribe(bad_audio, **QUICK))
    whisper_max_plugin.uninstall()
    theirs = error_of(lambda: nano.torch.transcribe(bad_audio, **QUICK))
    assert type(ours) is type(theirs) is RuntimeError
    # ffmpeg prints memory addresses
    assert str(ours).splitlines()[0] == str(theirs).splitlines()[0]
    assert bad_audio in str(ours)


def test_bad_audio_without_ffmpeg_is_one_sentence_like_upstreams(
    nano: Pair, bad_audio: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    error = error_of(lambda: nano.max.transcribe(bad_audio, **QUICK))
    assert type(error) is RuntimeError
    assert str(error).startswith(f"Failed to load audio: {bad_audio}: ")
    assert_one_sentence(error)


@pytest.mark.parametrize(
    "audio",
    [
        pytest.param(None, id="None"),
        pytest.param([0.0] * 16000, id="list"),
        pytest.param(np.zeros(16000, np.int16), id="int16"),
        pytest.param(np.zeros((2, 16000), np.float32), id="two channels"),
    ],
)
def test_other_things_than_a_waveform_are_upstreams_error(nano: Pair, audio: Any) -> None:
    assert_same_outcome(nano, lambda model: model.transcribe(audio, fp16=False))


@pytest.mark.parametrize("n_samples", [0, 1, 159, 161])
def test_hardly_any_samples(nano: Pair, n_samples: int) -> None:
    audio = np.full(n_samples, 0.1, np.float32)
    options = {"fp16": False, "sample_len": 3, "temperature": 0.0}
    assert_same_result(nano.max.transcribe(audio, **options), nano.torch.transcribe(audio, **options))


def test_silence(nano: Pair) -> None:
    audio = np.zeros(16000, np.float32)
    assert_same_result(
        nano.max.transcribe(audio, temperature=0.0, **QUICK), nano.torch.transcribe(audio, temperature=0.0, **QUICK)
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n_bad", [1, 16000])
def test_samples_that_are_no_numbers(nano: Pair, value: float, n_bad: int) -> None:
    audio = np.zeros(16000, np.float32)
    audio[:n_bad] = value
    error = error_of(lambda: nano.max.transcribe(audio, fp16=False))
    assert type(error) is ValueError
    assert_one_sentence(error, "NaN or infinite", "audio samples")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("fp16", [True, False])
def test_a_mel_that_holds_no_numbers(nano: Pair, mel: Tensor, value: float, fp16: bool) -> None:
    bad = mel.clone()
    bad[5, 7] = value
    calls = [
        lambda: nano.max.encoder(bad[None]),
        lambda: nano.max.decode(bad, **{**QUICK, "fp16": fp16}),
        lambda: nano.max.detect_language(bad),
    ]
    for call in calls:
        error = error_of(call)
        assert type(error) is ValueError
        assert_one_sentence(error, "NaN or infinite")
    assert_close(nano.max.encoder(mel[None]), nano.torch.encoder(mel[None]))


# Mels

MELS = {
    "too short": torch.zeros(1, 80, 100),
    "too long": torch.zeros(1, 80, 3001),
    "no frames": torch.zeros(1, 80, 0),
    "128 bands for a model of 80": torch.zeros(1, 128, 3000),
    "transposed": torch.zeros(1, 3000, 80),
    "no batch dimension": torch.zeros(80, 3000),
    "one dimension": torch.zeros(3000),
    "four dimensions": torch.zeros(1, 1, 80, 3000),
    "integers": torch.zeros(1, 80, 3000, dtype=torch.int64),
    "empty batch": torch.zeros(0, 80, 3000),
}


@pytest.mark.parametrize("name", MELS)
def test_a_mel_of_the_wrong_shape_is_upstreams_error(nano: Pair, name: str) -> None:
    assert_same_outcome(nano, lambda model: model.encoder(MELS[name]))
    assert_same_outcome(nano, lambda model: model.embed_audio(MELS[name]))
    assert_same_outcome(nano, lambda model: model(MELS[name], TOKENS))


@pytest.mark.parametrize("name", ["too short", "128 bands for a model of 80", "transposed", "four dimensions"])
def test_decoding_a_mel_of_the_wrong_shape_is_upstreams_error(nano: Pair, name: str) -> None:
    assert_same_outcome(nano, lambda model: model.decode(MELS[name], **QUICK))
    assert_same_outcome(nano, lambda model: model.detect_language(MELS[name]))


def test_a_mel_that_is_no_tensor_is_upstreams_error(nano: Pair, mel: Tensor) -> None:
    assert_same_outcome(nano, lambda model: model.decode(None, **QUICK))
    assert_same_outcome(nano, lambda model: model.decode(mel.numpy(), **QUICK))


# Tokens

BAD_TOKENS = {
    "more than n_text_ctx": torch.full((1, 449), EOT),
    "beyond the vocabulary": torch.tensor([[SOT, 51865]]),
    "far beyond the vocabulary": torch.tensor([[2**40]]),
    "negative": torch.tensor([[SOT, -1]]),
    "floats": torch.tensor([[1.0]]),
    "bools": torch.tensor([[True]]),
    "one dimension": torch.tensor([SOT, EOT]),
    "three dimensions": torch.tensor([[[SOT]]]),
    "none": torch.zeros(1, 0, dtype=torch.int64),
    "empty batch": torch.zeros(0, 1, dtype=torch.int64),
    "two sequences for three windows": torch.full((2, 1), SOT),
}


@pytest.mark.parametrize("name", BAD_TOKENS)
def test_bad_tokens_are_upstreams_error(nano: Pair, mel: Tensor, name: str) -> None:
    features = nano.torch.encoder(mel[None]).repeat(3 if "three windows" in name else 1, 1, 1)
    assert_same_outcome(nano, lambda model: model.logits(BAD_TOKENS[name], features))


@pytest.mark.parametrize(
    "features",
    [torch.zeros(1, 1500, 64), torch.zeros(1500, 64), torch.zeros(1, 1500, 128, dtype=torch.int64)],
    ids=["another width", "no batch dimension and another width", "integers"],
)
def test_bad_features_are_upstreams_error(nano: Pair, features: Tensor) -> None:
    assert_same_outcome(nano, lambda model: model.logits(TOKENS, features))


@pytest.mark.parametrize(("n_before", "n_more"), [(440, 9), (448, 1), (448, 5)])
def test_a_cache_that_overflows_is_upstreams_error(nano: Pair, mel: Tensor, n_before: int, n_more: int) -> None:
    features = nano.torch.encoder(mel[None])
    tokens = torch.full((1, 448), 440)

    def overflow(model: Whisper) -> None:
        cache, hooks = model.install_kv_cache_hooks()
        try:
            model.decoder(tokens[:, :n_before], features, kv_cache=cache)
            model.decoder(tokens[:, :n_more], features, kv_cache=cache)
        finally:
            for hook in hooks:
                hook.remove()

    assert_same_outcome(nano, overflow)


def test_the_context_can_be_filled_to_its_end(nano: Pair, mel: Tensor) -> None:
    options = {
        **QUICK,
        "sample_len": 448,
        "prompt": list(range(300, 600)),
        "suppress_tokens": [EOT],
        "without_timestamps": True,
    }
    results = [model.decode(mel, **copy.deepcopy(options)) for model in (nano.max, nano.torch)]
    assert results[0].tokens == results[1].tokens
    assert len(results[0].tokens) == 448 + 1 - 224 - 4  # context + 1, less prompt and sot sequence


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": "a longer story " * 300},
        {"prompt": list(range(300, 3000))},
        {"prompt": "a longer story " * 300, "beam_size": 2},
        {"prefix": "a longer story " * 300},
        {"prefix": list(range(300, 3000)), "prompt": list(range(300, 3000))},
        {"prompt": []},
        {"prompt": ""},
    ],
    ids=["prompt", "prompt of tokens", "with beams", "prefix", "both", "empty list", "empty string"],
)
def test_a_prompt_longer_than_the_context_is_cut_as_upstream_cuts_it(
    nano: Pair, mel: Tensor, options: dict[str, Any]
) -> None:
    ours, theirs = (model.decode(mel, **QUICK, **options) for model in (nano.max, nano.torch))
    assert ours.tokens == theirs.tokens


def test_transcribing_with_a_prompt_longer_than_the_context(nano: Pair) -> None:
    audio = load_audio(SAMPLE)[: 5 * 16000]
    options = {**QUICK, "temperature": 0.0, "initial_prompt": "a longer story " * 300}
    assert_same_result(nano.max.transcribe(audio, **options), nano.torch.transcribe(audio, **options))


@pytest.mark.parametrize("where", ["prompt", "prefix"])
@pytest.mark.parametrize("token", [51865, -1, 10**9])
def test_prompts_outside_the_vocabulary_are_upstreams_error(nano: Pair, mel: Tensor, where: str, token: int) -> None:
    options = {**QUICK, where: [440, token]}
    assert_same_outcome(nano, lambda model: model.decode(mel, **options))


# Options

BAD_OPTIONS: list[dict[str, Any]] = [
    {"temperature": -1.0},
    {"temperature": float("nan")},
    {"temperature": "hot"},
    {"temperature": None},
    {"beam_size": 0},
    {"beam_size": -1},
    {"beam_size": 2.5},
    {"beam_size": "5"},
    {"beam_size": 2, "best_of": 2},
    {"best_of": 5},
    {"best_of": -1, "temperature": 1.0},
    {"patience": 1.0},
    {"beam_size": 2, "patience": -1.0},
    {"beam_size": 2, "patience": 0.1},
    {"length_penalty": 1.5},
    {"length_penalty": -0.1},
    {"sample_len": -1},
    {"language": "xx"},
    {"suppress_tokens": (1,)},
    {"suppress_tokens": "a,b"},
    {"suppress_tokens": [99999]},
    {"max_initial_timestamp": "soon"},
    {"beams": 5},
]


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=str)
def test_bad_options_are_upstreams_error(nano: Pair, mel: Tensor, options: dict[str, Any]) -> None:
    options = {**QUICK, **options}
    assert_same_outcome(nano, lambda model: model.decode(mel, **copy.deepcopy(options)))


ODD_OPTIONS: list[dict[str, Any]] = [
    {"best_of": 0, "temperature": 1.0},
    {"temperature": 1e-6},
    {"temperature": 100.0},
    {"task": "sing"},
    {"beam_size": 1},
    {"beam_size": 2, "patience": 3.0, "length_penalty": 1.0},
    {"max_initial_timestamp": -1.0},
    {"max_initial_timestamp": 1000.0},
]


@pytest.mark.parametrize("options", ODD_OPTIONS, ids=str)
def test_odd_options_that_upstream_takes_give_its_tokens(nano: Pair, mel: Tensor, options: dict[str, Any]) -> None:
    tokens = []
    for model in (nano.max, nano.torch):
        torch.manual_seed(0)
        tokens.append(model.decode(mel, **{**QUICK, **options}).tokens)
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": ()},
        {"clip_timestamps": "a"},
        {"temperature": -1.0},
    ],
    ids=str,
)
def test_bad_options_of_transcribe_are_upstreams_error(nano: Pair, options: dict[str, Any]) -> None:
    audio = load_audio(SAMPLE)[:16000]
    assert_same_outcome(nano, lambda model: model.transcribe(audio, **QUICK, **options))


# Devices and backends


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps", "meta", torch.device("cuda"), torch.device("xpu", 0)])
def test_a_device_that_graphs_do_not_run_on(device: str | torch.device) -> None:
    error = error_of(lambda: whisper.load_model(str(NANO), device=device, backend="max"))
    assert isinstance(error, DeviceError)
    assert_one_sentence(error, repr(str(device)), 'device="cpu"', 'backend="torch"')


def test_a_device_that_is_none_is_torchs_error() -> None:
    ours = error_of(lambda: whisper.load_model(str(NANO), device="toaster", backend="max"))
    theirs = error_of(lambda: torch.device("toaster"))
    assert type(ours) is type(theirs)
    assert str(ours) == str(theirs)


@pytest.mark.parametrize("name", ["cuda", "", "max,torch"])
def test_an_unknown_backend(name: str) -> None:
    error = error_of(lambda: whisper.load_model(str(NANO), backend=name))
    assert isinstance(error, UnknownBackendError)
    assert_one_sentence(error, repr(name), "known backends: max, torch")


@pytest.fixture
def without_max(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH that holds what is installed here, but for MAX."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    for installed in site.getsitepackages():
        for entry in Path(installed).iterdir():
            name = entry.name.lower()
            if (
                name == "max"
                or name.startswith(("max-", "max_core", "modular", "mojo"))
                or (folder / entry.name).exists()
            ):
                continue
            (folder / entry.name).symlink_to(entry)
    package = Path(whisper_max_plugin.__file__).parent
    if not (folder / package.name).exists():  # an editable install
        (folder / package.name).symlink_to(package)
    return folder


def test_without_max_the_backend_says_how_to_install_it_and_torch_works(without_max: Path) -> None:
    code = """
import json, sys
import torch, whisper, whisper_max_plugin
whisper_max_plugin.install()
results = {}
for backend in ("max", None, "torch"):
    try:
        results[str(backend)] = type(whisper.load_model(sys.argv[1], backend=backend)).__name__
    except RuntimeError as error:
        results[str(backend)] = [type(error).__name__, str(error)]
whisper_max_plugin.uninstall()
results["uninstalled"] = type(whisper.load_model(sys.argv[1])).__name__
results["status"] = whisper_max_plugin.status()["graph_runs"]
print(json.dumps(results))
"""
    result = subprocess.run(
        [sys.executable, "-S", "-c", code, str(NANO)],
        env={**os.environ, "PYTHONPATH": str(without_max)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    refusal = ["BackendUnavailableError", f"MAX is not installed: {INSTALL_MAX}"]
    assert json.loads(result.stdout) == {
        "max": refusal,
        "None": refusal,
        "torch": "Whisper",
        "uninstalled": "Whisper",
        "status": {},
    }
