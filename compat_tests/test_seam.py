"""Below `decode()` too, an accelerated model is upstream's: forward passes, kv_cache, hooks, dtypes, threads.

Upstream's model runs beside ours with the same calls. Only tests marked `falls_back` may run on torch.
"""

from __future__ import annotations

import base64
import gzip
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import whisper
import whisper.model
from torch import Tensor, nn
from whisper.decoding import DecodingOptions, DecodingTask, PyTorchInference
from whisper.model import Whisper

import whisper_max_plugin
from whisper_max_plugin.audio import load_audio
from whisper_max_plugin.report import FallbackError

from .compare import assert_close, assert_same_decoding, relative_error
from .conftest import Pair, load_pair, random_checkpoint
from .data import SAMPLE
from .errors import assert_one_sentence, assert_same_error

Cache = Any  # upstream's is a dict
TOKENS = torch.tensor([[50258, 50259, 50359, 50364, 440, 1331, 587, 1866]])  # <|sot|><|en|><|transcribe|><|0.00|> …
FEATURES_PASS = ["encoder.conv1", "encoder.blocks.0", "encoder.blocks.1.attn.query", "encoder.ln_post"]
DECODER_PASS = ["decoder.token_embedding", "decoder.blocks.0.mlp", "decoder.blocks.1.attn.key", "decoder.ln"]


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def mels() -> Tensor:
    """Three windows of the sample recording, shape = (3, 80, 3000)."""
    mel = whisper.log_mel_spectrogram(load_audio(SAMPLE))
    return torch.stack([whisper.pad_or_trim(mel[:, start:], 3000) for start in (0, 500, 1000)])


@pytest.fixture(scope="module")
def mel(mels: Tensor) -> Tensor:
    """One window, shape = (1, 80, 3000)."""
    return mels[:1]


@pytest.fixture
def features(nano: Pair, mel: Tensor) -> Tensor:
    """The encoded window, shape = (1, 1500, 128)."""
    return nano.torch.encoder(mel)


@pytest.fixture
def features_of_three(nano: Pair, mels: Tensor) -> Tensor:
    """The encoded windows, shape = (3, 1500, 128)."""
    return nano.torch.encoder(mels)


@pytest.fixture
def fallbacks(nano: Pair) -> Callable[[], dict[str, int]]:
    """Return the fallbacks that were counted since the test began."""
    before = whisper_max_plugin.status()["fallbacks"]

    def since() -> dict[str, int]:
        after = whisper_max_plugin.status()["fallbacks"]
        return {reason: n - before.get(reason, 0) for reason, n in after.items() if n > before.get(reason, 0)}

    return since


def graph_runs(kind: str) -> int:
    return whisper_max_plugin.status()["graph_runs"].get(kind, 0)


# The object


def test_the_model_is_a_whisper_model_of_the_same_kind(nano: Pair) -> None:
    ours, theirs = nano.max, nano.torch
    assert isinstance(ours, Whisper)
    assert isinstance(ours.encoder, whisper.model.AudioEncoder)
    assert isinstance(ours.decoder, whisper.model.TextDecoder)
    assert ours.dims == theirs.dims
    assert ours.device == theirs.device == torch.device("cpu")
    assert ours.is_multilingual == theirs.is_multilingual
    if hasattr(theirs, "num_languages"):
        assert ours.num_languages == theirs.num_languages
    assert torch.equal(ours.alignment_heads.to_dense(), theirs.alignment_heads.to_dense())
    assert [name for name, _ in ours.named_modules()] == [name for name, _ in theirs.named_modules()]


def test_alignment_heads_are_set_as_upstream_sets_them(nano: Pair) -> None:
    original = nano.max.alignment_heads
    dump = base64.b85encode(gzip.compress(bytes([1, 0, 0, 1])))
    try:
        nano.max.set_alignment_heads(dump)
        assert nano.max.alignment_heads.indices().tolist() == [[0, 1], [0, 1]]
    finally:
        nano.max.register_buffer("alignment_heads", original, persistent=False)


# Forward passes without a cache


def test_the_passes_of_one_window(nano: Pair, mel: Tensor, features: Tensor) -> None:
    assert_close(nano.max.embed_audio(mel), features)
    assert_close(nano.max.encoder(mel), features)
    expected = nano.torch.decoder(TOKENS, features)
    assert_close(nano.max.logits(TOKENS, features), expected)
    assert_close(nano.max.decoder(TOKENS, features), expected)
    assert_close(nano.max(mel, TOKENS), nano.torch(mel, TOKENS))


