"""The search graph: upstream's logit filters, log-probabilities and ranking over the vocabulary."""

from __future__ import annotations

from max.dtype import DType
from max.graph import BufferType, DeviceRef, Graph, KernelLibrary, Module, TensorType
from whisper.model import ModelDimensions

from whisper_max_plugin.graphs.step_kernels import search


def build_search(module: Module, dims: ModelDimensions, device: DeviceRef, library: KernelLibrary) -> None:
    """Add the graph ``search`` to `module`: what a `DecodingTask` does with logits, as far as it is arithmetic.

    It mirrors ``SuppressTokens``, ``SuppressBlank`` and ``ApplyTimestampRules``, followed by a log-softmax and its k
    largest values, or by k samples of ``softmax(logits / temperature)``, of which ``GreedyDecoder`` takes one. What
    depends on the tokens so far comes in as four numbers for each sequence.

    Inputs
    ------
    ids (batch, k) int64 and logprobs (batch, k), which it writes, the best first; logits (batch, n_vocab), which it
    filters in place; suppressed (n_suppressed) int64, negative where there is none; ranges (batch, 4) int64, see
    `whisper_max_plugin.inference.search.Rules`; temperatures (batch) float32, above 0 for samples, and seeds (batch)
    int64, which say what samples.
    """
    input_types = [
        BufferType(DType.int64, ["batch", "k"], device),
        BufferType(DType.float32, ["batch", "k"], device),
        BufferType(DType.float32, ["batch", dims.n_vocab], device),
        TensorType(DType.int64, ["n_suppressed"], device),
        TensorType(DType.int64, ["batch", 4], device),
        TensorType(DType.float32, ["batch"], device),
        TensorType(DType.int64, ["batch"], device),
    ]

    with Graph("search", input_types=input_types, module=module, kernel_library=library) as graph:
        ids, logprobs, logits = (value.buffer for value in graph.inputs[:3])
        search(ids, logprobs, logits, *(value.tensor for value in graph.inputs[3:]))
        graph.output()
