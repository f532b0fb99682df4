"""What ``whisper-max doctor --parity`` computes with each of the two models: eight results of the same window.

Each function gets what upstream's model has computed so far, and takes its input from there: so an error shows where it
arises, and one token that differs does not change those behind it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import whisper
import whisper.model
import whisper.timing
from torch import Tensor
from whisper.decoding import GreedyDecoder, Inference, PyTorchInference
from whisper.model import ModelDimensions, Whisper
from whisper.tokenizer import get_tokenizer

from whisper_max_plugin.errors import CheckpointError
from whisper_max_plugin.execution.step_inputs import NO_TOKEN, SearchInputs, SearchKind
from whisper_max_plugin.graphs.alignment import MEDIAN_WIDTH
from whisper_max_plugin.inference.decoding import MaxInference
from whisper_max_plugin.inference.model import MaxWhisper
from whisper_max_plugin.inference.search import Rules, Search

N_PROMPT = 200  # tokens, like the text before a window
N_STEPS = 20
N_BEAM, N_PASSES = 5, 8
TEMPERATURES = 0.0, 1e-6  # with hardly any heat samples are the best tokens, by the code that takes samples
BEAM_SOURCES = [1, 1, 4, 0, 2]  # which beam each one continues after a pass: one ends, one is continued twice
N_ALIGNED = 32  # tokens

Results = dict[str, list[Tensor]]
"""What upstream's model has computed so far, by the functions' names."""


@dataclass(frozen=True)
class Window:
    """What is computed from.

    Attributes
    ----------
    samples : Tensor, shape = (480000,)
    mel : Tensor, shape = (1, n_mels, 2 * n_audio_ctx)
    prompt : Tensor, shape = (1, N_PROMPT), int64
        text of a window before, and the sot sequence
    sot : Tensor, shape = (1, n_tokens), int64
        the sot sequence alone
    n_text : int
        tokens below this one are text
    """

    samples: Tensor
    mel: Tensor
    prompt: Tensor
    sot: Tensor
    n_text: int

    def best(self, logits: Tensor, k: int = 1) -> Tensor:
        """Return the best `k` text tokens, shape = (batch, k), for logits (batch, n_vocab)."""
        return logits[:, : self.n_text].topk(k).indices


def synthetic_audio() -> Tensor:
    """Return 30 s of noise and tone bursts, shape = (480000,), the same on every machine but for rounding."""
    generator = torch.Generator().manual_seed(0)
    n_samples, n_bursts = whisper.audio.N_SAMPLES, 60
    seconds = torch.arange(n_samples) / whisper.audio.SAMPLE_RATE
    pitches = 100 + 3900 * torch.rand(n_bursts, generator=generator)  # Hz
    volume = 0.3 * (2 * math.pi * seconds).sin().clamp(min=0)
    tones = volume * (2 * math.pi * pitches.repeat_interleave(n_samples // n_bursts) * seconds).sin()
    return tones + 0.02 * torch.randn(n_samples, generator=generator)


def prepare(model: Whisper, samples: Tensor) -> Window:
    """Make the window for `model` of samples (n_samples,), 16 kHz, of which the first 30 s are used.

    Raises
    ------
    CheckpointError
        if the model's dimensions are such that upstream itself cannot transcribe with it
    """
    dims: ModelDimensions = model.dims
    if dims.n_mels not in (80, 128) or dims.n_vocab < 51864 or dims.n_text_ctx < N_PROMPT + N_STEPS:
        raise CheckpointError(
            f"the model has {dims.n_mels} mels, {dims.n_vocab} tokens and room for {dims.n_text_ctx}, but upstream's "
            f"transcribe() needs 80 or 128 mels and 51864 tokens, and this check room for {N_PROMPT + N_STEPS}"
        )
    samples = whisper.pad_or_trim(samples)
    mel = whisper.pad_or_trim(whisper.log_mel_spectrogram(samples, dims.n_mels), 2 * dims.n_audio_ctx)[None]
    tokenizer = get_tokenizer(
        model.is_multilingual, num_languages=model.num_languages, language="en", task="transcribe"
    )
    sot = torch.tensor([tokenizer.sot_sequence_including_notimestamps])
    # from the whole vocabulary, so that every part of the token table is read
    n_before = N_PROMPT - 1 - sot.shape[1]
    before = torch.randint(tokenizer.eot, (1, n_before), generator=torch.Generator().manual_seed(0))
    prompt = torch.cat([torch.tensor([[tokenizer.sot_prev]]), before, sot], dim=1)
    return Window(samples, mel, prompt, sot, tokenizer.eot)


def mel(model: Whisper, window: Window, upstreams: Results) -> list[Tensor]:
    """Return the log-mel spectrogram (n_mels, 3000).

    Raises
    ------
    ValueError
        if the graph takes finite samples for others
    """
    if not isinstance(model, MaxWhisper):
        return [whisper.log_mel_spectrogram(window.samples, model.dims.n_mels)]
    mel = model.decoder.runtime.engine().log_mel(window.samples, padding=0)
    if mel is None:
        raise ValueError("the graph says that samples are not finite, and they are")
    return [mel]


def encoder(model: Whisper, window: Window, upstreams: Results) -> list[Tensor]:
    """Return audio_features (1, n_audio_ctx, n_audio_state)."""
    return [model.encoder(window.mel)]


def prefill(model: Whisper, window: Window, upstreams: Results) -> list[Tensor]:
    """Return logits of all tokens of the prompt, (1, N_PROMPT, n_vocab)."""
    return [model.decoder(window.prompt, upstreams["encoder"][0])]


def steps(model: Whisper, window: Window, upstreams: Results) -> list[Tensor]:
    """Return logits (1, n_vocab) of each cached greedy step behind the prompt."""
    features = upstreams["encoder"][0]
    logits: list[Tensor] = []
    choices = upstreams.get("steps", logits)  # upstream itself goes on with what it has just chosen
    cache, hooks = model.install_kv_cache_hooks()
    try:
        model.decoder(window.prompt, features, kv_cache=cache)
        token = window.best(upstreams["prefill"][0][:, -1])
        for step in range(N_STEPS):
            logits.append(model.decoder(token, features, kv_cache=cache)[:, -1])
            token = window.best(choices[step])
    finally:
        for hook in hooks:
            hook.remove()
    return logits


def beams(model: Whisper, window: Window, upstreams: Results) -> list[Tensor]:
    """Return logits (N_BEAM, n_vocab) of each pass of a search in which beams change places."""
    features = upstreams["encoder"][0]
    n_tokens = window.sot.shape[1]
    inference: Inference = (
        MaxInference(model, n_tokens, sot_index=0, n_group=N_BEAM)
        if isinstance(model, MaxWhisper)
        else PyTorchInference(model, n_tokens)
    )
    logits: list[Tensor] = []
    choices = upstreams.get("beams", logits)
    tokens = window.sot.expand(N_BEAM, -1)
    try:
        for step in range(N_PASSES):
            logits.append(inference.logits(tokens, features)[:, -1])
            inference.rearrange_kv_cache(BEAM_SOURCES)
            ranking = window.best(choices[step][BEAM_SOURCES], k=N_BEAM)
            # beam i goes on with its i-th best token, so that beams differ
            tokens = torch.cat([tokens[BEAM_SOURCES], ranking.diagonal()[:, None]], dim=1)
    finally:
        inference.cleanup_caching()
    return logits


def alignment(model: Whisper, window: Window, upstreams: Results) -> list[Tensor]:
    """Return each layer's cross-attention scores before the softmax, (1, n_text_head, N_ALIGNED, n_audio_ctx)."""
    scores: list[Tensor] = []
    hooks = [
        block.cross_attn.register_forward_hook(lambda module, args, output: scores.append(output[-1]))
        for block in model.decoder.blocks
    ]
    # With SDPA there are no scores; upstream's word timestamps switch it off alike. Versions before 20240927 have none.
    without_sdpa = getattr(whisper.model, "disable_sdpa", contextlib.nullcontext)
    try:
        with without_sdpa():
            model.decoder(window.prompt[:, -N_ALIGNED:], upstreams["encoder"][0])
    finally:
        for hook in hooks:
            hook.remove()
    return scores