def test_five_sequences_on_one_window(nano: Pair, features: Tensor) -> None:
    tokens = TOKENS.repeat(5, 1)
    tokens[:, 4] += torch.arange(5)
    assert_close(nano.max.logits(tokens, features), nano.torch.logits(tokens, features))


def test_one_sequence_on_three_windows(nano: Pair, features_of_three: Tensor) -> None:
    actual = nano.max.logits(TOKENS, features_of_three)
    assert actual.shape[:2] == (3, TOKENS.shape[1])
    assert_close(actual, nano.torch.logits(TOKENS, features_of_three))


def test_fifteen_sequences_on_three_windows_are_upstreams_error(nano: Pair, features_of_three: Tensor) -> None:
    tokens = TOKENS.repeat(15, 1)
    assert_same_error(
        lambda: nano.max.logits(tokens, features_of_three), lambda: nano.torch.logits(tokens, features_of_three)
    )


def test_tokens_may_be_int32_and_not_contiguous(nano: Pair, features: Tensor) -> None:
    expected = nano.torch.logits(TOKENS, features)
    assert_close(nano.max.logits(TOKENS.int(), features), expected)
    every_other = torch.stack([TOKENS, TOKENS + 1], dim=-1).flatten(1)[:, ::2]
    assert_close(nano.max.logits(every_other, features), expected)


def test_features_and_mels_may_be_views(nano: Pair, mels: Tensor, features_of_three: Tensor) -> None:
    transposed = mels.transpose(1, 2).contiguous().transpose(1, 2)
    assert_close(nano.max.encoder(transposed), features_of_three)
    assert_close(nano.max.encoder(mels.flip(0)[1:2]), features_of_three[1:2])
    assert_close(nano.max.logits(TOKENS, features_of_three[2:]), nano.torch.logits(TOKENS, features_of_three[2:]))


def test_inference_mode(nano: Pair, mel: Tensor, features: Tensor) -> None:
    expected = nano.torch.logits(TOKENS, features)
    with torch.inference_mode():
        inside = nano.max.encoder(mel + 0)
        assert_close(nano.max.logits(TOKENS, inside), expected)
    assert_close(nano.max.encoder(mel), features)
    assert_close(nano.max.logits(TOKENS, inside), expected)


def test_the_same_window_is_encoded_once_and_a_changed_one_again(nano: Pair, mel: Tensor) -> None:
    changing = mel.clone()
    nano.max.encoder(changing)
    runs, saved = graph_runs("encoder"), whisper_max_plugin.status()["encoder_runs_saved"]
    nano.max.detect_language(changing)
    nano.max.decode(changing, DecodingOptions(language="en", fp16=False, sample_len=3))
    nano.max.decode(changing, DecodingOptions(language="en", fp16=False, sample_len=3, temperature=0.4))
    assert graph_runs("encoder") == runs
    assert whisper_max_plugin.status()["encoder_runs_saved"] == saved + 3

    changing[..., 10:20] -= 0.5
    assert_close(nano.max.encoder(changing), nano.torch.encoder(changing))
    assert graph_runs("encoder") == runs + 1


# kv_cache


def with_cache(model: Whisper, chunks: Sequence[Tensor], features: Tensor, cache: Cache = None) -> list[Any]:
    """Give the decoder one chunk of tokens after another; return each one's logits, and the cache at last."""
    cache, hooks = model.install_kv_cache_hooks(cache)
    try:
        return [*(model.decoder(chunk, features, kv_cache=cache) for chunk in chunks), cache]
    finally:
        for hook in hooks:
            hook.remove()


def entries(model: Whisper, cache: Mapping[nn.Module, Tensor], kind: str = "attn") -> dict[str, Tensor]:
    """Return the entries of `cache` by the names of the modules, of all modules whose name contains `kind`."""
    names = {module: name for name, module in model.decoder.named_modules()}
    return {names[module]: value for module, value in cache.items() if kind in names[module]}


def assert_same_cache(nano: Pair, ours: Cache, theirs: Cache) -> None:
    actual, expected = entries(nano.max, ours), entries(nano.torch, theirs)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(actual[name], value)


