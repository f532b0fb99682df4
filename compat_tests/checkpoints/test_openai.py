"""Checkpoints: any that upstream accepts loads; a damaged, foreign or dangerous one is refused in one sentence."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import whisper
from torch import Tensor
from whisper.model import Whisper

import whisper_max_plugin
import whisper_max_plugin.loading
from whisper_max_plugin.checkpoints.checkpoint import expected_shapes
from whisper_max_plugin.errors import CheckpointError

from ..compare import assert_close
from ..conftest import Pair, load_pair
from ..data import NANO
from ..errors import assert_one_sentence, assert_same_error, error_of

Checkpoint = dict[str, Any]
TOKENS = torch.tensor([[50258, 50259, 50359, 50364, 440, 1331]])
MEL = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(0)) / 2


def test_the_tensors_that_are_expected_are_upstreams_in_its_order() -> None:
    dims = whisper.model.ModelDimensions(80, 1500, 128, 2, 3, 51865, 448, 64, 1, 2)
    upstreams = {name: tuple(tensor.shape) for name, tensor in Whisper(dims).state_dict().items()}
    assert list(expected_shapes(dims).items()) == list(upstreams.items())


@pytest.fixture(autouse=True)
def installed() -> None:
    whisper_max_plugin.install()


@pytest.fixture(scope="module")
def stored() -> Checkpoint:
    """What the file nano.pt holds; tests change copies of its dicts."""
    return torch.load(NANO)


@pytest.fixture
def checkpoint(stored: Checkpoint) -> Checkpoint:
    return {"dims": {**stored["dims"]}, "model_state_dict": {**stored["model_state_dict"]}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "my model.pt"


def load(path: object, **kwargs: Any) -> Whisper:
    return whisper.load_model(path, device="cpu", backend="max", **kwargs)  # type: ignore[arg-type]


def upstreams(path: object, **kwargs: Any) -> Whisper:
    return whisper.load_model(path, device="cpu", backend="torch", **kwargs)  # type: ignore[arg-type]


def refused(path: Path, *named: object) -> str:
    """Assert that the checkpoint is refused in one sentence, which names the file and what is wrong."""
    error = error_of(lambda: load(str(path)))
    assert isinstance(error, CheckpointError), repr(error)
    assert_one_sentence(error, path, *named)
    return str(error)


@torch.no_grad()
def assert_same_passes(ours: Whisper, theirs: Whisper) -> None:
    assert_close(ours(MEL, TOKENS), theirs(MEL, TOKENS))


# What loads


def test_a_checkpoint_in_the_format_before_zip(nano: Pair, checkpoint: Checkpoint, path: Path) -> None:
    torch.save(checkpoint, path, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(path)
    assert_same_passes(load(str(path)), nano.torch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_of_another_dtype(checkpoint: Checkpoint, path: Path, dtype: torch.dtype) -> None:
    checkpoint["model_state_dict"] = {name: x.to(dtype) for name, x in checkpoint["model_state_dict"].items()}
    torch.save(checkpoint, path)
    pair = load_pair(path)
    assert {x.dtype for x in pair.max.parameters()} == {x.dtype for x in pair.torch.parameters()}
    assert_same_passes(pair.max, pair.torch)


def test_a_checkpoint_with_more_beside_the_model(nano: Pair, checkpoint: Checkpoint, path: Path) -> None:
    torch.save({**checkpoint, "epoch": 3, "optimizer": {"lr": 1e-4, "moments": [torch.zeros(2)]}}, path)
    assert_same_passes(load(str(path)), nano.torch)


def test_in_memory(nano: Pair) -> None:
    assert_same_passes(load(str(NANO), in_memory=True), nano.torch)


def test_a_path_object_as_name(nano: Pair) -> None:
    assert_same_passes(upstreams(NANO), nano.torch)
    assert_same_passes(load(NANO), nano.torch)


def test_a_path_of_bytes(nano: Pair) -> None:
    assert_same_passes(upstreams(bytes(NANO)), nano.torch)
    assert_same_passes(load(bytes(NANO)), nano.torch)


def test_a_relative_name(nano: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(NANO.parent)
    assert_same_passes(load(NANO.name), nano.torch)


def test_a_checkpoint_that_is_deleted_after_loading(nano: Pair, checkpoint: Checkpoint, path: Path) -> None:
    torch.save(checkpoint, path)
    model = load(str(path))
    path.unlink()
    assert_same_passes(model, nano.torch)


# What is not there


@pytest.mark.parametrize("name", ["nonesuch", "no folder/nonesuch.pt", "", "Tiny"])
def test_a_missing_file_is_upstreams_error(name: str) -> None:
    assert_same_error(lambda: load(name), lambda: upstreams(name))


# What is damaged


def test_an_empty_file(path: Path) -> None:
    path.touch()
    refused(path)


def test_a_file_that_may_not_be_read_is_not_called_damaged(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied")

    path.write_bytes(b"a checkpoint")
    monkeypatch.setattr(torch, "load", fail)
    error = error_of(lambda: whisper.load_model(str(path)))
    assert isinstance(error, CheckpointError)
    assert str(error) == f"{path} cannot be read: Permission denied"


@pytest.mark.parametrize("content", [b"hello\n", b"import os\n", b"\x80", b"PK\x03\x04 not a zip", bytes(4096)])
def test_a_file_of_another_kind(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    refused(path)


def test_an_archive_of_another_kind(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [1, 100, 0.5, 0.99, -1])
def test_a_truncated_file(checkpoint: Checkpoint, path: Path, zipped: bool, kept: float) -> None:
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    size = path.stat().st_size
    os.truncate(path, int(kept * size) if 0 < kept < 1 else int(kept) % size)
    refused(path)


def test_a_download_that_is_longer_than_it_should_be(checkpoint: Checkpoint, path: Path) -> None:
    torch.save(checkpoint, path)
    with path.open("ab") as file:
        file.write(b"<html>")
    try:
        expected = upstreams(str(path))
    except RuntimeError:
        refused(path)
    else:
        assert_same_passes(load(str(path)), expected)


@pytest.mark.parametrize("zeroed", [1, 1 << 20])
def test_a_flipped_byte_in_a_tensor(checkpoint: Checkpoint, path: Path, zeroed: int) -> None:
    torch.save(checkpoint, path)
    with zipfile.ZipFile(path) as archive:
        entry = max(archive.infolist(), key=lambda entry: entry.file_size)
    content = bytearray(path.read_bytes())
    middle = entry.header_offset + entry.file_size // 2
    content[middle : middle + zeroed] = bytes(255 - byte for byte in content[middle : middle + zeroed])
    path.write_bytes(content)
    assert upstreams(str(path))  # upstream does not see it
    refused(path, entry.filename)


# What is dangerous


class Payload:
    """Unpickling it makes a folder: the stand-in for an attack."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (os.mkdir, (str(self.sentinel),))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["dims", "model_state_dict", "beside"])
