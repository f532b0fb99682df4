"""The parts of a model that are measured one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from whisper_max_plugin.bench import cost

if TYPE_CHECKING:
    from whisper.model import ModelDimensions

    from whisper_max_plugin.bench.cost import Cost, Storage

PROMPT_LENGTH = 200  # tokens of text before the window
BEAM_SIZE = 5

TITLES = {
    "mel": "mel of 30 s",
    "encoder": "encoder, 30 s",
    "cross_kv": "cross-attention K, V",
    "prefill": f"first pass, {PROMPT_LENGTH}-token prompt",
    "step": "greedy step",
    "beam_step": f"beam-{BEAM_SIZE} step",
    "alignment": "word alignment",
}


def title(stage: str, n_tokens: int) -> str:
    """Return what a table calls `stage`."""
    return f"{TITLES[stage]}, {n_tokens} tokens" if stage == "alignment" else TITLES[stage]


def cost_of(stage: str, dims: ModelDimensions, storage: Storage, n_tokens: int, n_start: int) -> Cost:
    """Return what `stage` must move and compute at least.

    Parameters
    ----------
    stage : str
        one of `TITLES`
    n_tokens : int
        the decoding steps that are averaged over, or the tokens to be aligned
    n_start : int
        special tokens that a text starts with, ``<|notimestamps|>`` included
    """
    if stage == "mel":
        return cost.of_mel(dims)
    if stage == "encoder":
        return cost.of_encoder(dims, storage)
    if stage == "cross_kv":
        return cost.of_cross_kv(dims, storage)
    if stage == "prefill":  # of a window that is new; upstream reads the logits of two rows
        n_prompt = 1 + PROMPT_LENGTH + n_start
        return cost.of_cross_kv(dims, storage) + cost.of_pass(dims, storage, n_prompt, n_rows=2)
    if stage == "alignment":
        n_aligned = n_start + n_tokens + 1
        return cost.of_pass(dims, storage, n_aligned, n_rows=n_aligned)
    n_beams = {"step": 1, "beam_step": BEAM_SIZE}[stage]
    return cost.of_step(dims, storage, n_start + (n_tokens + 1) / 2, n_beams)