def test_step_by_step(nano: Pair, features: Tensor) -> None:
    chunks = [TOKENS[:, :4], *TOKENS[:, 4:].split(1, dim=1)]
    *ours, our_cache = with_cache(nano.max, chunks, features)
    *theirs, their_cache = with_cache(nano.torch, chunks, features)
    for actual, expected in zip(ours, theirs, strict=True):
        assert_close(actual, expected)
    assert_same_cache(nano, our_cache, their_cache)


def test_several_tokens_after_the_first_pass_are_a_pass_without_cache(nano: Pair, features: Tensor) -> None:
    # Upstream cannot be the oracle: with more than one token its causal mask ignores those in the cache.
    first, second, _ = with_cache(nano.max, [TOKENS[:, :5], TOKENS[:, 5:]], features)
    assert_close(torch.cat([first, second], dim=1), nano.torch.logits(TOKENS, features))


def test_the_cache_is_a_mapping_from_projection_modules(nano: Pair, features: Tensor) -> None:
    empty, _ = nano.max.install_kv_cache_hooks()
    assert not empty
    assert len(empty) == 0
    *_, cache = with_cache(nano.max, [TOKENS[:, :4]], features)
    assert isinstance(cache, Mapping)
    blocks = nano.max.decoder.blocks
    attentions = [attention for block in blocks for attention in (block.attn, block.cross_attn)]
    assert set(cache) == {module for attention in attentions for module in (attention.key, attention.value)}
    assert next(iter(cache.values())).shape[1] == 4  # how upstream reads the number of tokens
    assert blocks[0].attn.key in cache
    assert blocks[0].mlp not in cache
    assert cache.get(blocks[0].mlp) is None


def in_all(kind: str, edit: Callable[[Tensor], Tensor]) -> Callable[[Whisper, Cache], None]:
    """Return a function that rewrites every entry of a cache whose module is of `kind`, as callers do."""

    def apply(model: Whisper, cache: Cache) -> None:
        modules = dict(model.decoder.named_modules())
        for name, value in entries(model, cache, kind).items():
            cache[modules[name]] = edit(value)

    return apply


REORDERED, PRUNED = [2, 0, 1], [2, 0]


@pytest.mark.parametrize(
    ("edit", "rows"),
    [
        pytest.param(in_all(".attn", lambda x: x[REORDERED].detach()), REORDERED, id="reorder"),
        pytest.param(in_all(".attn", lambda x: x[PRUNED]), PRUNED, id="prune"),
        pytest.param(in_all(".attn", lambda x: x[:1]), [0], id="one is left"),
        pytest.param(in_all(".attn", lambda x: x.repeat_interleave(2, dim=0)), [0, 0, 1, 1, 2, 2], id="fork"),
        pytest.param(in_all(".attn", lambda x: x[:, :-2]), [0, 1, 2], id="truncate"),
        pytest.param(in_all(".attn", torch.zeros_like), [0, 1, 2], id="clear"),
    ],
)
def test_writing_to_the_cache_of_three_sequences_on_one_window(
    nano: Pair, features: Tensor, edit: Callable[[Whisper, Cache], None], rows: list[int]
) -> None:
    tokens = TOKENS.repeat(3, 1)
    tokens[1:, 4:] += torch.tensor([[7], [70]])
    results = {}
    for model in (nano.max, nano.torch):
        _, cache = with_cache(model, [tokens[:, :7]], features)
        edit(model, cache)
        results[model] = with_cache(model, [tokens[rows, 7:], tokens[rows, :1]], features, cache)
    for actual, expected in zip(results[nano.max][:2], results[nano.torch][:2], strict=True):
        assert_close(actual, expected)
    assert_same_cache(nano, results[nano.max][2], results[nano.torch][2])


@pytest.mark.parametrize("rows", [REORDERED, PRUNED])
def test_writing_to_the_cache_of_three_windows(nano: Pair, features_of_three: Tensor, rows: list[int]) -> None:
    tokens = TOKENS.repeat(3, 1)
    results = {}
    for model in (nano.max, nano.torch):
        _, cache = with_cache(model, [tokens[:, :7]], features_of_three)
        in_all("attn", lambda x: x[rows])(model, cache)
        results[model] = with_cache(model, [tokens[rows, 7:]], features_of_three[rows], cache)
    assert_close(results[nano.max][0], results[nano.torch][0])
    assert_same_cache(nano, results[nano.max][1], results[nano.torch][1])


