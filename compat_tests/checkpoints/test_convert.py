"""`whisper-max convert` writes what upstream itself loads, and what computes the same as the folder it is made from."""

from __future__ import annotations

import errno
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import whisper
from torch import Tensor

import whisper_max_plugin
from whisper_max_plugin import checkpoints
from whisper_max_plugin.audio import load_audio
from whisper_max_plugin.cli import main
from whisper_max_plugin.errors import CheckpointError

from ..compare import assert_close, assert_same_result
from ..conftest import Pair
from ..data import NANO, SAMPLE
from ..errors import assert_one_sentence, error_of
from ..seam.fixtures import TOKENS, mel, mels, no_grad
from .huggingface_fixtures import CONFIG, Tensors, config, tensors, write

__all__ = ["config", "mel", "mels", "no_grad", "tensors"]  # fixtures, found by name

HEADS = {"alignment_heads": [[0, 0], [1, 1]]}


@pytest.fixture(autouse=True)
def installed() -> None:
    whisper_max_plugin.install()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "my model"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mine.pt"


def refused(capsys: pytest.CaptureFixture[str], source: Path, path: Path, *named: object) -> None:
    """Assert that nothing is written, and that one sentence says why."""
    before = sorted(path.parent.iterdir()) if path.parent.is_dir() else None
    assert main(["convert", str(source), str(path)]) == 2
    out, message = capsys.readouterr()
    assert out == ""
    assert_one_sentence(RuntimeError(message.rstrip("\n")), *named)
    assert (sorted(path.parent.iterdir()) if path.parent.is_dir() else None) == before


# What is written


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_upstream_computes_what_transformers_computes(
    tensors: Tensors, folder: Path, path: Path, mel: Tensor, dtype: torch.dtype
) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers has no release for Python 3.10")
    theirs = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**CONFIG)).to(dtype).eval()
    theirs.model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    theirs.save_pretrained(folder, max_shard_size="3MB")
    assert main(["convert", str(folder), str(path)]) == 0
    model = whisper.load_model.__wrapped__(str(path), device="cpu").eval()
    logits = theirs.float()(input_features=mel, decoder_input_ids=TOKENS).logits
    assert_close(model(mel, TOKENS), logits)
    assert_close(whisper.load_model(str(path), device="cpu", backend="max").eval()(mel, TOKENS), logits)


def test_nano_converted_is_nano_to_the_bit(
    tensors: Tensors, folder: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(write(folder, tensors)), str(path)]) == 0
    converted, original = torch.load(path), torch.load(NANO)
    assert converted.keys() == original.keys() == {"dims", "model_state_dict"}
    assert converted["dims"] == original["dims"]
    assert converted["model_state_dict"].keys() == original["model_state_dict"].keys()
    for name, tensor in original["model_state_dict"].items():
        assert converted["model_state_dict"][name].dtype == tensor.dtype
        assert torch.equal(converted["model_state_dict"][name], tensor)
    assert path.stat().st_size == pytest.approx(NANO.stat().st_size, rel=0.01)
    assert zipfile.is_zipfile(path)
    size = "80 mels, encoder 2 x 128, decoder 2 x 128, 51865 tokens"
    assert capsys.readouterr().out == f"{path}: {size}, float16, {path.stat().st_size / 1e6:.1f} MB\n"


