"""What a checkpoint is: a model's dimensions, and exactly the tensors that Whisper has of these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor
from whisper.model import ModelDimensions

from whisper_max_plugin.errors import CheckpointError


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes
    ----------
    dims : ModelDimensions
    state : dict[str, Tensor]
        the tensors in the types they are stored in, by upstream's names
    alignment_heads : str | None
        what `Whisper.set_alignment_heads` takes; None where upstream's default holds
    """

    dims: ModelDimensions
    state: dict[str, Tensor]
    alignment_heads: str | None = None


def check_state(
    dims: ModelDimensions,
    state: Mapping[str, Tensor],
    *,
    source: str,
    described_by: str = "dimensions",
    renamed: Callable[[str], str] = str,
) -> None:
    """Check that `state` holds exactly the tensors of a Whisper model of `dims`.

    Parameters
    ----------
    dims : ModelDimensions
    state : Mapping[str, Tensor]
    source : str
        where the tensors come from, for the error
    described_by : str
        what of the source tells the dimensions, for the error
    renamed : Callable[[str], str]
        gives the name in `state` for one of upstream's

    Raises
    ------
    CheckpointError
        naming the tensors that are missing, unused or of the wrong shape
    """
    mismatch = f"the tensors in {source} are not those of its {described_by}"
    n_layer = dims.n_audio_layer + dims.n_text_layer
    if n_layer > len(state):  # before as many names are made
        raise CheckpointError(f"{mismatch}: {len(state)} tensors for {n_layer} layers")
    expected = {renamed(name): shape for name, shape in expected_shapes(dims).items()}
    faults = [f"missing {name}" for name in expected.keys() - state.keys()]
    faults += [f"unused {name}" for name in state.keys() - expected.keys()]
    faults += [
        f"{name} of shape {tuple(state[name].shape)} instead of {shape}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    if faults:
        shown = ", ".join(sorted(faults)[:5]) + (f" and {len(faults) - 5} more" if len(faults) > 5 else "")
        raise CheckpointError(f"{mismatch}: {shown}")


def expected_shapes(dims: ModelDimensions) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor in the state_dict of ``whisper.model.Whisper(dims)``, in its order.

    Written out, for building the model just to look at its shapes would take as long as loading it.
    """
    n_audio, n_text = dims.n_audio_state, dims.n_text_state
    shapes = {
        "encoder.positional_embedding": (dims.n_audio_ctx, n_audio),
        **_weight_and_bias("encoder.conv1", n_audio, dims.n_mels, 3),
        **_weight_and_bias("encoder.conv2", n_audio, n_audio, 3),
    }
    for layer in range(dims.n_audio_layer):
        shapes |= _block_shapes(f"encoder.blocks.{layer}", n_audio, ["attn"])
    shapes |= {
        **_weight_and_bias("encoder.ln_post", n_audio),
        "decoder.positional_embedding": (dims.n_text_ctx, n_text),
        "decoder.token_embedding.weight": (dims.n_vocab, n_text),
    }
    for layer in range(dims.n_text_layer):
        shapes |= _block_shapes(f"decoder.blocks.{layer}", n_text, ["attn", "cross_attn"])
    return shapes | _weight_and_bias("decoder.ln", n_text)


def _block_shapes(name: str, n_state: int, attentions: list[str]) -> dict[str, tuple[int, ...]]:
    """The tensors of a ``ResidualAttentionBlock``; the key projection of an attention has no bias."""
    shapes: dict[str, tuple[int, ...]] = {}
    for attention in attentions:
        shapes |= _weight_and_bias(f"{name}.{attention}.query", n_state, n_state)
        shapes[f"{name}.{attention}.key.weight"] = (n_state, n_state)
        for part in ("value", "out"):
            shapes |= _weight_and_bias(f"{name}.{attention}.{part}", n_state, n_state)
        shapes |= _weight_and_bias(f"{name}.{attention}_ln", n_state)
    return {
        **shapes,
        **_weight_and_bias(f"{name}.mlp.0", 4 * n_state, n_state),
        **_weight_and_bias(f"{name}.mlp.2", n_state, 4 * n_state),
        **_weight_and_bias(f"{name}.mlp_ln", n_state),
    }


def _weight_and_bias(name: str, n_out: int, *n_in: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (n_out, *n_in), f"{name}.bias": (n_out,)}
