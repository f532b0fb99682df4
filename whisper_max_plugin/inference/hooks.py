"""Forward hooks inside a model whose passes are graphs: which ones are run, and which call for torch instead."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch.nn.functional as F
import torch.nn.modules.module
import whisper.model
from torch import Tensor, nn
from whisper.model import (
    AudioEncoder,
    Conv1d,
    LayerNorm,
    Linear,
    MultiHeadAttention,
    ResidualAttentionBlock,
    TextDecoder,
)

from whisper_max_plugin import patches
from whisper_max_plugin.graphs.layers import LAYER_NORM_EPS

# what upstream builds encoder and decoder from; graphs compute these, with their default settings
_UPSTREAMS_MODULES = {
    ResidualAttentionBlock,
    MultiHeadAttention,
    LayerNorm,
    Linear,
    Conv1d,
    nn.Embedding,
    nn.GELU,
    nn.Sequential,
    nn.ModuleList,
}

# upstream's code that graphs stand for
_MIRRORED = (
    (AudioEncoder, "forward"),
    (TextDecoder, "forward"),
    (ResidualAttentionBlock, "forward"),
    (MultiHeadAttention, "forward"),
    (MultiHeadAttention, "qkv_attention"),
    (LayerNorm, "forward"),
    (Linear, "forward"),
    (Conv1d, "_conv_forward"),
)
_CONVOLUTION = {"padding_mode": "zeros", "padding": (1,), "dilation": (1,), "groups": 1}


def run_forward_hooks(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any, **kwargs: Any) -> None:
    """Call `module` as in a torch pass, for the sake of its forward hooks: its output is given.

    Raises
    ------
    RuntimeError
        if a hook replaced the output or wrote to it, since the graph goes on with its own
    """
    used: Tensor = output[0] if isinstance(output, tuple) else output  # attention returns its scores as well
    version = _version(used)
    module.forward = lambda *_, **__: output
    try:
        result = module(*inputs, **kwargs)
    finally:
        del module.forward
    if result is not output or _version(used) != version:
        raise RuntimeError(
            f"a forward hook on {name} replaced the output, which a compiled graph cannot take: "
            'load the model with backend="torch"'
        )


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


def why_foreign(root: nn.Module, part: str, observed: Collection[nn.Module], n_head: int) -> str | None:
    """Say what in `root`, or in upstream's code, a graph would not do justice to; None if there is nothing.

    These are modules with hooks, except forward hooks on the `observed` ones, which are run; modules of another class
    than upstream's; modules with a `forward` or a setting of their own, such as another `n_head`; hooks on all modules
    of the process; and what somebody has put in the place of upstream's code. Hooks on `root` run in any case.
    """
    if has_global_hooks():
        return "hooks on all modules, which graphs do not run"
    replaced = [
        f"{cls.__name__}.{name}"
        for cls, name in _MIRRORED
        if not patches.is_defined_in(getattr(cls, name), whisper.model)
    ]
    if getattr(whisper.model, "scaled_dot_product_attention", None) not in (None, F.scaled_dot_product_attention):
        replaced.append("scaled_dot_product_attention")
    if replaced:
        return f"code of whisper.model that was replaced: {', '.join(replaced)}"
    inside = [(name, module) for name, module in root.named_modules() if module is not root]
    names = [name for name, module in inside if has_hooks(module, observed) or _is_changed(name, module, n_head)]
    # one of each kind: "blocks.*.attn" for all of them
    kinds = {".".join("*" if word.isdigit() else word for word in name.split(".")) for name in names}
    if not kinds:
        return None
    return f"{part} modules with hooks or changes that graphs do not follow: {', '.join(sorted(kinds))}"


def has_hooks(module: nn.Module, observed: Collection[nn.Module]) -> bool:
    """Tell whether `module` has hooks that a graph cannot run."""
    return bool(
        (module._forward_hooks and module not in observed)
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def has_global_hooks() -> bool:
    """Tell whether there are hooks on all modules of the process."""
    return bool(torch.nn.modules.module._has_any_global_hook())  # type: ignore[no-untyped-call]


def _is_changed(name: str, module: nn.Module, n_head: int) -> bool:
    if isinstance(module, nn.Conv1d):
        settings = {**_CONVOLUTION, "stride": (2,) if name == "conv2" else (1,)}
        if any(getattr(module, setting) != value for setting, value in settings.items()):
            return True
    return (
        type(module) not in _UPSTREAMS_MODULES
        or "forward" in vars(module)
        or (isinstance(module, MultiHeadAttention) and module.n_head != n_head)
        or (isinstance(module, nn.LayerNorm) and module.eps != LAYER_NORM_EPS)
        or (isinstance(module, nn.GELU) and module.approximate != "none")
    )
