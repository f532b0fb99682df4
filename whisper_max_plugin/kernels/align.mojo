"""What words' times and probabilities are made of: upstream's ``find_alignment``, as far as it is arithmetic."""

import extensibility
from extensibility import InputTensor, OutputTensor
from extensibility import _MutableInputTensor as MutableInputTensor
from max.gpu.host import DeviceContext
from std.math import ceildiv, exp

from .filtering import MARGIN, TAPS, median, reflected, standardize_columns
from .gpu_align import add_medians_on_gpu, head_weights_on_gpu, standardize_on_gpu, token_probs_on_gpu
from .search import largest, sum_of_exp
from .sharing import share
from .vectors import Float, WIDTH

comptime COLUMNS = 4 * WIDTH  # of a task: frames that are standardized


@always_inline
def softmax_row(y: Pointer[mut=True, Float, ...], x: Pointer[Float, ...], n: Int):
    """Write the softmax of n values."""
    var top = largest(x, 0, n)
    var scale = 1 / sum_of_exp(x, 0, n, top)
    var vector_end = n // WIDTH * WIDTH
    for i in range(0, vector_end, WIDTH):
        y.unsafe_store(i, exp(x.unsafe_load[width=WIDTH](i) - top) * scale)
    for i in range(vector_end, n):
        y[unsafe_offset=i] = exp(x[unsafe_offset=i] - top) * scale


@always_inline
def add_medians_of_row(
    y: Pointer[mut=True, Float, ...], x: Pointer[Float, ...], padded: Pointer[mut=True, Float, ...], n_frames: Int
):
    """Add to y the medians along x, of more than `MARGIN` frames; padded (n_frames + 2 * MARGIN) is written to."""
    for i in range(n_frames):
        padded[unsafe_offset = MARGIN + i] = x[unsafe_offset=i]
    comptime for i in range(1, MARGIN + 1):
        padded[unsafe_offset = MARGIN - i] = x[unsafe_offset = reflected(-i, n_frames)]
        padded[unsafe_offset = MARGIN + n_frames - 1 + i] = x[unsafe_offset = reflected(n_frames - 1 + i, n_frames)]

    @always_inline
    def add[width: Int](frame: Int) {imm}:
        var neighbours = Array[SIMD[DType.float32, width], TAPS](fill=SIMD[DType.float32, width](0))
        comptime for i in range(TAPS):
            neighbours[i] = padded.unsafe_load[width=width](frame + i)
        y.unsafe_store(frame, y.unsafe_load[width=width](frame) + median[width](neighbours^))

    var vector_end = n_frames // WIDTH * WIDTH
    for frame in range(0, vector_end, WIDTH):
        add[WIDTH](frame)
    for frame in range(vector_end, n_frames):
        add[1](frame)


@extensibility.register("whisper_token_probs")
struct TokenProbs:
    """The probability of one token in each row of logits, among those of text.

    probs (m); logits (m, n_vocab); tokens (m), below n_text, the number of tokens of text
    """

    @staticmethod
    def execute[
        target: StaticString
    ](
        probs: OutputTensor[dtype=DType.float32, rank=1, ...],
        logits: InputTensor[dtype=DType.float32, rank=2, ...],
        tokens: InputTensor[dtype=DType.int64, rank=1, ...],
        n_text: Scalar[DType.int32],
        ctx: DeviceContext,
    ) raises:
        var m = logits.dim_size(0)
        var n_vocab = logits.dim_size(1)
        var n = Int(n_text)
        var pp = probs.unsafe_ptr()
        var lp = logits.unsafe_ptr()
        var tp = tokens.unsafe_ptr()

        comptime if target == "cpu":

            def work(row: Int) raises {imm}:
                var of_row = lp.unsafe_offset(row * n_vocab)
                var top = largest(of_row, 0, n)
                var chosen = of_row[unsafe_offset = Int(tp[unsafe_offset=row])]
                pp[unsafe_offset=row] = exp(chosen - top) / sum_of_exp(of_row, 0, n, top)

            share(work, m)
        else:
            token_probs_on_gpu(pp, lp, tp, m, n_vocab, n, ctx)


