"""Devices: which one a name means, and that a model on one with memory of its own computes what upstream does."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import whisper

from whisper_max_plugin import loading, startup, transcribe_many, trial
from whisper_max_plugin.checkpoints.sizes import OFFICIAL_DIMS
from whisper_max_plugin.doctor import parity_checks
from whisper_max_plugin.errors import DeviceError, MemoryFullError
from whisper_max_plugin.execution import artifacts, devices
from whisper_max_plugin.execution.compiled import check_sizes
from whisper_max_plugin.execution.devices import HOST, Device, Mirrors
from whisper_max_plugin.execution.step_inputs import SearchInputs, SearchKind
from whisper_max_plugin.inference.kv_cache import KVCache
from whisper_max_plugin.inference.model import MaxWhisper

from ..compare import assert_same_result
from ..conftest import Pair
from ..data import NANO, SAMPLE_LONG
from ..errors import assert_one_sentence, error_of
from .cuda_stand_in import with_cuda
from .fixtures import ELSEWHERE, HALF, elsewhere, transcripts

__all__ = ["elsewhere", "with_cuda"]  # fixtures, found by name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beam_size": 5, "word_timestamps": True},
        {"temperature": (0.0, 1.5), "logprob_threshold": 0.0, "best_of": 3},
        {"beam_size": 3, "without_timestamps": True, "initial_prompt": "The old man."},
        {"suppress_tokens": "", "word_timestamps": True},
    ],
    ids=lambda options: "-".join(options) or "defaults",
)
def test_what_is_copied_to_a_device_and_back_is_what_upstream_computes(
    nano: Pair, elsewhere: MaxWhisper, options: dict[str, Any]
) -> None:
    expected, actual = transcripts([nano.torch, elsewhere], options)
    assert_same_result(actual, expected)


def test_recordings_that_are_decoded_together_keep_their_temperatures(nano: Pair, elsewhere: MaxWhisper) -> None:
    """Some fall back to samples beside others; with hardly any heat, samples are the best tokens."""
    audio = whisper.load_audio(str(SAMPLE_LONG))
    audios = [audio[begin * 16000 : (begin + 12) * 16000] for begin in (0, 30, 60, 90)]
    options: dict[str, Any] = {"fp16": False, "language": "en"}
    expected = [nano.torch.transcribe(audio, temperature=0.0, **options) for audio in audios]
    scores = [min(segment["avg_logprob"] for segment in result["segments"]) for result in expected]
    options |= {"temperature": (0.0, 1e-3), "logprob_threshold": sorted(scores)[2] - 1e-4}
    results: dict[int, dict[str, Any]] = {}
    for finished in transcribe_many(elsewhere, audios, batch_size=4, **options):
        results[finished.index] = finished.result
    assert [results[index]["text"] for index in range(4)] == [result["text"] for result in expected]
    temperatures = {segment["temperature"] for result in results.values() for segment in result["segments"]}
    assert temperatures == {0.0, 1e-3}


def test_spectrograms_beams_and_hooks_of_callers_with_a_cache_of_the_device(nano: Pair, elsewhere: MaxWhisper) -> None:
    checks = parity_checks
    window = checks.prepare(nano.torch, checks.synthetic_audio())
    upstreams: checks.Results = {}
    with torch.no_grad():
        for check in (checks.mel, checks.encoder, checks.prefill, checks.beams, checks.alignment):
            upstreams[check.__name__] = check(nano.torch, window, upstreams)
            for actual, expected in zip(check(elsewhere, window, upstreams), upstreams[check.__name__], strict=True):
                torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{"beam_size": 5}, {"temperature": 0.7, "best_of": 3}], ids=["beams", "samples"])
def test_a_prompt_stays_on_the_device_when_sequences_start_from_it(
    nano: Pair, elsewhere: MaxWhisper, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not so where somebody else reads or writes the cache, which passes through the host."""
    monkeypatch.setattr(KVCache, "_stored", lambda *_: pytest.fail("entries of the cache were moved"))
    prompt = "The old man and the boat. " * 20
    expected, actual = transcripts([nano.torch, elsewhere], {**options, "initial_prompt": prompt})
    assert_same_result(actual, expected)


def test_entries_of_the_cache_are_read_and_written_as_upstreams(nano: Pair, elsewhere: MaxWhisper) -> None:
    features = torch.randn(2, 1500, nano.torch.dims.n_audio_state)
    tokens = torch.tensor([[50258, 50259], [50258, 50260]])
    logits = []
    for model in (nano.torch, elsewhere):
        cache, hooks = model.install_kv_cache_hooks()
        with torch.no_grad():
            model.decoder(tokens, features, kv_cache=cache)
            for module, entry in cache.items():
                cache[module] = entry[[1, 0]].detach()
            logits.append(model.decoder(tokens[:, :1], features, kv_cache=cache))
        for hook in hooks:
            hook.remove()
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)