def test_writing_into_a_self_attention_entry_in_place(nano: Pair, features: Tensor) -> None:
    results = {}
    for model in (nano.max, nano.torch):
        _, cache = with_cache(model, [TOKENS[:, :7]], features)
        for value in entries(model, cache, ".attn").values():
            value[:, 3] = 0
        results[model] = with_cache(model, [TOKENS[:, 7:]], features, cache)[0]
    assert_close(results[nano.max], results[nano.torch])


def test_what_was_read_from_the_cache_stays_as_it_was(nano: Pair, features: Tensor) -> None:
    *_, cache = with_cache(nano.max, [TOKENS[:, :7]], features)
    read = entries(nano.max, cache)
    copies = {name: value.clone() for name, value in read.items()}
    nano.max.decoder(TOKENS[:, 7:], features, kv_cache=cache)
    in_all(".attn", lambda x: x.flip(1))(nano.max, cache)
    for name, value in read.items():
        assert torch.equal(value, copies[name]), name


def test_a_cache_can_be_branched(nano: Pair, features: Tensor) -> None:
    for model in (nano.max, nano.torch):
        first, cache = with_cache(model, [TOKENS[:, :6]], features)
        branch, branched = with_cache(model, [TOKENS[:, 6:7]], features, cache)
        other, _ = with_cache(model, [TOKENS[:, 7:8]], features, dict(cache))
        assert next(iter(cache.values())).shape[1] == 6
        assert next(iter(branched.values())).shape[1] == 7
        if model is nano.max:
            ours = first, branch, other
    for actual, expected in zip(ours, (first, branch, other), strict=True):
        assert_close(actual, expected)


def test_entries_of_different_lengths_are_refused(nano: Pair, features: Tensor) -> None:
    *_, cache = with_cache(nano.max, [TOKENS[:, :4]], features)
    cache[nano.max.decoder.blocks[0].attn.key] = cache[nano.max.decoder.blocks[0].attn.key][:, :2]
    with pytest.raises(RuntimeError, match="entries differ in length") as error:
        nano.max.decoder(TOKENS[:, 4:5], features, kv_cache=cache)
    assert_one_sentence(error.value)


def test_another_batch_than_the_caches_is_refused(nano: Pair, features: Tensor) -> None:
    *_, cache = with_cache(nano.max, [TOKENS[:, :4].repeat(3, 1)], features)
    with pytest.raises(RuntimeError, match="holds 3 sequences, but 2 were given") as error:
        nano.max.decoder(TOKENS[:, 4:5].repeat(2, 1), features, kv_cache=cache)
    assert_one_sentence(error.value)
    assert next(iter(cache.values())).shape[1] == 4


def test_upstreams_inference_reorders_beams(nano: Pair, features: Tensor) -> None:
    tokens = TOKENS.repeat(3, 1)
    tokens[:, 6] += torch.arange(3)
    results = {}
    for model in (nano.max, nano.torch):
        inference = PyTorchInference(model, initial_token_length=7)
        first = inference.logits(tokens[:, :7], features)
        inference.rearrange_kv_cache(REORDERED)
        results[model] = first, inference.logits(tokens, features)
        inference.cleanup_caching()
    for actual, expected in zip(results[nano.max], results[nano.torch], strict=True):
        assert_close(actual, expected)


@pytest.mark.falls_back
def test_a_plain_dict_in_place_of_the_cache_is_declared(
    nano: Pair, features: Tensor, fallbacks: Callable[[], dict[str, int]]
) -> None:
    results = {}
    for model in (nano.max, nano.torch):
        _, cache = with_cache(model, [TOKENS[:, :4]], features)
        results[model] = model.decoder(TOKENS[:, 4:5], features, kv_cache=dict(cache))
    assert_close(results[nano.max], results[nano.torch])
    assert fallbacks() == {"a kv_cache that this model's install_kv_cache_hooks did not make": 1}


# decode() below and beside the method

DECODINGS = [{}, {"beam_size": 3, "patience": 2.0}, {"temperature": 0.7, "best_of": 3}, {"task": "lang_id"}]


@pytest.mark.parametrize("options", DECODINGS, ids=str)
def test_upstreams_function_and_task_run_the_model(nano: Pair, mel: Tensor, options: dict[str, Any]) -> None:
    options = {"fp16": False, "sample_len": 12, **options}

    def seeded(decode: Callable[[], Any]) -> Any:
        torch.manual_seed(3)
        return decode()

    expected = seeded(lambda: nano.torch.decode(mel[0], **options))
    assert_same_decoding(seeded(lambda: whisper.decode(nano.max, mel[0], **options)), expected)
    task = DecodingTask(nano.max, DecodingOptions(**options))
    assert_same_decoding(seeded(lambda: task.run(mel))[0], expected)
    assert_same_decoding(seeded(lambda: nano.max.decode(mel, DecodingOptions(**options)))[0], expected)
    assert_same_decoding(seeded(lambda: whisper.decoding.decode(nano.max, mel[0], **options)), expected)


