"""Forward hooks inside a model whose passes are graphs: which ones are run, and which call for torch instead."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import whisper.model
from torch import Tensor, nn
from whisper.model import MultiHeadAttention

from whisper_max_plugin.graphs.layers import LAYER_NORM_EPS

# what upstream builds encoder and decoder from; graphs compute these, with their default settings
_UPSTREAMS_MODULES = {
    whisper.model.ResidualAttentionBlock,
    MultiHeadAttention,
    whisper.model.LayerNorm,
    whisper.model.Linear,
    whisper.model.Conv1d,
    nn.Embedding,
    nn.GELU,
    nn.Sequential,
    nn.ModuleList,
}


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


def why_foreign(root: nn.Module, part: str, observed: Collection[nn.Module]) -> str | None:
    """Say which modules inside `root` a graph would not do justice to; None if there are none.

    These are modules with hooks, except forward hooks on the `observed` ones, which are run; modules of another class
    than upstream's; and modules with a `forward` or a setting of their own. Hooks on `root` run in any case.
    """
    inside = [(name, module) for name, module in root.named_modules() if module is not root]
    names = [name for name, module in inside if has_hooks(module, observed) or _is_changed(module)]
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


def _is_changed(module: nn.Module) -> bool:
    return (
        type(module) not in _UPSTREAMS_MODULES
        or "forward" in vars(module)
        or (isinstance(module, nn.LayerNorm) and module.eps != LAYER_NORM_EPS)
        or (isinstance(module, nn.GELU) and module.approximate != "none")
    )