def test_a_mirror_changes_neither_side_before_it_is_told() -> None:
    mirrors = Mirrors(ELSEWHERE, np.zeros(3, dtype=np.float32), np.full((2, 5), 7))
    numbers, further = mirrors.each
    numbers.array[:] = 1
    assert numbers.buffer.to_numpy().tolist() == [0, 0, 0]
    mirrors.push()
    assert numbers.buffer.to_numpy().tolist() == [1, 1, 1]
    numbers.array[:] = 2
    mirrors.pull()
    assert numbers.array.tolist() == [1, 1, 1]
    assert further.array.tolist() == further.buffer.to_numpy().tolist() == [[7] * 5] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_what_max_copies_is_there_at_once(dtype: torch.dtype) -> None:
    tensor = torch.arange(12).to(dtype).view(3, 4).T  # which is copied in its order
    buffer = ELSEWHERE.put(tensor)
    assert torch.equal(ELSEWHERE.get(buffer), tensor)
    ELSEWHERE.write(buffer, tensor + 1)
    tensor.zero_()
    assert torch.equal(ELSEWHERE.get(buffer), torch.arange(1, 13).to(dtype).view(3, 4).T)


def test_sequences_that_search_together_are_searched_as_alone() -> None:
    kind = SearchKind.of_any_token(60)
    alone, together = SearchInputs(ELSEWHERE, 2, 8, kind), SearchInputs(ELSEWHERE, 5, 8, kind)
    for mirror in alone.allowed.each:
        mirror.array[:] = np.random.default_rng(0).integers(1, 9, mirror.array.shape)
    together.copy_allowed_from(alone, slice(1, 3))
    for mine, its in zip(together.allowed.each, alone.allowed.each, strict=True):
        assert np.array_equal(mine.array[1:3], its.array)
        assert not (mine.array[[0, 3, 4]] == its.array[:1]).all()


def test_without_a_gpu_the_cpu_is_the_best_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "accelerator_count", lambda: 0)
    assert devices.find(None) is HOST
    assert devices.find("cpu") is devices.find(torch.device("cpu")) is HOST


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "accelerator_count", lambda: 2)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("asked_for", "name"),
    [
        (None, "cuda:0"),
        ("cuda", "cuda:0"),
        ("cuda:1", "cuda:1"),
        (1, "cuda:1"),
        (torch.device("cuda", 1), "cuda:1"),
        ("cpu", "cpu"),
    ],
)
def test_a_name_means_the_device_that_torch_calls_so(asked_for: str | int | torch.device | None, name: str) -> None:
    assert devices.find(asked_for).name == name


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_is_not_there() -> None:
    error = error_of(lambda: devices.find("cuda:2"))
    assert isinstance(error, DeviceError)
    assert_one_sentence(error, "'cuda:2'", "only 2 GPUs", "nvidia-smi", 'device="cpu"')


def test_a_gpu_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_index: int) -> None:
        raise RuntimeError(
            "Your current NVIDIA GPU driver version is not supported.\n  Required: driver version >= 570"
        )

    monkeypatch.setattr(devices, "Accelerator", fail)
    error = error_of(lambda: Device("cuda:0", shares_memory=False).driver)
    assert isinstance(error, DeviceError)
    assert_one_sentence(error, "cuda:0", "Required: driver version >= 570; update", 'device="cpu"')


def test_sizes_that_kernels_on_gpus_do_not_serve() -> None:
    for dims in OFFICIAL_DIMS.values():
        check_sizes(dims)
    error = error_of(lambda: check_sizes(replace(OFFICIAL_DIMS["tiny"], n_text_head=3)))
    assert isinstance(error, DeviceError)
    assert_one_sentence(error, "heads of 64 and 128", 'device="cpu"')
    error = error_of(lambda: check_sizes(replace(OFFICIAL_DIMS["large"], n_text_state=1344, n_text_head=21)))
    assert isinstance(error, DeviceError)
    assert_one_sentence(error, "up to 1280 values for a token, and this model has 1344", 'device="cpu"')


# The first load of a size on a device of its own


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str, str]]:
    """What is tried in another process, which says that all is well; nobody has compared the device "cuda" yet."""
    calls: list[tuple[str, str, str]] = []
    monkeypatch.setattr(trial, "run", lambda *given: calls.append(given))
    monkeypatch.setattr(artifacts, "path_of", lambda dims, types, kind: tmp_path / f"{types}.mef")
    monkeypatch.setattr(devices, "find", lambda name: HOST if name == "cpu" else HALF)
    return calls