def words(model: Whisper, window: Window, upstreams: Results) -> list[Tensor]:
    """Return what ``whisper.timing.find_alignment`` makes of logits and scores, here those that upstream has computed.

    The probabilities (N_PROMPT - 1) of the prompt's tokens of text, and the matrix (N_ALIGNED, n_audio_ctx) in which
    their words are looked for, of all heads.
    """
    logits, scores = upstreams["prefill"][0][:, :-1], upstreams["alignment"]
    tokens = window.prompt[0, 1:].clamp(max=window.n_text - 1)
    if not isinstance(model, MaxWhisper):
        probs = logits[0, :, : window.n_text].softmax(dim=-1)
        weights = torch.cat(scores).flatten(0, 1).softmax(dim=-1)
        std, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
        filtered = whisper.timing.median_filter((weights - mean) / std, MEDIAN_WIDTH)
        return [probs.gather(1, tokens[:, None])[:, 0], filtered.sum(dim=0)]
    engine = model.decoder.runtime.engine()
    attended = ((engine.device.put(of_layer), range(model.dims.n_text_head)) for of_layer in scores)
    probs = engine.token_probs(engine.device.put(logits), tokens.tolist(), window.n_text)
    return [probs, engine.align(attended, N_ALIGNED, model.dims.n_audio_ctx)]


