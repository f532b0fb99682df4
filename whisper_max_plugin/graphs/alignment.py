"""The graphs behind word timestamps: what upstream's ``find_alignment`` computes of logits and of attention."""

from __future__ import annotations

from max.dtype import DType
from max.graph import BufferType, DeviceRef, Graph, KernelLibrary, Module, TensorType, ops
from whisper.model import ModelDimensions

from whisper_max_plugin.graphs.kernels import add_medians, head_weights, standardize, token_probs

MEDIAN_WIDTH = 7
"""Upstream's ``medfilt_width``, and ``TAPS`` in filtering.mojo."""


def build_alignment(module: Module, dims: ModelDimensions, device: DeviceRef, library: KernelLibrary) -> None:
    """Add the graph ``alignment`` to `module`: one layer's part of the matrix in which words are found.

    It mirrors ``whisper.timing.find_alignment`` from the softmax of the scores to ``weights.mean(axis=0)``, but that it
    adds. Where a frame has the same weight in all tokens the matrix has NaN.

    Inputs: matrix (n_tokens, n_frames), to which the filtered attention of each head is added, n_frames being more than
    `MEDIAN_WIDTH` // 2 and at most n_audio_ctx; scores (1, n_text_head, n_tokens, n_audio_ctx), as the graph
    ``cross_scores`` returns them; heads (n_heads) int64, those of the layer that tell the times of words.
    """
    input_types = [
        BufferType(DType.float32, ["n_tokens", "n_frames"], device),
        TensorType(DType.float32, [1, dims.n_text_head, "n_tokens", dims.n_audio_ctx], device),
        TensorType(DType.int64, ["n_heads"], device),
    ]
    with Graph("alignment", input_types=input_types, module=module, kernel_library=library) as graph:
        matrix = graph.inputs[0].buffer
        scores, heads = (value.tensor for value in graph.inputs[1:])
        add_medians(matrix, standardize(head_weights(scores, heads, matrix.shape[1])))
        graph.output()


def build_token_probs(module: Module, dims: ModelDimensions, device: DeviceRef, library: KernelLibrary) -> None:
    """Add the graph ``token_probs`` to `module`: how likely each token of a text was, of all tokens of text.

    Inputs: logits (1, n_rows, n_vocab); tokens (n_rows) int64, what follows each row; n_text () int32 on the host, the
    number of tokens that are text, upstream's ``tokenizer.eot``.
    Output: probs (n_rows).
    """
    input_types = [
        TensorType(DType.float32, [1, "n_rows", dims.n_vocab], device),
        TensorType(DType.int64, ["n_rows"], device),
        TensorType(DType.int32, [], DeviceRef.CPU()),
    ]
    with Graph("token_probs", input_types=input_types, module=module, kernel_library=library) as graph:
        logits, tokens, n_text = (value.tensor for value in graph.inputs)
        graph.output(token_probs(ops.squeeze(logits, 0), tokens, n_text))