def test_tensors_keep_the_types_they_have(
    tensors: Tensors, folder: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors["model.encoder.embed_positions.weight"] = tensors["model.encoder.embed_positions.weight"].float()
    assert main(["convert", str(write(folder, tensors)), str(path)]) == 0
    assert "tokens, float16 and float32, " in capsys.readouterr().out
    state = torch.load(path)["model_state_dict"]
    assert [name for name, tensor in state.items() if tensor.dtype == torch.float32] == ["encoder.positional_embedding"]


# Alignment heads, for which OpenAI's format has no place


def words(model: whisper.Whisper) -> dict[str, Any]:
    audio = load_audio(SAMPLE)
    return model.eval().transcribe(audio, fp16=False, word_timestamps=True, clip_timestamps="0,12")


def test_the_max_backend_applies_the_alignment_heads(
    nano: Pair, tensors: Tensors, folder: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(write(folder, tensors, generation_config=HEADS)), str(path)]) == 0
    model = whisper.load_model(str(path), device="cpu", backend="max")
    assert model.alignment_heads.indices().T.tolist() == HEADS["alignment_heads"]
    from_the_folder = whisper.load_model(str(folder), device="cpu", backend="max")
    result = words(model)
    assert result == words(from_the_folder)
    assert result != words(nano.max)

    # Upstream reads the file and knows nothing of the heads; the line that is printed applies them.
    reference = whisper.load_model(str(path), device="cpu", backend="torch")
    assert torch.equal(reference.alignment_heads.to_dense(), nano.torch.alignment_heads.to_dense())
    line = capsys.readouterr().out.splitlines()[-1]
    exec(line, {"model": reference, "torch": torch})
    assert_same_result(result, words(reference))


LARGES = whisper._ALIGNMENT_HEADS["large-v2"].decode()


@pytest.mark.parametrize("entry", ["all of them", "", "é", LARGES, LARGES[:15], LARGES[:-5]])
def test_alignment_heads_that_are_not_this_models(nano: Pair, path: Path, entry: str) -> None:
    torch.save(torch.load(NANO) | {"alignment_heads": entry}, path)
    error = error_of(lambda: checkpoints.read(path))
    assert isinstance(error, CheckpointError)
    assert_one_sentence(error, path, "damaged", "convert the checkpoint again")


@pytest.mark.parametrize("entry", [None, [[0, 0]], {"0": 0}, torch.ones(2, 2)], ids=str)
def test_an_entry_of_that_name_by_others_is_passed_over(nano: Pair, path: Path, entry: object) -> None:
    torch.save(torch.load(NANO) | {"alignment_heads": entry}, path)
    model = whisper.load_model(str(path), device="cpu", backend="max")
    assert torch.equal(model.alignment_heads.to_dense(), nano.torch.alignment_heads.to_dense())


# What is refused


def test_a_file_that_is_there_is_not_overwritten(
    tensors: Tensors, folder: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text("mine")
    refused(capsys, write(folder, tensors), path, path, "exists already: remove it")
    assert path.read_text() == "mine"
    refused(capsys, folder, folder, folder, "exists already")


@pytest.mark.parametrize("name", ["nonesuch", "tiny", "openai/whisper-tiny"])
def test_a_source_that_is_no_folder(path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    refused(capsys, Path(name), path, "is no folder", "config.json")


def test_a_source_that_is_a_file(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, NANO, path, NANO, "is no folder")


def test_a_folder_that_cannot_be_loaded(
    tensors: Tensors, folder: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del tensors["model.decoder.layer_norm.bias"]
    refused(capsys, write(folder, tensors), path, folder, "missing model.decoder.layer_norm.bias")


@pytest.mark.parametrize(("place", "reason"), [("nowhere", "No such file"), ("file", "Not a directory")])
def test_a_place_that_cannot_be_written(
    tensors: Tensors, folder: Path, path: Path, capsys: pytest.CaptureFixture[str], place: str, reason: str
) -> None:
    (path.parent / "file").touch()
    path = path.parent / place / "mine.pt"
    refused(capsys, write(folder, tensors), path, path, f"cannot be written: {reason}")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("unexpected pos 64")])
def test_a_full_disk_leaves_no_part_of_the_file(
    tensors: Tensors,
    folder: Path,
    path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def save(content: object, file: Any) -> None:
        file.write(b"half of it")
        raise error

    monkeypatch.setattr(torch, "save", save)
    refused(capsys, write(folder, tensors), path, f"{path} cannot be written: ", error.args[-1])