# Hooks on cross_attn: word timestamps, as upstream and others compute them, read scores so


def without_sdpa() -> AbstractContextManager[None]:
    """Return upstream's `disable_sdpa()`, under which attention returns its scores; older versions always do."""
    return getattr(whisper.model, "disable_sdpa", nullcontext)()


def record_cross_attention(model: Whisper, call: Callable[[], object]) -> list[tuple[Any, Any]]:
    """Return what the hooks of each layer's cross_attn got during `call`: (ins, outs)."""
    calls: list[tuple[Any, Any]] = []
    hooks = [
        block.cross_attn.register_forward_hook(lambda _, ins, outs: calls.append((ins, outs)))
        for block in model.decoder.blocks
    ]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def assert_same_calls(ours: list[tuple[Any, Any]], theirs: list[tuple[Any, Any]]) -> None:
    assert len(ours) == len(theirs) > 0
    for (ins, outs), (expected_ins, expected_outs) in zip(ours, theirs, strict=True):
        assert type(outs) is type(expected_outs)
        for actual, expected in zip((*ins, *outs), (*expected_ins, *expected_outs), strict=True):
            if expected is None:
                assert actual is None
            else:
                assert_close(actual, expected)


@pytest.mark.parametrize("context", [without_sdpa, nullcontext])
@pytest.mark.parametrize("n_sequences", [1, 3])
def test_hooks_on_cross_attention_get_what_upstreams_get(
    nano: Pair, features: Tensor, context: Callable[[], AbstractContextManager[None]], n_sequences: int
) -> None:
    tokens = TOKENS.repeat(n_sequences, 1)
    with context():
        ours = record_cross_attention(nano.max, lambda: nano.max.logits(tokens, features))
        theirs = record_cross_attention(nano.torch, lambda: nano.torch.logits(tokens, features))
    assert_same_calls(ours, theirs)
    scores_wanted = context is without_sdpa or not hasattr(whisper.model, "disable_sdpa")
    assert all((outs[-1] is not None) == scores_wanted for _, outs in ours)


def test_hooks_on_cross_attention_of_three_windows(nano: Pair, features_of_three: Tensor) -> None:
    tokens = TOKENS.repeat(3, 1)
    with without_sdpa():
        ours = record_cross_attention(nano.max, lambda: nano.max.logits(tokens, features_of_three))
        theirs = record_cross_attention(nano.torch, lambda: nano.torch.logits(tokens, features_of_three))
    assert_same_calls(ours, theirs)


def test_hooks_on_cross_attention_during_cached_steps(nano: Pair, features: Tensor) -> None:
    chunks = [TOKENS[:, :4], TOKENS[:, 4:5], TOKENS[:, 5:6]]
    with without_sdpa():
        ours = record_cross_attention(nano.max, lambda: with_cache(nano.max, chunks, features))
        theirs = record_cross_attention(nano.torch, lambda: with_cache(nano.torch, chunks, features))
    assert_same_calls(ours, theirs)


def test_hooks_on_cross_attention_during_beam_search(nano: Pair, mel: Tensor) -> None:
    def call(model: Whisper) -> Callable[[], object]:
        return lambda: DecodingTask(model, options).run(mel)

    options = DecodingOptions(language="en", fp16=False, beam_size=2, sample_len=4)
    ours = record_cross_attention(nano.max, call(nano.max))
    theirs = record_cross_attention(nano.torch, call(nano.torch))
    assert_same_calls(ours, theirs)


def test_a_hook_on_one_layer_only_and_removed_again(nano: Pair, features: Tensor) -> None:
    calls: list[Any] = []
    hook = nano.max.decoder.blocks[1].cross_attn.register_forward_hook(lambda *args: calls.append(args))
    nano.max.logits(TOKENS, features)
    hook.remove()
    nano.max.logits(TOKENS, features)
    ((module, _, _),) = calls
    assert module is nano.max.decoder.blocks[1].cross_attn


