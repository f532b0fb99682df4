"""The graphs compile for NVIDIA GPUs that are not there, to the kernels that they should, and are found again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from max.dtype import DType
from max.graph import DeviceRef, Module

from whisper_max_plugin import cli, loading, targets
from whisper_max_plugin.checkpoints.sizes import OFFICIAL_DIMS
from whisper_max_plugin.errors import DeviceError
from whisper_max_plugin.execution import devices, processor
from whisper_max_plugin.execution.artifacts import ArtifactKey
from whisper_max_plugin.execution.devices import Device
from whisper_max_plugin.graphs import Types, kernel_library
from whisper_max_plugin.graphs.cross_attention import build_cross_kv
from whisper_max_plugin.graphs.encoder import build_encoder
from whisper_max_plugin.graphs.step import build_step

from ..data import NANO
from ..errors import assert_one_sentence, error_of
from .machine_code import kernels_in

STARTS_NO_KERNEL = {"mo.constant", "mo.constant.external", "mo.chain.create", "rmo.mo.mutable.load"}  # of `ranges`
CI_COMPILES = ("sm_90a", None)  # the precision that `load_model` takes
OTHERS = [
    *((architecture, None) for architecture in ("sm_80", "sm_86", "sm_89", "sm_100a")),
    *((architecture, "float32") for architecture in ("sm_80", "sm_90a")),
]

HALF = Types(*[DType.float16] * 4)
MOST_INSTRUCTIONS = 8192
"""Of 16 bytes each, they fit into the cache that a multiprocessor has for them. One division a value made 40 000."""

LOADS_OF_A_STEP = {None: {10: 13, 16: 3, 0: 5}, "float32": {5: 4, 6: 8, 16: 3, 0: 5}}
"""How many kernels of each precision have how many loads of weights, keys and values on their way before they wait."""


@pytest.mark.parametrize(
    ("architecture", "precision"), [CI_COMPILES, *(pytest.param(*other, marks=pytest.mark.large) for other in OTHERS)]
)
def test_all_graphs_compile_for_a_gpu_of_another_machine(
    architecture: str, precision: str | None, tmp_path: Path
) -> None:
    # empty caches: MAX leaves kernels of other graphs in an artifact where it finds them
    caches = {"MODULAR_CACHE_DIR": str(tmp_path), "MODULAR_MAX_CACHE_DIR": str(tmp_path)}
    warmup = [sys.executable, "-m", "whisper_max_plugin.cli", "warmup", "tiny", "--target", architecture]
    warmup += [] if precision is None else ["--precision", precision]
    environment = {**os.environ, **caches}
    first = subprocess.run(warmup, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert first.stdout.startswith("tiny: compiled in ")

    (artifact,) = tmp_path.glob("whisper_max_plugin/*.mef")
    content = artifact.read_bytes()
    assert f"-arch {architecture}".encode() in content  # what the GPU code was assembled for
    names = {name.decode() for name in re.findall(rb"\.text\.(\w+)", content)}
    ours = {name for name in names if name.startswith("mojo_pkg_")}
    assert len(ours) > 20, "few kernels of our own are in the artifact"
    # MAX's products of float32 round to the 10 bits of tensor cores, those of float16 are naive or look for cuBLAS
    theirs = [name for name in names - ours if re.search("gemm|gemv|matmul|conv|mha|attention", name)]
    assert theirs == []
    assert b"cublas" not in content

    code = kernels_in(artifact, "mojo_pkg_")
    assert {each.name for each in code} == ours
    assert [each.name for each in code if each.spills] == []
    assert max(len(each.instructions) for each in code) < MOST_INSTRUCTIONS
    assert {each.name: each.touched_too_early for each in code if each.waits and each.touched_too_early} == {}
    amid = Counter(each.copies_amid_products for each in code)
    assert amid[False] == (10 if precision is None else 0)  # attention and layer norms begin them before
    assert amid[True] == (16 if precision is None else 0)  # eight products, in large tiles and in small ones
    # By kinds of kernels: the linear layers of a step and its attention, and what has nothing to read ahead
    loads = Counter(each.loads_before_the_wait for each in code if each.waits)
    overlaps = int(re.sub("\\D", "", architecture)) >= 90
    assert loads == (LOADS_OF_A_STEP[precision] if overlaps else {})

    manifest = json.loads(artifact.with_suffix(".json").read_text())
    assert manifest["precision"] == ("float16" if precision is None else "float32-float16")
    assert manifest["device"] == f"{architecture.rstrip('a')}-0"
    assert manifest["cpu"] == processor.host_code()  # and nothing of this machine's processor

    # another process that has, or pretends to have, such a GPU takes this very file
    second = subprocess.run(warmup, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert second.stdout.startswith("tiny: found in the cache in ")
    assert list(tmp_path.glob("whisper_max_plugin/*.mef")) == [artifact]
    assert artifact.read_bytes() == content


@pytest.mark.parametrize("types", [HALF, Types(DType.float16)], ids=["half", "float32"])
def test_a_step_is_nine_kernels_of_ours_a_layer_and_five_more(types: Types) -> None:
    module = Module()
    build_step(module, OFFICIAL_DIMS["tiny"], types, DeviceRef.GPU(), kernel_library())
    text = module._to_mlir_str()
    operations = Counter(re.findall(r'custom.*?symbol = "(\w+)"', text))
    n_layer = OFFICIAL_DIMS["tiny"].n_text_layer
    assert operations == {
        "whisper_embed": 1,
        "whisper_norm_linear": 2 * n_layer,
        "whisper_self_attention": n_layer,
        "whisper_linear_add": 3 * n_layer,
        "whisper_cross_attention_parts": n_layer,
        "whisper_cross_attention_merge": n_layer,
        "whisper_norm_linear_gelu": n_layer,
        "whisper_norm_project": 1,
        "whisper_search_parts": 1,
        "whisper_search_merge": 1,
        "whisper_follow": 1,
    }
    assert set(re.findall(r"= (r?mo\.[\w.]+)", text)) - {"mo.custom", *STARTS_NO_KERNEL} == set()


def test_what_attention_takes_of_the_same_rows_is_one_launch() -> None:
    dims = OFFICIAL_DIMS["tiny"]
    module = Module()
    build_encoder(module, dims, HALF, DeviceRef.GPU(), library := kernel_library())
    build_cross_kv(module, dims, HALF, DeviceRef.GPU(), library)
    operations = Counter(re.findall(r'custom.*?symbol = "(\w+)"', module._to_mlir_str()))
    assert operations == {
        "whisper_conv_gelu": 1,
        "whisper_conv_gelu_add": 1,
        "whisper_query_key_value": dims.n_audio_layer,
        "whisper_attention": dims.n_audio_layer,
        "whisper_matmul_bias_add": 2 * dims.n_audio_layer,
        "whisper_matmul_bias_gelu": dims.n_audio_layer,
        "whisper_key_value": dims.n_text_layer,
    }


# Where the artifact is looked for


class FakeGPU:
    def __init__(self, architecture_name: str) -> None:
        self.architecture_name = architecture_name


@pytest.mark.parametrize("reported", ["sm_90", "sm_90a"])
def test_the_letter_of_an_architecture_does_not_matter(reported: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_open", lambda _: FakeGPU(reported))
    assert Device("cuda:0", shares_memory=False).kind == "sm_90-0"


def test_the_processor_matters_for_graphs_of_the_cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def names() -> list[str]:
        return [ArtifactKey.of(OFFICIAL_DIMS["tiny"], "float32", kind).filename for kind in ("cpu", "sm_90-0")]

    here = names()
    monkeypatch.setattr(processor, "digest", lambda: "another")
    elsewhere = names()
    assert here[0] != elsewhere[0]
    assert here[1] == elsewhere[1]


def test_host_code_is_for_any_processor_of_the_last_decade(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(Path, "read_text", lambda _: "flags : fpu avx2 sse")
    assert processor.host_code() == "x86-64-v3"
    monkeypatch.setattr(Path, "read_text", lambda _: "flags : fpu sse")
    assert processor.host_code() == "generic"
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert processor.host_code() == "generic"


def test_host_code_is_for_this_machine_again_afterwards() -> None:
    from max.driver import get_virtual_cpu_target

    with processor.portable_host_code():
        assert get_virtual_cpu_target() == processor.host_code()
    assert get_virtual_cpu_target() == ""


# What is refused


@pytest.mark.parametrize("target", ["h100", "90a", "sm_9", "sm_75", "sm_999", "sm_100f", "gfx942", "sm_90a,sm_80", ""])
def test_a_target_that_is_no_architecture(target: str) -> None:
    error = error_of(lambda: targets.warmup(str(NANO), target))
    assert isinstance(error, DeviceError)
    assert_one_sentence(error, repr(target), "sm_90a (H100, H200)")


def test_the_architectures_are_those_of_mojo_that_have_the_kernels_instructions() -> None:
    mojo = Path(sys.executable).with_name("mojo")
    printed = subprocess.run([mojo, "build", "--print-supported-accelerators"], capture_output=True, text=True)
    mojos = re.findall(r"^  (sm_(\d+)\w?) ", printed.stdout + printed.stderr, re.MULTILINE)
    assert list(targets.ARCHITECTURES) == [name for name, number in mojos if int(number) >= 80]


class Crash:
    """Ends the process that it is sent to, which need not find this file: tests of a wheel run in another folder."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return os.abort, ()


def test_a_process_that_dies_is_not_said_to_lack_memory_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "_warmup_and_exit", Crash())
    error = error_of(lambda: targets.warmup(str(NANO), "sm_90a"))
    assert isinstance(error, DeviceError)
    assert_one_sentence(error, "sm_90a", "SIGABRT", "report it")


def test_what_is_wrong_in_the_process_that_compiles_is_told_as_ever(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["warmup", "nosuch.pt", "--target", "sm_90a"]) == 2
    assert capsys.readouterr().err.startswith("whisper-max: error: no model 'nosuch.pt': give the path")


def test_without_a_gpu_the_option_for_another_machines_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "accelerator_count", lambda: 0)
    error = error_of(lambda: loading.warmup("tiny", "cuda"))
    assert isinstance(error, DeviceError)
    assert_one_sentence(error, "MAX sees no GPU here", "whisper-max warmup --target")


def test_a_device_and_another_machines_gpu_are_not_for_one_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["warmup", "tiny", "--device", "cuda", "--target", "sm_90a"]) == 2
    assert "leave out --device" in capsys.readouterr().err
