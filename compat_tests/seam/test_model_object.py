"""What people do to a model object works as on upstream's: move, copy, pickle, change weights, replace modules.

Whatever becomes of the parameters, graphs compute with the ones that the model has now, or say why they cannot.
"""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import whisper
from torch import Tensor, nn
from whisper.model import Whisper

import whisper_max_plugin

from ..compare import assert_close, assert_same_result, relative_error
from ..conftest import Pair, load_pair, random_checkpoint
from ..data import NANO, SAMPLE
from ..errors import assert_one_sentence, assert_same_error, error_of

TOKENS = torch.tensor([[50258, 50259, 50359, 50364, 440, 1331]])
MEL = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(0)) / 2


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def pair() -> Pair:
    """A pair of models of its own, to change."""
    return load_pair(NANO)


def change(pair: Pair, edit: Callable[[Whisper], object]) -> None:
    """Do the same to both models; they have run before, so that nothing stale may be left."""
    for model in (pair.max, pair.torch):
        model(MEL, TOKENS)
        edit(model)


def assert_same_passes(ours: Whisper, theirs: Whisper) -> None:
    features = theirs.encoder(MEL)
    assert_close(ours.encoder(MEL), features)
    assert_close(ours.decoder(TOKENS, features), theirs.decoder(TOKENS, features))
    assert_close(ours(MEL, TOKENS), theirs(MEL, TOKENS))


def assert_changed(model: Whisper, before: Tensor) -> None:
    """The change under test is one that can be seen."""
    assert relative_error(model(MEL, TOKENS), before) > 1e-2


# Moves and modes


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda model: model.to("cpu"), id="to cpu"),
        pytest.param(lambda model: model.cpu(), id="cpu"),
        pytest.param(lambda model: model.to(torch.float32), id="to float32"),
        pytest.param(lambda model: model.eval(), id="eval"),
        pytest.param(lambda model: model.train(), id="train"),
        pytest.param(lambda model: model.float(), id="float"),
        pytest.param(lambda model: model.half().float(), id="half and float"),
        pytest.param(lambda model: model.requires_grad_(False), id="requires no grad"),
    ],
)
def test_moves_and_modes_return_the_model_and_keep_its_results(pair: Pair, edit: Callable[[Whisper], object]) -> None:
    change(pair, lambda model: None if edit(model) is model else pytest.fail("another object came back"))
    assert pair.max.training == pair.torch.training
    assert pair.max.device == pair.torch.device
    assert {x.dtype for x in pair.max.parameters()} == {x.dtype for x in pair.torch.parameters()}
    assert_same_passes(pair.max, pair.torch)


def test_half_rounds_the_weights_and_float_keeps_the_rounded_ones(pair: Pair) -> None:
    change(pair, lambda model: [x.mul_(1.0001) for x in model.parameters()])  # no longer numbers of 16 bits
    ours, theirs = pair.max.half(), pair.torch.half()
    with_half_weights = ours(MEL, TOKENS)
    assert_same_passes(ours.float(), theirs.float())
    assert_close(with_half_weights, theirs(MEL, TOKENS))  # graphs widen what they are given


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can move a model to CUDA here")
def test_to_cuda_without_cuda_is_torchs_error(pair: Pair) -> None:
    assert_same_error(lambda: pair.max.to("cuda"), lambda: pair.torch.to("cuda"))
    assert_same_error(lambda: pair.max.cuda(), lambda: pair.torch.cuda())
    assert_same_passes(pair.max, pair.torch)


# state_dict


def test_state_dict_is_upstreams(nano: Pair) -> None:
    ours, theirs = nano.max.state_dict(), nano.torch.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor), name
    assert [name for name, _ in nano.max.named_parameters()] == [name for name, _ in nano.torch.named_parameters()]
    assert [name for name, _ in nano.max.named_buffers()] == [name for name, _ in nano.torch.named_buffers()]


@pytest.mark.parametrize("kwargs", [{}, {"assign": True}])
def test_loading_other_weights(pair: Pair, tmp_path: Path, kwargs: dict[str, bool]) -> None:
    path = random_checkpoint(tmp_path / "other.pt", pair.max.dims, seed=3)
    other = {name: x.float() for name, x in torch.load(path)["model_state_dict"].items()}
    before = pair.torch(MEL, TOKENS)
    change(pair, lambda model: model.load_state_dict({name: x.clone() for name, x in other.items()}, **kwargs))
    assert_changed(pair.torch, before)
    assert_same_passes(pair.max, pair.torch)


def test_loading_a_state_that_does_not_fit_is_torchs_error(nano: Pair) -> None:
    state = {name: x for name, x in nano.torch.state_dict().items() if name != "decoder.ln.bias"}
    state["decoder.extra"] = MEL
    ours = error_of(lambda: nano.max.load_state_dict(state))
    theirs = error_of(lambda: nano.torch.load_state_dict(state))
    assert type(ours) is type(theirs)
    assert str(ours).replace("MaxWhisper", "Whisper") == str(theirs)  # torch names the class
    assert_same_passes(nano.max, nano.torch)