@pytest.mark.parametrize(
    "replace",
    [
        pytest.param(lambda module, ins, outs: (outs[0] * 0, outs[1]), id="returned"),
        pytest.param(lambda module, ins, outs: outs[0].mul_(0) is None or None, id="written in place"),
    ],
)
def test_a_hook_that_replaces_the_output_is_refused(
    nano: Pair, features: Tensor, replace: Callable[..., object]
) -> None:
    expected = nano.torch.logits(TOKENS, features)
    hook = nano.max.decoder.blocks[0].cross_attn.register_forward_hook(replace)
    try:
        with pytest.raises(RuntimeError, match="replaced the output") as error:
            nano.max.logits(TOKENS[:, :1], features)
    finally:
        hook.remove()
    assert_one_sentence(error.value, "decoder.blocks.0.cross_attn", 'backend="torch"')
    assert_close(nano.max.logits(TOKENS, features), expected)


def test_an_error_in_a_hook_passes_through(nano: Pair, features: Tensor) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("the hook's own")

    hook = nano.max.decoder.blocks[0].cross_attn.register_forward_hook(fail)
    try:
        with pytest.raises(ZeroDivisionError, match="the hook's own"):
            nano.max.logits(TOKENS, features)
    finally:
        hook.remove()
    assert_close(nano.max.logits(TOKENS, features), nano.torch.logits(TOKENS, features))


# Hooks elsewhere: what graphs do not compute, torch computes, and says so


def record_outputs(model: Whisper, name: str, call: Callable[[], object]) -> list[Any]:
    """Return the result of `call`, then the outputs of the module `name` during it."""
    outputs: list[Any] = []
    hook = model.get_submodule(name).register_forward_hook(lambda _, ins, out: outputs.append(out))
    try:
        return [call(), *outputs]
    finally:
        hook.remove()


@pytest.mark.falls_back
@pytest.mark.parametrize("name", [*FEATURES_PASS, *DECODER_PASS])
def test_a_hook_inside_a_graph_is_a_declared_fallback(
    nano: Pair, mel: Tensor, name: str, fallbacks: Callable[[], dict[str, int]]
) -> None:
    theirs = record_outputs(nano.torch, name, lambda: nano.torch(mel, TOKENS))
    ours = record_outputs(nano.max, name, lambda: nano.max(mel, TOKENS))
    assert len(ours) == len(theirs) == 2
    for actual, expected in zip(ours, theirs, strict=True):
        if isinstance(expected, Tensor):
            assert_close(actual, expected)
    ((reason, count),) = fallbacks().items()
    assert count == 1
    part, _, inner = name.partition(".")
    assert f"{part} modules with hooks or changes that graphs do not follow" in reason
    assert ".".join("*" if level.isdigit() else level for level in inner.split(".")) in reason

    assert_close(nano.max(mel, TOKENS), theirs[0])  # without the hook, on graphs again
    assert fallbacks() == {reason: 1}


@pytest.mark.falls_back
@pytest.mark.parametrize("name", ["encoder.ln_post", "decoder.blocks.1.cross_attn", "decoder.ln"])
def test_a_pre_hook_that_changes_the_input_is_obeyed(
    nano: Pair, mel: Tensor, name: str, fallbacks: Callable[[], dict[str, int]]
) -> None:
    results = {}
    for model in (nano.max, nano.torch):
        hook = model.get_submodule(name).register_forward_pre_hook(lambda _, ins: (ins[0] * 0.5, *ins[1:]))
        results[model] = model(mel, TOKENS)
        hook.remove()
    assert_close(results[nano.max], results[nano.torch])
    assert sum(fallbacks().values()) == 1