def ranking(model: Whisper, window: Window, upstreams: Results) -> list[Tensor]:
    """Return the log-probabilities (1, N_BEAM) of the best tokens of each step in `steps`, without special ones.

    From graphs, two for each step and temperature: what they say, and what upstream says of the tokens that they found.
    """
    results: list[Tensor] = []
    suppressed = list(range(window.n_text, model.dims.n_vocab))
    for logits in upstreams["steps"]:
        logprobs = logits.clone()
        logprobs[:, suppressed] = -torch.inf
        logprobs = logprobs.log_softmax(dim=-1)
        if not isinstance(model, MaxWhisper):
            results += [logprobs.topk(N_BEAM).values] * 2 * len(TEMPERATURES)
            continue
        engine = model.decoder.runtime.engine()
        kind = SearchKind.of_any_token(model.dims.n_vocab, N_BEAM, suppressed)
        for temperature in TEMPERATURES:
            found = SearchInputs(engine.device, 1, model.dims.n_text_ctx, kind)
            found.temperatures.array[:] = temperature
            engine.search(engine.device.put(logits.clone()), found, found.suppressed)
            found.pull()
            results += [torch.from_numpy(found.logprobs.array), logprobs.gather(1, torch.from_numpy(found.ids.array))]
    return results


def greedy(model: MaxWhisper, window: Window, upstreams: Results, n_ahead: int) -> list[int]:
    """Return the tokens of N_STEPS steps, of which `n_ahead` at a time run without the host."""
    features = upstreams["encoder"][0]
    with greedy_search(model, window, features) as (inference, search):
        search.n_ahead = n_ahead
        n_left = N_STEPS
        while n_left > 0:
            n_left -= inference.step(search, features, n_left)
        return search.sequences[0]


@contextlib.contextmanager
def greedy_search(model: MaxWhisper, window: Window, features: Tensor) -> Iterator[tuple[MaxInference, Search]]:
    """Yield a search that has found its first token, and what takes its steps, inside; no token ends it."""
    rules = Rules(model.dims.n_vocab, window.sot.shape[1], [], [], timestamps=None)
    inference = MaxInference(model, window.sot.shape[1], sot_index=0, n_group=1)
    try:
        logits = inference.logits(window.sot, features)[:, -1]
        search = Search(inference.engine, rules, GreedyDecoder(0.0, eot=NO_TOKEN), window.sot)
        search.update(inference.engine.device.put(logits))
        yield inference, search
    finally:
        inference.cleanup_caching()
