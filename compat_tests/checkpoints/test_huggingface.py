"""Folders that `transformers` wrote load as any checkpoint does, and compute what `transformers` computes."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import whisper
from torch import Tensor
from whisper.model import Whisper

import whisper_max_plugin
from whisper_max_plugin import loading
from whisper_max_plugin.audio import load_audio
from whisper_max_plugin.cli import main
from whisper_max_plugin.doctor import parity, parity_checks
from whisper_max_plugin.errors import CheckpointError
from whisper_max_plugin.execution.weights import stored_dtype

from ..compare import assert_close, assert_same_result
from ..conftest import Pair
from ..data import NANO, SAMPLE, SAMPLE_ES
from ..errors import assert_same_error
from ..parity.exact import assert_json_equal_but_for_scores
from ..seam.fixtures import TOKENS, mel, mels, no_grad
from .huggingface_fixtures import CONFIG, EMBEDDING, Tensors, config, tensors, write

transformers = pytest.importorskip("transformers", reason="transformers is not installed: it has no release for 3.10")

__all__ = ["config", "mel", "mels", "no_grad", "tensors"]  # fixtures, found by name

Save = Callable[..., Path]


@pytest.fixture(autouse=True)
def installed() -> None:
    whisper_max_plugin.install()


@pytest.fixture
def theirs(tensors: Tensors) -> Any:
    """Nano as a model of `transformers`, float32."""
    return transformers_model(tensors)


def transformers_model(tensors: Tensors | None = None, **changed: object) -> Any:
    """A model of `transformers` of nano's configuration but for what is `changed`; random weights without `tensors`."""
    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**CONFIG | changed)).eval()
    if tensors is not None:
        tied = {"proj_out.weight": tensors[EMBEDDING]}
        model.load_state_dict({name: tensor.float() for name, tensor in (tensors | tied).items()}, strict=True)
    return model


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Let `transformers` write a model of its own."""

    def save(model: Any, dtype: torch.dtype = torch.float32, **options: object) -> Path:
        folder = tmp_path / "my model"
        model.to(dtype).save_pretrained(folder, **options)
        model.float()
        return folder

    return save


def load(folder: object, **options: Any) -> Whisper:
    return whisper.load_model(folder, device="cpu", backend="max", **options).eval()  # type: ignore[arg-type]


def load_on_torch(folder: Path) -> Whisper:
    """What is accelerated, before it is, so that sizes of models need no graphs."""
    return loading.load_unaccelerated(str(folder), upstream_load_model=pytest.fail).eval()


def assert_same_logits(ours: Whisper, theirs: Any, mel: Tensor, tokens: Tensor = TOKENS) -> None:
    assert_close(ours(mel, tokens), theirs(input_features=mel, decoder_input_ids=tokens).logits)


def heads_of(model: Whisper) -> list[list[int]]:
    return model.alignment_heads.indices().T.tolist()


# Logits


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shard", [None, "3MB"])
def test_a_folder_computes_what_transformers_computes(
    theirs: Any, save: Save, mel: Tensor, dtype: torch.dtype, shard: str | None
) -> None:
    for parameter in theirs.parameters():
        parameter.data.mul_(1.01)  # exact in none of the smaller types
    folder = save(theirs, dtype, **({"max_shard_size": shard} if shard else {}))
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (shard is not None)
    model = load(str(folder))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert_same_logits(model, theirs, mel)


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"encoder_layers": 6, "decoder_layers": 1}, id="distilled"),
        pytest.param({"vocab_size": 51864}, id="English"),
        pytest.param({"vocab_size": 51866, "num_mel_bins": 128}, id="as large-v3"),
        pytest.param({"encoder_attention_heads": 4, "decoder_attention_heads": 1}, id="different heads"),
        pytest.param({"max_target_positions": 100}, id="a short text context"),
        pytest.param({"tie_word_embeddings": False}, id="untied and yet equal"),
    ],
)
def test_every_shape_computes_what_transformers_computes(save: Save, changed: dict[str, Any]) -> None:
    theirs = transformers_model(**{"d_model": 32, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128} | changed)
    for parameter in theirs.parameters():
        parameter.data.add_(torch.randn(parameter.shape) / 20)  # biases and the like start as zeros
    theirs.proj_out.weight.data.copy_(theirs.model.decoder.embed_tokens.weight)
    model = load_on_torch(save(theirs))
    mel, tokens = torch.randn(2, theirs.config.num_mel_bins, 3000) / 2, torch.randint(model.dims.n_vocab, (2, 9))
    assert_same_logits(model, theirs, mel, tokens)
    assert model.is_multilingual == (theirs.config.vocab_size > 51864)
    assert model.num_languages == theirs.config.vocab_size - 51765 - int(model.is_multilingual)


def test_the_names_in_these_tests_are_transformers_own(theirs: Any, tensors: Tensors) -> None:
    assert theirs.state_dict().keys() == tensors.keys() | {"proj_out.weight"}


# Transcription


@pytest.mark.parametrize("options", [{"word_timestamps": True}, {"beam_size": 5}], ids=str)
def test_nano_from_a_folder_transcribes_as_from_its_own_file(
    nano: Pair, theirs: Any, save: Save, options: dict[str, Any]
) -> None:
    model = load(str(save(theirs, torch.float16)))
    audio = load_audio(SAMPLE)
    result = model.transcribe(audio, fp16=False, **options)
    assert result == nano.max.transcribe(audio, fp16=False, **options)
    assert_same_result(result, nano.torch.transcribe(audio, fp16=False, **options))
    assert len(result["segments"]) == 11


def test_the_tensors_are_those_of_the_file_to_the_bit(nano: Pair, theirs: Any, save: Save) -> None:
    model = load(str(save(theirs, torch.float16)))
    expected = nano.torch.state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert model.dims == nano.torch.dims
    assert stored_dtype(model.state_dict()) == torch.float16  # so the step reads half as much


@pytest.mark.filterwarnings("ignore:FP16 is not supported on CPU")
def test_the_whisper_command_takes_a_folder(theirs: Any, save: Save, tmp_path: Path) -> None:
    folder = save(theirs, torch.float16)
    outputs = []
    for model in (folder, NANO):
        outputs.append(tmp_path / model.name / "out")
        options = ["--model", str(model), "--output_dir", str(outputs[-1]), "--word_timestamps", "True"]
        assert main(["transcribe", str(SAMPLE_ES), *options, "--verbose", "False"]) == 0
    files, expected = ({path.name: path.read_text() for path in output.iterdir()} for output in outputs)
    assert len(files) == 5
    assert_json_equal_but_for_scores(files.pop("sample_es.json"), expected.pop("sample_es.json"))
    assert files == expected


# Ways to name it


def test_a_path_object_a_relative_name_and_one_with_a_slash(
    nano: Pair, tensors: Tensors, tmp_path: Path, mel: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "my model", tensors)
    monkeypatch.chdir(tmp_path)
    expected = nano.torch(mel, TOKENS)
    for name in (folder, "my model", f"{folder}/"):
        assert_close(load(name)(mel, TOKENS), expected)
    assert_close(load(str(folder), in_memory=True, download_root="nowhere")(mel, TOKENS), expected)


def test_an_official_name_is_not_a_folder(tensors: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "tiny", tensors)
    monkeypatch.chdir(tmp_path)
    assert loading.load_unaccelerated("tiny", upstream_load_model=lambda name, **_: f"upstream's {name}") == (
        "upstream's tiny"
    )


def test_a_folder_that_is_deleted_after_loading(nano: Pair, tensors: Tensors, tmp_path: Path, mel: Tensor) -> None:
    model = load(write(tmp_path / "my model", tensors))
    shutil.rmtree(tmp_path / "my model")
    assert_close(model(mel, TOKENS), nano.torch(mel, TOKENS))


def test_the_torch_backend_knows_no_folders(tensors: Tensors, tmp_path: Path) -> None:
    folder = str(write(tmp_path / "my model", tensors))
    upstreams = whisper.load_model.__wrapped__
    assert_same_error(lambda: whisper.load_model(folder, backend="torch"), lambda: upstreams(folder))


def test_warmup_and_doctor_take_folders(nano: Pair, tensors: Tensors, tmp_path: Path) -> None:
    folder = str(write(tmp_path / "my model", tensors))
    assert loading.warmup(folder).cached
    assert parity.choose_models([folder]) == [folder]
    result = parity.check_model(folder, parity_checks.synthetic_audio())
    assert (result.ok, result.fallbacks) == (True, {})


# What docs/huggingface.md says to do


def test_added_tokens_are_cut_off_by_transformers(theirs: Any, save: Save, mel: Tensor) -> None:
    theirs.resize_token_embeddings(51872)
    folder = save(theirs)
    with pytest.raises(CheckpointError, match=r"vocab_size 51872, .* resize_token_embeddings\(\)"):
        load(folder)
    theirs.resize_token_embeddings(51865)
    assert_same_logits(load(save(theirs)), theirs, mel)


def test_a_pickle_is_saved_as_safetensors_by_transformers(theirs: Any, save: Save, mel: Tensor, tmp_path: Path) -> None:
    folder = save(theirs)
    (folder / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"a pickle.* from_pretrained\(\) and save_pretrained\(\)"):
        load(folder)
    new_folder = tmp_path / "new"
    transformers.WhisperForConditionalGeneration.from_pretrained(folder).save_pretrained(new_folder)
    assert_same_logits(load(new_folder), theirs, mel)


# Tensors that upstream does not have


def test_an_output_projection_that_is_the_embedding_is_left_out(
    nano: Pair, tensors: Tensors, config: dict[str, Any], tmp_path: Path
) -> None:
    tensors["proj_out.weight"] = tensors[EMBEDDING].float()
    for tied in (True, False):
        model = load_on_torch(write(tmp_path / "my model", tensors, config | {"tie_word_embeddings": tied}))
        assert model.state_dict().keys() == nano.torch.state_dict().keys()


def test_biases_of_key_projections_that_are_zero_are_left_out(nano: Pair, tensors: Tensors, tmp_path: Path) -> None:
    names = [name.replace(".weight", ".bias") for name in tensors if name.endswith("k_proj.weight")]
    model = load_on_torch(write(tmp_path / "my model", tensors | {name: torch.zeros(128) for name in names}))
    assert len(names) == 6
    assert model.state_dict().keys() == nano.torch.state_dict().keys()


# Alignment heads


def test_alignment_heads_are_those_of_the_generation_config(theirs: Any, save: Save) -> None:
    theirs.generation_config.alignment_heads = [[1, 0], [0, 1], [1, 0]]
    model = load(str(save(theirs, torch.float16)))
    assert heads_of(model) == [[0, 1], [1, 0]]


def test_words_are_aligned_by_these_heads(nano: Pair, tensors: Tensors, tmp_path: Path) -> None:
    heads = {"alignment_heads": [[0, 0], [1, 1]]}
    model = load(write(tmp_path / "my model", tensors, generation_config=heads))
    reference = whisper.load_model(str(NANO), device="cpu", backend="torch").eval()
    mask = torch.tensor([[True, False], [False, True]])
    reference.register_buffer("alignment_heads", mask.to_sparse(), persistent=False)
    audio, options = load_audio(SAMPLE), {"fp16": False, "word_timestamps": True, "clip_timestamps": "0,12"}
    result = model.transcribe(audio, **options)
    assert_same_result(result, reference.transcribe(audio, **options))
    assert result["segments"] != nano.max.transcribe(audio, **options)["segments"]


@pytest.mark.parametrize("generation_config", [None, {}, {"alignment_heads": None}, {"alignment_heads": []}], ids=str)
def test_without_alignment_heads_they_are_upstreams_default(
    nano: Pair, tensors: Tensors, tmp_path: Path, caplog: pytest.LogCaptureFixture, generation_config: object
) -> None:
    files = {} if generation_config is None else {"generation_config": generation_config}
    model = load_on_torch(write(tmp_path / "my model", tensors, **files))
    assert heads_of(model) == heads_of(nano.torch) == [[1, 0], [1, 1]]
    assert caplog.records == []


@pytest.mark.parametrize("beyond", [[25, 6], [2, 0], [0, 2]], ids=str)
def test_alignment_heads_of_the_model_it_was_distilled_from_are_not_used(
    nano: Pair, tensors: Tensors, tmp_path: Path, caplog: pytest.LogCaptureFixture, beyond: list[int]
) -> None:
    heads = {"alignment_heads": [[0, 1], beyond]}
    with caplog.at_level(logging.WARNING):
        model = load_on_torch(write(tmp_path / "my model", tensors, generation_config=heads))
    assert heads_of(model) == heads_of(nano.torch)
    (message,) = caplog.messages
    assert str(tmp_path / "my model" / "generation_config.json") in message
    assert "of a model with more layers or heads" in message