def test_a_saved_state_is_a_checkpoint_for_both(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "saved.pt"
    change(pair, lambda model: model.decoder.token_embedding.weight.mul_(0.9))
    torch.save({"dims": vars(pair.max.dims), "model_state_dict": pair.max.state_dict()}, path)
    saved = load_pair(path)
    assert_same_passes(saved.max, pair.torch)
    assert_same_passes(saved.torch, pair.torch)


# Weights that change under the graphs

PARAMETERS = [
    "encoder.conv1.weight",
    "encoder.conv2.bias",
    "encoder.positional_embedding",
    "encoder.ln_post.bias",
    "decoder.token_embedding.weight",
    "decoder.blocks.0.attn.query.bias",
    "decoder.blocks.1.cross_attn.value.weight",
]


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_weight_edited_in_place(pair: Pair, name: str) -> None:
    before = pair.torch(MEL, TOKENS)
    noise = torch.randn(pair.torch.state_dict()[name].shape, generator=torch.Generator().manual_seed(1))

    def edit(model: Whisper) -> None:
        dict([*model.named_parameters(), *model.named_buffers()])[name].add_(noise)

    change(pair, edit)
    assert_changed(pair.torch, before)
    assert_same_passes(pair.max, pair.torch)


@pytest.mark.parametrize("name", ["encoder.conv1.weight", "encoder.ln_post.weight", "decoder.ln.weight"])
def test_a_weight_edited_through_data(pair: Pair, name: str) -> None:
    before = pair.torch(MEL, TOKENS)
    change(
        pair, lambda model: model.get_parameter(name).data.mul_(torch.linspace(0.2, 2, 3 if "conv" in name else 128))
    )
    assert_changed(pair.torch, before)
    assert_same_passes(pair.max, pair.torch)


@pytest.mark.parametrize("name", ["encoder.conv1.weight", "encoder.ln_post.weight", "decoder.ln.weight"])
def test_a_parameter_that_is_replaced(pair: Pair, name: str) -> None:
    before = pair.torch(MEL, TOKENS)
    module_name, _, attribute = name.rpartition(".")

    def edit(model: Whisper) -> None:
        module = model.get_submodule(module_name)
        factors = torch.linspace(0.2, 2, getattr(module, attribute).shape[-1])
        setattr(module, attribute, nn.Parameter(getattr(module, attribute) * factors))

    change(pair, edit)
    assert_changed(pair.torch, before)
    assert_same_passes(pair.max, pair.torch)


def test_weights_edited_between_two_files_change_the_transcript_of_the_second(pair: Pair) -> None:
    options = whisper.DecodingOptions(language="en", fp16=False, sample_len=6)
    assert pair.max.decode(MEL[0], options).tokens == pair.torch.decode(MEL[0], options).tokens
    change(
        pair, lambda model: model.decoder.token_embedding.weight.copy_(model.decoder.token_embedding.weight.roll(1, 0))
    )
    assert pair.max.decode(MEL[0], options).tokens == pair.torch.decode(MEL[0], options).tokens


# Modules that are replaced


class Wrapped(nn.Module):
    """A module around another one, as adapters and quantisers make it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * 2


@pytest.mark.parametrize(
    ("parent", "child"), [("decoder.blocks.0.mlp", "0"), ("encoder.blocks.1.attn", "query"), ("encoder", "conv2")]
)
@pytest.mark.falls_back
def test_a_model_with_a_wrapped_module_runs_on_torch_and_says_why(pair: Pair, parent: str, child: str) -> None:
    holders = {model: model.get_submodule(parent) for model in (pair.max, pair.torch)}
    originals = {model: getattr(holder, child) for model, holder in holders.items()}
    for model, holder in holders.items():
        setattr(holder, child, Wrapped(originals[model]))
    before = whisper_max_plugin.status()["fallbacks"]
    assert_same_passes(pair.max, pair.torch)
    results = [model.transcribe(str(SAMPLE), language="en", temperature=0.0) for model in (pair.max, pair.torch)]
    assert_same_result(*results)
    reasons = whisper_max_plugin.status()["fallbacks"].keys() - before.keys()
    assert reasons
    for reason in reasons:
        assert "parameters that are not Whisper's any more: " in reason
        assert f"missing {parent}.{child}.weight" in reason or f"missing {parent}.{child}.bias" in reason

    for model, holder in holders.items():
        setattr(holder, child, originals[model])
    assert_same_passes(pair.max, pair.torch)


def test_a_decoder_of_upstreams_in_the_place_of_its_own(pair: Pair) -> None:
    pair.max.decoder = copy.deepcopy(pair.torch.decoder)
    assert pair.max.device == pair.torch.device
    assert_same_passes(pair.max, pair.torch)
    results = [model.transcribe(str(SAMPLE), language="en", temperature=0.0) for model in (pair.max, pair.torch)]
    assert_same_result(*results)


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda model: setattr(model.decoder.blocks[0].mlp, "1", nn.ReLU()), id="activation replaced"),
        pytest.param(lambda model: setattr(model.encoder.blocks[0], "mlp", nn.Sequential(*[nn.ReLU()] * 3)), id="mlp"),
        pytest.param(lambda model: setattr(model.encoder.ln_post, "eps", 1.0), id="eps"),
        pytest.param(
            lambda model: setattr(model.decoder.blocks[0].mlp, "forward", lambda x: x * 0), id="forward patched"
        ),
    ],
)
@pytest.mark.falls_back
def test_another_computation_with_the_same_tensors_is_obeyed_or_refused(
    pair: Pair, edit: Callable[[Whisper], object]
) -> None:
    before = pair.torch(MEL, TOKENS)
    change(pair, edit)
    assert_changed(pair.torch, before)
    try:
        actual = pair.max(MEL, TOKENS)
    except RuntimeError as error:
        assert_one_sentence(error)
    else:
        assert_close(actual, pair.torch(MEL, TOKENS))


# Copies and pickles


def test_a_deep_copy_computes_the_same_and_compiles_nothing(nano: Pair) -> None:
    compiled = whisper_max_plugin.status()["compile_seconds"]
    copied = copy.deepcopy(nano.max)
    assert type(copied) is type(nano.max)
    assert list(copied.state_dict()) == list(nano.torch.state_dict())
    assert_same_passes(copied, nano.torch)
    assert_same_passes(copy.deepcopy(copied), nano.torch)
    assert whisper_max_plugin.status()["compile_seconds"] == compiled


@pytest.mark.parametrize("name", ["encoder.conv1.weight", "decoder.token_embedding.weight"])
def test_a_deep_copy_is_independent(pair: Pair, name: str) -> None:
    reference = pair.torch(MEL, TOKENS)
    for ours, theirs in ((pair.max, pair.torch), (copy.deepcopy(pair.max), copy.deepcopy(pair.torch))):
        copied = copy.deepcopy(ours)
        copied.get_parameter(name).mul_(0.5)
        assert_close(ours(MEL, TOKENS), reference)
        changed = copy.deepcopy(theirs)
        changed.get_parameter(name).mul_(0.5)
        assert_same_passes(copied, changed)
        del ours, copied
    pair.max.get_parameter(name).zero_()


def test_a_copy_outlives_the_original(pair: Pair) -> None:
    pair.max(MEL, TOKENS)
    copied = copy.deepcopy(pair.max)
    theirs = pair.torch
    del pair
    assert_same_passes(copied, theirs)


def test_an_encoder_alone_can_be_copied(nano: Pair) -> None:
    assert_close(copy.deepcopy(nano.max.encoder)(MEL), nano.torch.encoder(MEL))


def test_pickled_and_unpickled_in_this_process(nano: Pair) -> None:
    nano.max(MEL, TOKENS)
    unpickled = pickle.loads(pickle.dumps(nano.max))
    assert type(unpickled) is type(nano.max)
    assert_same_passes(unpickled, nano.torch)

    buffer = io.BytesIO()
    torch.save(nano.max, buffer)
    buffer.seek(0)
    assert_same_passes(torch.load(buffer, weights_only=False), nano.torch)


def test_a_pickle_is_no_larger_than_upstreams(nano: Pair) -> None:
    nano.max(MEL, TOKENS)
    assert len(pickle.dumps(nano.max)) < 1.01 * len(pickle.dumps(nano.torch))


def test_unpickled_in_another_process(nano: Pair, tmp_path: Path) -> None:
    torch.save((pickle.dumps(nano.max), MEL, TOKENS), tmp_path / "in.pt")
    code = """
        import pickle, sys, torch
        pickled, mel, tokens = torch.load(sys.argv[1])
        model = pickle.loads(pickled)
        with torch.no_grad():
            logits = model(mel, tokens)
        import whisper_max_plugin
        torch.save((logits, whisper_max_plugin.status()), sys.argv[2])
    """
    lines = [line.removeprefix(" " * 8) for line in code.splitlines()]
    command = [sys.executable, "-c", "\n".join(lines), str(tmp_path / "in.pt"), str(tmp_path / "out.pt")]
    subprocess.run(command, check=True, timeout=120)
    logits, status = torch.load(tmp_path / "out.pt")
    assert_close(logits, nano.torch(MEL, TOKENS))
    assert status["graph_runs"] == {"encoder": 1, "cross_kv": 1, "prefill": 1}
    assert status["fallbacks"] == {}