def test_a_pickle_that_carries_code_is_refused_and_not_run(
    checkpoint: Checkpoint, path: Path, tmp_path: Path, zipped: bool, place: str
) -> None:
    sentinel = tmp_path / "sentinel"
    checkpoint.setdefault(place, {})["payload"] = Payload(sentinel)
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    assert "code" in refused(path)
    assert "code" in str(error_of(lambda: load(str(path), in_memory=True)))
    assert not sentinel.exists()

    torch.load(path, weights_only=False)
    assert sentinel.exists()  # it was dangerous


def test_a_bare_pickle_that_carries_code_is_refused_and_not_run(path: Path, tmp_path: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(tmp_path / "sentinel")))
    refused(path)
    assert not (tmp_path / "sentinel").exists()


def test_an_upstream_that_would_run_the_code_is_not_asked(checkpoint: Checkpoint, path: Path, tmp_path: Path) -> None:
    # openai-whisper loads without weights_only up to 20240930
    torch.save({**checkpoint, "beside": Payload(tmp_path / "sentinel")}, path)

    def load_model(name: str, **_: object) -> Whisper:
        return torch.load(name, weights_only=False)

    with pytest.raises(CheckpointError):
        whisper_max_plugin.loading.load(
            str(path), device=None, download_root=None, in_memory=False, upstream_load_model=load_model
        )
    assert not (tmp_path / "sentinel").exists()


def test_a_whole_pickled_model_is_refused(nano: Pair, path: Path) -> None:
    torch.save(nano.torch, path)
    assert "save a dict" in refused(path)


# What is not Whisper


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lambda checkpoint: {"model_state_dict": checkpoint["model_state_dict"]}, id="no dims"),
        pytest.param(lambda checkpoint: {"dims": checkpoint["dims"]}, id="no state"),
        pytest.param(lambda checkpoint: checkpoint["model_state_dict"], id="the state alone"),
        pytest.param(lambda checkpoint: [checkpoint], id="a list"),
        pytest.param(lambda checkpoint: torch.zeros(3), id="a tensor"),
        pytest.param(lambda checkpoint: None, id="None"),
    ],
)
def test_something_else_than_a_whisper_checkpoint(
    checkpoint: Checkpoint, path: Path, content: Callable[[Checkpoint], object]
) -> None:
    torch.save(content(checkpoint), path)
    refused(path, "'dims' and 'model_state_dict'")