@pytest.mark.falls_back
def test_a_hook_that_changes_an_output_is_obeyed(nano: Pair, mel: Tensor) -> None:
    results = {}
    for model in (nano.max, nano.torch):
        hook = model.decoder.blocks[0].mlp.register_forward_hook(lambda _, ins, out: out * 0.5)
        results[model] = model(mel, TOKENS)
        hook.remove()
    assert_close(results[nano.max], results[nano.torch])


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_hooks_on_encoder_and_decoder_themselves_need_no_fallback(nano: Pair, mel: Tensor, name: str) -> None:
    theirs = record_outputs(nano.torch, name, lambda: nano.torch(mel, TOKENS))
    ours = record_outputs(nano.max, name, lambda: nano.max(mel, TOKENS))
    for actual, expected in zip(ours, theirs, strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("name", ["encoder.conv1", "decoder.ln"])
def test_strict_refuses_the_fallback_before_torch_computes(
    nano: Pair, mel: Tensor, name: str, monkeypatch: pytest.MonkeyPatch, fallbacks: Callable[[], dict[str, int]]
) -> None:
    monkeypatch.setenv("WHISPER_MAX_STRICT", "1")
    with pytest.raises(FallbackError, match="unset WHISPER_MAX_STRICT") as error:
        record_outputs(nano.max, name, lambda: nano.max(mel, TOKENS))
    assert_one_sentence(error.value, name.partition(".")[2])
    assert fallbacks() == {}
    assert nano.max(mel, TOKENS) is not None


def test_strict_leaves_the_cache_as_it_was(nano: Pair, features: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = with_cache(nano.torch, [TOKENS[:, :6], TOKENS[:, 6:7]], features)
    *_, cache = with_cache(nano.max, [TOKENS[:, :6]], features)
    monkeypatch.setenv("WHISPER_MAX_STRICT", "1")
    with pytest.raises(FallbackError):
        record_outputs(nano.max, "decoder.ln", lambda: nano.max.decoder(TOKENS[:, 6:7], features, kv_cache=cache))
    assert next(iter(cache.values())).shape[1] == 6
    assert_close(nano.max.decoder(TOKENS[:, 6:7], features, kv_cache=cache), expected[1])


@pytest.mark.falls_back
@pytest.mark.parametrize("hooked_steps", [{0}, {1}, {2}, {0, 1}, {1, 2, 3}])
@pytest.mark.parametrize("n_sequences", [1, 3])
def test_a_fallback_in_the_middle_of_cached_decoding_keeps_the_cache(
    nano: Pair, features: Tensor, hooked_steps: set[int], n_sequences: int
) -> None:
    tokens = TOKENS.repeat(n_sequences, 1)
    chunks = [tokens[:, :4], *tokens[:, 4:].split(1, dim=1)]
    *theirs, their_cache = with_cache(nano.torch, chunks, features)
    cache, _ = nano.max.install_kv_cache_hooks()
    for index, (chunk, expected) in enumerate(zip(chunks, theirs, strict=True)):
        if index in hooked_steps:
            hook = nano.max.decoder.ln.register_forward_hook(lambda *_: None)
        assert_close(nano.max.decoder(chunk, features, kv_cache=cache), expected)
        if index in hooked_steps:
            hook.remove()
    assert_same_cache(nano, cache, their_cache)


@pytest.mark.falls_back
@pytest.mark.parametrize("options", DECODINGS[:3], ids=str)
def test_decoding_with_a_hook_gives_upstreams_tokens(nano: Pair, mel: Tensor, options: dict[str, Any]) -> None:
    options = {"fp16": False, "sample_len": 8, "language": "en", **options}
    torch.manual_seed(3)
    expected = nano.torch.decode(mel[0], **options)
    torch.manual_seed(3)
    assert_same_decoding(
        record_outputs(nano.max, "decoder.ln", lambda: nano.max.decode(mel[0], **options))[0], expected
    )


@pytest.mark.falls_back
def test_features_of_another_length_are_a_declared_fallback(
    nano: Pair, features: Tensor, fallbacks: Callable[[], dict[str, int]]
) -> None:
    assert_close(nano.max.logits(TOKENS, features[:, :700]), nano.torch.logits(TOKENS, features[:, :700]))
    assert sum(fallbacks().values()) == 1


# Other dtypes


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2), (torch.float64, 1e-4)])
def test_features_have_the_dtype_of_the_mel(nano: Pair, mel: Tensor, dtype: torch.dtype, error: float) -> None:
    rounded = mel.to(dtype)
    features = nano.max.encoder(rounded)
    assert features.dtype == dtype
    assert relative_error(features.float(), nano.torch.encoder(rounded.float())) < error


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_are_float32_whatever_the_features_are(nano: Pair, features: Tensor, dtype: torch.dtype) -> None:
    rounded = features.to(dtype)
    # Upstream rounds every activation to the dtype, graphs compute in float32: that is what is compared.
    assert_close(nano.max.logits(TOKENS, rounded), nano.torch.logits(TOKENS, rounded.float()))


