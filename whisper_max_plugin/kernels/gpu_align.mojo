"""The alignment of words on a GPU: the probability of tokens, and the attention of some heads over a window."""

from max.gpu import block_idx, thread_idx
from max.gpu.host import DeviceContext
from std.math import ceildiv, exp

from .filtering import MARGIN, TAPS, median, reflected, standardize_columns
from .gpu_search import LOWEST, THREADS, reduce_block
from .vectors import Float


@always_inline
def token_probs_block(
    probs: Pointer[mut=True, Float, ...],
    logits: Pointer[mut=False, Float, ...],
    tokens: Pointer[mut=False, Int64, ...],
    n_vocab: Int,
    n_text: Int,
):
    """What the block of a row does, see `TokenProbs`."""
    var row = Int(block_idx.x)
    var of_row = logits.unsafe_offset(row * n_vocab)
    var top = top_of_block(of_row, n_text)
    var total = sum_of_block(of_row, n_text, top)
    if Int(thread_idx.x) == 0:
        probs[unsafe_offset=row] = exp(of_row[unsafe_offset = Int(tokens[unsafe_offset=row])] - top) / total


@always_inline
def head_weights_block(
    weights: Pointer[mut=True, Float, ...],
    scores: Pointer[mut=False, Float, ...],
    heads: Pointer[mut=False, Int64, ...],
    n_tokens: Int,
    n_frames: Int,
    n_audio_ctx: Int,
):
    """What the block of a token and a head does, see `HeadWeights`."""
    var token = Int(block_idx.x)
    var of_head = Int(block_idx.y)
    var source = scores.unsafe_offset((Int(heads[unsafe_offset=of_head]) * n_tokens + token) * n_audio_ctx)
    var top = top_of_block(source, n_frames)
    var scale = 1 / sum_of_block(source, n_frames, top)
    for frame in range(Int(thread_idx.x), n_frames, THREADS):
        var weight = exp(source[unsafe_offset=frame] - top) * scale
        weights[unsafe_offset = (of_head * n_tokens + token) * n_frames + frame] = weight


@always_inline
def top_of_block(x: Pointer[mut=False, Float, ...], n: Int) -> Float:
    """Return the largest of n values, to all threads of a block."""
    var found = LOWEST
    for i in range(Int(thread_idx.x), n, THREADS):
        found = max(found, x[unsafe_offset=i])
    return reduce_block["max"](found)


@always_inline
def sum_of_block(x: Pointer[mut=False, Float, ...], n: Int, top: Float) -> Float:
    """Return the sum of ``exp(x - top)`` over n values, to all threads of a block."""
    var total = Float(0)
    for i in range(Int(thread_idx.x), n, THREADS):
        total += exp(x[unsafe_offset=i] - top)
    return reduce_block["sum"](total)


@always_inline
def standardize_thread(
    y: Pointer[mut=True, Float, ...], x: Pointer[mut=False, Float, ...], n_tokens: Int, n_frames: Int
):
    """Standardize one frame of one head, see `Standardize`."""
    var frame = Int(block_idx.x) * THREADS + Int(thread_idx.x)
    if frame < n_frames:
        var at = Int(block_idx.y) * n_tokens * n_frames + frame
        standardize_columns[1](y.unsafe_offset(at), x.unsafe_offset(at), n_tokens, n_frames)


@always_inline
def add_medians_thread(
    matrix: Pointer[mut=True, Float, ...], x: Pointer[mut=False, Float, ...], k: Int, n_tokens: Int, n_frames: Int
):
    """Add the medians of all heads at one frame of one token, see `AddMedians`."""
    var frame = Int(block_idx.x) * THREADS + Int(thread_idx.x)
    var token = Int(block_idx.y)
    if frame >= n_frames:
        return
    var total = matrix[unsafe_offset = token * n_frames + frame]
    for head in range(k):
        var row = x.unsafe_offset((head * n_tokens + token) * n_frames)
        var neighbours = Array[SIMD[DType.float32, 1], TAPS](fill=Float(0))
        comptime for i in range(TAPS):
            neighbours[i] = row[unsafe_offset = reflected(frame + i - MARGIN, n_frames)]
        total += median[1](neighbours^)
    matrix[unsafe_offset = token * n_frames + frame] = total


@always_inline
def token_probs_on_gpu(
    probs: Pointer[mut=True, Float, ...],
    logits: Pointer[mut=False, Float, ...],
    tokens: Pointer[mut=False, Int64, ...],
    m: Int,
    n_vocab: Int,
    n_text: Int,
    ctx: DeviceContext,
) raises:
    """Launch `token_probs_block`."""
    var n_vocab_ = Int32(n_vocab)
    var n_text_ = Int32(n_text)

    def kernel() {var}:
        token_probs_block(probs, logits, tokens, Int(n_vocab_), Int(n_text_))

    ctx.enqueue_function(kernel, grid_dim=m, block_dim=THREADS)


@always_inline
def head_weights_on_gpu(
    weights: Pointer[mut=True, Float, ...],
    scores: Pointer[mut=False, Float, ...],
    heads: Pointer[mut=False, Int64, ...],
    k: Int,
    n_tokens: Int,
    n_frames: Int,
    n_audio_ctx: Int,
    ctx: DeviceContext,
) raises:
    """Launch `head_weights_block`."""
    var n_tokens_ = Int32(n_tokens)
    var n_frames_ = Int32(n_frames)
    var n_audio_ctx_ = Int32(n_audio_ctx)

    def kernel() {var}:
        head_weights_block(weights, scores, heads, Int(n_tokens_), Int(n_frames_), Int(n_audio_ctx_))

    ctx.enqueue_function(kernel, grid_dim=(n_tokens, k), block_dim=THREADS)


@always_inline
def standardize_on_gpu(
    y: Pointer[mut=True, Float, ...],
    x: Pointer[mut=False, Float, ...],
    k: Int,
    n_tokens: Int,
    n_frames: Int,
    ctx: DeviceContext,
) raises:
    """Launch `standardize_thread`."""
    var n_tokens_ = Int32(n_tokens)
    var n_frames_ = Int32(n_frames)

    def kernel() {var}:
        standardize_thread(y, x, Int(n_tokens_), Int(n_frames_))

    ctx.enqueue_function(kernel, grid_dim=(ceildiv(n_frames, THREADS), k), block_dim=THREADS)


@always_inline
def add_medians_on_gpu(
    matrix: Pointer[mut=True, Float, ...],
    x: Pointer[mut=False, Float, ...],
    k: Int,
    n_tokens: Int,
    n_frames: Int,
    ctx: DeviceContext,
) raises:
    """Launch `add_medians_thread`."""
    var k_ = Int32(k)
    var n_tokens_ = Int32(n_tokens)
    var n_frames_ = Int32(n_frames)

    def kernel() {var}:
        add_medians_thread(matrix, x, Int(k_), Int(n_tokens_), Int(n_frames_))

    ctx.enqueue_function(kernel, grid_dim=(ceildiv(n_frames, THREADS), n_tokens), block_dim=THREADS)