@pytest.mark.parametrize(
    "dims",
    [
        pytest.param(lambda dims: None, id="None"),
        pytest.param(lambda dims: list(dims.values()), id="a list"),
        pytest.param(lambda dims: {}, id="empty"),
        pytest.param(lambda dims: {**dims, "n_experts": 8}, id="one more"),
        pytest.param(lambda dims: {name: n for name, n in dims.items() if name != "n_mels"}, id="one less"),
        pytest.param(lambda dims: {**dims, "n_mels": "80"}, id="a string"),
        pytest.param(lambda dims: {**dims, "n_mels": 80.0}, id="a float"),
        pytest.param(lambda dims: {**dims, "n_mels": torch.tensor(80)}, id="a tensor"),
        pytest.param(lambda dims: {**dims, "n_text_layer": True}, id="a bool"),
        pytest.param(lambda dims: {**dims, "n_text_layer": -1}, id="negative"),
        pytest.param(lambda dims: {**dims, "n_text_head": 0}, id="zero"),
        pytest.param(lambda dims: {**dims, "n_audio_head": 3}, id="heads that do not divide the state"),
        pytest.param(lambda dims: {**dims, "n_audio_state": 127}, id="odd"),
        pytest.param(lambda dims: {**dims, "n_vocab": 10**15}, id="huge"),
        pytest.param(lambda dims: {**dims, "n_text_layer": 10**3}, id="many layers"),
    ],
)
def test_malformed_dims(checkpoint: Checkpoint, path: Path, dims: Callable[[dict[str, int]], object]) -> None:
    checkpoint["dims"] = dims(checkpoint["dims"])
    torch.save(checkpoint, path)
    assert "dim" in refused(path)


def test_a_missing_tensor(checkpoint: Checkpoint, path: Path) -> None:
    del checkpoint["model_state_dict"]["decoder.blocks.1.mlp.2.bias"]
    torch.save(checkpoint, path)
    refused(path, "missing decoder.blocks.1.mlp.2.bias")


@pytest.mark.parametrize(
    "name", ["decoder.blocks.0.attn.key.bias", "proj_out.weight", "decoder.mask", "alignment_heads"]
)
def test_an_extra_tensor(checkpoint: Checkpoint, path: Path, name: str) -> None:
    checkpoint["model_state_dict"][name] = torch.zeros(128)
    torch.save(checkpoint, path)
    refused(path, f"unused {name}")


@pytest.mark.parametrize(
    ("name", "reshape", "shapes"),
    [
        ("encoder.conv1.weight", lambda x: x.transpose(0, 1).contiguous(), ("(80, 128, 3)", "(128, 80, 3)")),
        ("decoder.token_embedding.weight", lambda x: x[:-1].clone(), ("(51864, 128)", "(51865, 128)")),
        ("decoder.ln.bias", lambda x: x[None], ("(1, 128)", "(128,)")),
        ("decoder.ln.weight", lambda x: x[0], ("()", "(128,)")),
    ],
)
def test_a_tensor_of_the_wrong_shape(
    checkpoint: Checkpoint, path: Path, name: str, reshape: Callable[[Tensor], Tensor], shapes: tuple[str, str]
) -> None:
    checkpoint["model_state_dict"][name] = reshape(checkpoint["model_state_dict"][name])
    torch.save(checkpoint, path)
    refused(path, f"{name} of shape {shapes[0]} instead of {shapes[1]}")


@pytest.mark.parametrize("value", [3, "weights", None, [1.0], {"a": 1}])
def test_a_value_that_is_no_tensor(checkpoint: Checkpoint, path: Path, value: object) -> None:
    checkpoint["model_state_dict"]["decoder.ln.bias"] = value
    torch.save(checkpoint, path)
    refused(path, "decoder.ln.bias")


def test_names_that_are_no_strings(checkpoint: Checkpoint, path: Path) -> None:
    checkpoint["model_state_dict"][7] = torch.zeros(1)
    torch.save(checkpoint, path)
    refused(path, "unused 7")


def test_a_checkpoint_of_hugging_face_names_some_tensors_and_counts_the_rest(
    checkpoint: Checkpoint, path: Path
) -> None:
    state = checkpoint["model_state_dict"]
    checkpoint["model_state_dict"] = {f"model.{name}": x for name, x in state.items()}
    torch.save(checkpoint, path)
    assert " more" in refused(path)


def test_a_refused_checkpoint_leaves_nothing_behind(nano: Pair, checkpoint: Checkpoint, path: Path) -> None:
    del checkpoint["model_state_dict"]["decoder.ln.bias"]
    torch.save(checkpoint, path)
    refused(path)
    assert_same_passes(load(str(NANO)), nano.torch)
    path.unlink()  # no open file keeps it from being deleted, on any system