def test_decoding_in_half_precision_returns_half_features(nano: Pair, mel: Tensor) -> None:
    ours = nano.max.decode(mel[0], DecodingOptions(language="en", fp16=True, sample_len=5))
    theirs = nano.torch.decode(mel[0].half().float(), DecodingOptions(language="en", fp16=False, sample_len=5))
    assert ours.audio_features.dtype == torch.float16
    assert ours.tokens == theirs.tokens


# Results belong to the caller


def test_writing_to_results_does_not_change_later_ones(nano: Pair, mel: Tensor) -> None:
    expected_features, expected = nano.torch.encoder(mel), nano.torch(mel, TOKENS)
    for _ in range(3):
        features = nano.max.encoder(mel)
        assert_close(features, expected_features)
        logits = nano.max.logits(TOKENS, features)
        assert_close(logits, expected)
        logits.fill_(torch.nan)
        features.fill_(torch.nan)


def test_results_outlive_later_calls(nano: Pair, mels: Tensor, features_of_three: Tensor) -> None:
    logits = [nano.max.logits(TOKENS, window[None]) for window in features_of_three]
    features = [nano.max.encoder(mel[None]) for mel in mels]
    for index in range(3):
        assert_close(features[index], features_of_three[index : index + 1])
        assert_close(logits[index], nano.torch.logits(TOKENS, features_of_three[index : index + 1]))


def test_writing_to_what_a_hook_saw_does_not_change_later_results(nano: Pair, features: Tensor) -> None:
    expected = nano.torch.logits(TOKENS, features)
    with without_sdpa():
        for ins, outs in record_cross_attention(nano.max, lambda: nano.max.logits(TOKENS, features)):
            for tensor in (ins[0], *outs):
                tensor.fill_(torch.nan)
    assert_close(nano.max.logits(TOKENS, features), expected)


def test_writing_to_cross_attention_entries_does_not_change_another_cache(nano: Pair, features: Tensor) -> None:
    expected = nano.torch.logits(TOKENS, features)
    *_, cache = with_cache(nano.max, [TOKENS[:, :4]], features)
    for value in entries(nano.max, cache, "cross_attn").values():
        value.fill_(torch.nan)
    assert_close(nano.max.logits(TOKENS, features), expected)


# Threads


@pytest.fixture(scope="module")
def other(nano: Pair, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Other weights of the same dimensions."""
    return load_pair(random_checkpoint(tmp_path_factory.mktemp("weights") / "other.pt", nano.max.dims, seed=1))


def in_two_threads(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run two calls at once; return their results."""
    start = threading.Barrier(2)

    def run(call: Callable[[], Any]) -> Any:
        start.wait()
        with torch.no_grad():
            return call()

    with ThreadPoolExecutor(2) as pool:
        return [future.result() for future in [pool.submit(run, call) for call in calls]]


def test_two_models_in_two_threads(nano: Pair, other: Pair, mels: Tensor) -> None:
    def passes(model: Whisper) -> list[Tensor]:
        return [model(mel[None], TOKENS) for mel in mels for _ in range(3)]

    expected = [passes(nano.torch), passes(other.torch)]
    for actual, wanted in zip(
        in_two_threads([lambda: passes(nano.max), lambda: passes(other.max)]), expected, strict=True
    ):
        for logits, wanted_logits in zip(actual, wanted, strict=True):
            assert_close(logits, wanted_logits)


def test_one_model_in_two_threads(nano: Pair, mels: Tensor) -> None:
    options = DecodingOptions(language="en", fp16=False, sample_len=12)

    def decodings(model: Whisper, windows: Sequence[int]) -> list[Any]:
        return [model.decode(mels[window], options) for window in windows]

    orders = [(0, 1, 2), (2, 1, 0)]
    expected = [decodings(nano.torch, order) for order in orders]
    actual = in_two_threads([lambda: decodings(nano.max, orders[0]), lambda: decodings(nano.max, orders[1])])
    for results, wanted in zip(actual, expected, strict=True):
        for result, wanted_result in zip(results, wanted, strict=True):
            assert_same_decoding(result, wanted_result)


def test_one_model_from_a_thread_that_did_not_load_it(nano: Pair, mel: Tensor, tmp_path: Path) -> None:
    fresh = load_pair(random_checkpoint(tmp_path / "fresh.pt", nano.max.dims, seed=2))
    both = in_two_threads([lambda: fresh.max(mel, TOKENS), lambda: fresh.max(mel, TOKENS)])
    for logits in both:
        assert_close(logits, fresh.torch(mel, TOKENS))