@extensibility.register("whisper_head_weights")
struct HeadWeights:
    """The attention of some heads: the softmax of the scores of a window's first frames.

    weights (k, n_tokens, n_frames); scores (1, n_head, n_tokens, n_audio_ctx); heads (k)
    """

    @staticmethod
    def execute[
        target: StaticString
    ](
        weights: OutputTensor[dtype=DType.float32, rank=3, ...],
        scores: InputTensor[dtype=DType.float32, rank=4, ...],
        heads: InputTensor[dtype=DType.int64, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        var k = weights.dim_size(0)
        var n_tokens = weights.dim_size(1)
        var n_frames = weights.dim_size(2)
        var n_audio_ctx = scores.dim_size(3)
        var wp = weights.unsafe_ptr()
        var sp = scores.unsafe_ptr()
        var hp = heads.unsafe_ptr()

        comptime if target == "cpu":

            def work(row: Int) raises {imm}:
                var head = Int(hp[unsafe_offset = row // n_tokens])
                var source = (head * n_tokens + row % n_tokens) * n_audio_ctx
                softmax_row(wp.unsafe_offset(row * n_frames), sp.unsafe_offset(source), n_frames)

            share(work, k * n_tokens)
        else:
            head_weights_on_gpu(wp, sp, hp, k, n_tokens, n_frames, n_audio_ctx, ctx)


@extensibility.register("whisper_standardize")
struct Standardize:
    """What each token adds to what all tokens attend to: y and x (k, n_tokens, n_frames), standardized over tokens."""

    @staticmethod
    def execute[
        target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=3, ...],
        x: InputTensor[dtype=DType.float32, rank=3, ...],
        ctx: DeviceContext,
    ) raises:
        var k = x.dim_size(0)
        var n_tokens = x.dim_size(1)
        var n_frames = x.dim_size(2)
        var yp = y.unsafe_ptr()
        var xp = x.unsafe_ptr()

        comptime if target == "cpu":
            var n_blocks = ceildiv(n_frames, COLUMNS)

            def work(task: Int) raises {imm}:
                var of_head = task // n_blocks * n_tokens * n_frames
                var first = task % n_blocks * COLUMNS
                var last = min(n_frames, first + COLUMNS)
                var vector_end = first + (last - first) // WIDTH * WIDTH
                for frame in range(first, vector_end, WIDTH):
                    var at = of_head + frame
                    standardize_columns[WIDTH](yp.unsafe_offset(at), xp.unsafe_offset(at), n_tokens, n_frames)
                for frame in range(vector_end, last):
                    var at = of_head + frame
                    standardize_columns[1](yp.unsafe_offset(at), xp.unsafe_offset(at), n_tokens, n_frames)

            share(work, k * n_blocks)
        else:
            standardize_on_gpu(yp, xp, k, n_tokens, n_frames, ctx)


@extensibility.register("whisper_add_medians")
struct AddMedians:
    """Add to a matrix (n_tokens, n_frames) the medians along the frames of x (k, n_tokens, n_frames), of each head."""

    @staticmethod
    def execute[
        target: StaticString
    ](
        matrix: MutableInputTensor[dtype=DType.float32, rank=2, ...],
        x: InputTensor[dtype=DType.float32, rank=3, ...],
        ctx: DeviceContext,
    ) raises:
        var k = x.dim_size(0)
        var n_tokens = x.dim_size(1)
        var n_frames = x.dim_size(2)
        var mp = matrix.unsafe_ptr()
        var xp = x.unsafe_ptr()

        comptime if target == "cpu":

            def work(token: Int) raises {imm}:
                var padded = List[Float](unsafe_uninit_length=n_frames + 2 * MARGIN)
                for head in range(k):
                    var source = xp.unsafe_offset((head * n_tokens + token) * n_frames)
                    add_medians_of_row(
                        mp.unsafe_offset(token * n_frames), source, padded.unsafe_ptr(), n_frames
                    )
                _ = padded^

            share(work, n_tokens)
        else:
            add_medians_on_gpu(mp, xp, k, n_tokens, n_frames, ctx)