def load(device: str | None = "cuda", precision: str | None = None) -> MaxWhisper:
    upstream_load_model = inspect.unwrap(whisper.load_model)
    return loading.load(
        *[str(NANO)],
        **{"device": device, "download_root": None, "in_memory": False, "precision": precision},
        upstream_load_model=upstream_load_model,
    )


def test_a_device_is_compared_with_torch_once_for_each_precision(tried: list[tuple[str, str, str]]) -> None:
    mel = torch.randn(1, 80, 3000)
    for _ in range(2):
        model = load()
        assert tried == [(str(NANO), HALF.name, "float16")]
    model.encoder(mel.half())
    assert len(tried) == 1
    model.encoder(mel)  # fp16=False
    assert tried[1:] == [(str(NANO), HALF.name, "float32")]


def test_a_cache_that_cannot_be_written_only_costs_the_comparison(tried: list[tuple[str, str, str]]) -> None:
    for n in (1, 2):
        with patch.object(Path, "touch", side_effect=PermissionError):
            assert isinstance(load(), MaxWhisper)
        assert len(tried) == n


@pytest.mark.usefixtures("tried")
def test_a_device_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(trial, "run", lambda *_: "encoder is off by 1e-02 of the largest")
    error = error_of(load)
    assert isinstance(error, DeviceError)
    assert_one_sentence(error, "encoder is off by 1e-02", 'device="cpu"', "whisper-max doctor")
    assert not list(tmp_path.glob("*.checked"))


@pytest.mark.usefixtures("tried")
def test_a_gpu_that_nobody_asked_for_gives_way_to_the_cpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trial, "run", lambda *_: "steps failed: no such kernel")
    model = load(device=None)
    assert model.decoder.runtime.device is HOST
    assert 'the model runs on the CPU, which device="cpu" would choose, because what cpu computes' in caplog.text
    monkeypatch.setattr(trial, "run", lambda *given: "encoder died" if given[-1] == "float32" else None)
    model = load(device=None)
    assert model.decoder.runtime.device is HALF
    model.encoder(torch.randn(1, 80, 3000))  # fp16=False, of which nothing was compared before
    assert model.decoder.runtime.device is HOST
    assert load(device=None, precision="int8").decoder.runtime.device is HOST  # for which a GPU has no kernels


def test_official_models_are_tried_where_upstream_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/me/models")
    assert loading._path_of("turbo", None) == "/home/me/models/whisper/large-v3-turbo.pt"
    assert loading._path_of("turbo", "/models") == "/models/large-v3-turbo.pt"
    assert loading._path_of("mine/model.pt", "/models") == "mine/model.pt"


def test_a_trial_finds_nothing_wrong(with_cuda: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", with_cuda)
    assert trial.run(str(NANO), "cuda", "float32") is None


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("wrong", "encoder is off by 1e-02 of the largest; prefill is off by "),
        ("dies", "a process that tried it ended with exit status -6"),
        ("hangs", "a process that tried it did not end within"),
    ],
)
def test_a_trial_tells_what_happens_to_its_process(
    fault: str, problem: str, with_cuda: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.environ", {**with_cuda, "FAULT_OF_CUDA": fault})
    monkeypatch.setattr(trial, "PATIENCE", 20 if fault == "hangs" else 600)
    assert (trial.run(str(NANO), "cuda", "float32") or "").startswith(problem)


def test_a_trial_for_which_there_is_no_room_says_nothing_of_what_is_computed(
    with_cuda: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.environ", {**with_cuda, "FAULT_OF_CUDA": "full"})
    error = error_of(lambda: trial.run(str(NANO), "cuda", "float32"))
    assert isinstance(error, MemoryFullError)
    assert_one_sentence(error, "cuda could not be compared with torch, as the memory of cuda:0 is full", 'device="cpu"')


def test_a_load_imports_nothing_that_only_the_comparison_needs() -> None:
    needless = {"av", "whisper_max_plugin.doctor.parity"}
    code = f"import sys, whisper_max_plugin.loading; print(sorted({needless} & sys.modules.keys()))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout == "[]\n"


@pytest.mark.parametrize(("words", "device"), [([], None), (["--device", "cpu"], "cpu"), (["--device=cuda"], "cuda")])
def test_the_command_leaves_a_device_that_nobody_typed_to_the_backend(
    words: list[str], device: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from whisper.transcribe import cli

    asked_for = []

    def load_model(name: str, device: str | None = None, download_root: str | None = None) -> None:
        asked_for.append(device)
        raise SystemExit

    monkeypatch.setattr(whisper, "load_model", load_model)
    monkeypatch.setattr("sys.argv", ["whisper", "a.wav", "--model", "tiny", "--backend", "max", *words])
    startup.accept_backend_option()
    with pytest.raises(SystemExit):
        cli()
    assert asked_for == [device]
