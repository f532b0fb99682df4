"""The kernels for GPUs as functions of addresses and numbers of 32 bits: outputs, then inputs, then sizes.

The bodies are the ones that `gpu_*.mojo` launches.
"""

from kernels.follow import follow_block
from kernels.gemm import Source
from kernels.gpu_align import add_medians_thread, head_weights_block, standardize_thread, token_probs_block
from kernels.gpu_attention import cross_attention_block, merge_block, self_attention_block
from kernels.gpu_embed import embed_block
from kernels.gpu_flash import causal_block, flash_block, store_block
from kernels.gpu_gemm import gemm_block, scores_block
from kernels.gpu_linear import linear_warp
from kernels.gpu_search import search_merge_block, search_part_block
from kernels.gpu_tensor_flash import tensor_flash_block
from kernels.gpu_tensor_gemm import tensor_gemm_block
from kernels.gpu_tensor_linear import tensor_linear_block
from kernels.gpu_tensor_projections import Projection, projections_block
from kernels.memory import Places
from kernels.vectors import numbers, results

comptime In[type: DType] = Pointer[mut=False, Scalar[type], ImmutAnyOrigin]
comptime Out[type: DType] = Pointer[mut=True, Scalar[type], MutAnyOrigin]
comptime F32 = DType.float32
comptime I32 = DType.int32
comptime I64 = DType.int64


def embed[
    type: DType
](
    x: Out[F32],
    at: Out[I64],
    tokens: In[I64],
    positions: In[I64],
    token_embedding: In[type],
    positional_embedding: In[F32],
    n_state: Int32,
):
    embed_block(x, at, tokens, positions, token_embedding, positional_embedding, Int(n_state))


def linear[
    type: DType,
    of_x: DType,
    rows: Int,
    outputs: Int,
    has_norm: Bool = False,
    has_bias: Bool = False,
    has_residual: Bool = False,
    has_gelu: Bool = False,
    overlaps: Bool = True,
](
    y: Out[of_x],
    x: In[of_x],
    norm: In[F32],
    norm_bias: In[F32],
    w: In[type],
    bias: In[F32],
    residual: In[F32],
    m: Int32,
    n: Int32,
    k: Int32,
):
    linear_warp[rows, outputs, has_norm, has_bias, has_residual, has_gelu, overlaps](
        y, x, norm, norm_bias, w, bias, residual, Int(m), Int(n), Int(k)
    )


def tensor_linear[
    type: DType,
    of_x: DType,
    groups: Int = 1,
    warps: Int = 8,
    has_norm: Bool = False,
    has_bias: Bool = False,
    has_residual: Bool = False,
    has_gelu: Bool = False,
    overlaps: Bool = True,
](
    y: Out[of_x],
    x: In[of_x],
    norm: In[F32],
    norm_bias: In[F32],
    w: In[type],
    bias: In[F32],
    residual: In[F32],
    m: Int32,
    n: Int32,
    k: Int32,
):
    tensor_linear_block[groups, warps, has_norm, has_bias, has_residual, has_gelu, overlaps](
        y, x, norm, norm_bias, w, bias, residual, Int(m), Int(n), Int(k)
    )


def gemm[
    type: DType, taps: Int, side: Int, has_bias: Bool, has_gelu: Bool, has_residual: Bool
](
    y: Out[F32],
    x: In[F32],
    w: In[type],
    bias: In[F32],
    residual: In[F32],
    m: Int32,
    n: Int32,
    n_in: Int32,
    length: Int32,
    stride: Int32,
    length_out: Int32,
    head_dim: Int32,
):
    var source = Source(Int(n_in), Int(length), Int(stride), Int(length_out), Int(head_dim))
    gemm_block[taps, side, has_bias, has_gelu, has_residual](y, x, w, bias, residual, Int(m), Int(n), source)


def tensor_gemm[
    type: DType, out: DType, taps: Int, side: Int, has_bias: Bool, has_gelu: Bool, has_residual: Bool
](
    y: Out[out],
    x: In[type],
    w: In[type],
    bias: In[F32],
    residual: In[F32],
    m: Int32,
    n: Int32,
    n_in: Int32,
    length: Int32,
    stride: Int32,
    length_out: Int32,
    head_dim: Int32,
):
    var source = Source(Int(n_in), Int(length), Int(stride), Int(length_out), Int(head_dim))
    tensor_gemm_block[taps, side, has_bias, has_gelu, has_residual](
        y, x, w, bias, residual, Int(m), Int(n), source
    )


def projections[
    type: DType, side: Int
](
    q: Out[type],
    keys: Out[type],
    values: Out[type],
    x: In[type],
    q_weight: In[type],
    q_bias: In[F32],
    key_weight: In[type],
    key_bias: In[F32],
    value_weight: In[type],
    value_bias: In[F32],
    m: Int32,
    n: Int32,
    k: Int32,
    length: Int32,
    head_dim: Int32,
):
    projections_block[side](
        Projection(results(q), numbers(q_weight), numbers(q_bias), n),
        Projection(results(keys), numbers(key_weight), numbers(key_bias), head_dim),
        Projection(results(values), numbers(value_weight), numbers(value_bias), head_dim),
        x,
        Int(m),
        Int(n),
        Int(k),
        Int(length),
    )


def scores(y: Out[F32], q: In[F32], keys: In[F32], n_queries: Int32, n_keys: Int32, head_dim: Int32):
    scores_block[4](y, q, keys, Int(n_queries), Int(n_keys), Int(head_dim))


def self_attention[
    of_kv: DType, head_dim: Int
](
    y: Out[F32],
    qkv: In[F32],
    memory: In[I64],
    holders: In[I32],
    positions: In[I64],
    width: Int32,
    layer: Int32,
    n_group: Int32,
    n_text_ctx: Int32,
    n_state: Int32,
):
    var places = Places[of_kv](Int(width), Int(layer))
    self_attention_block[head_dim](
        y, qkv, memory, holders, positions, places, Int(n_group), Int(n_text_ctx), Int(n_state)
    )


def cross_attention[
    of_kv: DType, rows: Int, head_dim: Int
](
    parts: Out[F32],
    q: In[F32],
    memory: In[I64],
    width: Int32,
    layer: Int32,
    first_row: Int32,
    n_group: Int32,
    n_head: Int32,
    n_keys: Int32,
):
    var places = Places[of_kv](Int(width), Int(layer))
    cross_attention_block[rows, head_dim](
        parts, q, memory, places, Int(first_row), Int(n_group), Int(n_head), Int(n_keys)
    )


def merge[head_dim: Int](y: Out[F32], parts: In[F32], n_group: Int32, n_head: Int32, n_parts: Int32):
    merge_block[head_dim](y, parts, Int(n_group), Int(n_head), Int(n_parts))


def flash[
    head_dim: Int
](y: Out[F32], q: In[F32], keys: In[F32], values: In[F32], n_head: Int32, n_queries: Int32, n_keys: Int32):
    flash_block[head_dim](y, q, keys, values, Int(n_head), Int(n_queries), Int(n_keys))


def tensor_flash[
    type: DType
](y: Out[type], q: In[type], keys: In[type], values: In[type], n_head: Int32, n_queries: Int32, n_keys: Int32):
    tensor_flash_block[64](y, q, keys, values, Int(n_head), Int(n_queries), Int(n_keys))


def store[
    type: DType
](
    keys: Out[type],
    values: Out[type],
    qkv: In[type],
    n_before: Int32,
    batch: Int32,
    n_copies: Int32,
    n_tokens: Int32,
    n_state: Int32,
):
    store_block(qkv, keys, values, Int(n_before), Int(batch), Int(n_copies), Int(n_tokens), Int(n_state))


def causal[
    type: DType, head_dim: Int
](
    y: Out[type],
    qkv: In[type],
    keys: In[type],
    values: In[type],
    n_before: Int32,
    batch: Int32,
    n_copies: Int32,
    n_tokens: Int32,
    n_state: Int32,
):
    causal_block[head_dim](
        y, qkv, keys, values, Int(n_before), Int(batch), Int(n_copies), Int(n_tokens), Int(n_state)
    )


def search_parts(
    totals: Out[F32],
    best: Out[F32],
    tokens: Out[I32],
    logits: Out[F32],
    suppressed: In[I64],
    ranges: In[I64],
    temperatures: In[F32],
    seeds: In[I64],
    n_vocab: Int32,
    n_suppressed: Int32,
    k: Int32,
):
    search_part_block(
        totals,
        best,
        tokens,
        logits,
        suppressed,
        ranges,
        temperatures,
        seeds,
        Int(n_vocab),
        Int(n_suppressed),
        Int(k),
    )


def search_merge(
    ids: Out[I64],
    logprobs: Out[F32],
    logits: Out[F32],
    totals: In[F32],
    best: In[F32],
    tokens: In[I32],
    ranges: In[I64],
    temperatures: In[F32],
    n_vocab: Int32,
    k: Int32,
):
    search_merge_block(ids, logprobs, logits, totals, best, tokens, ranges, temperatures, Int(n_vocab), Int(k))


def follow(
    tokens: Out[I64],
    positions: Out[I64],
    ranges: Out[I64],
    stamps: Out[I64],
    seeds: Out[I64],
    chosen: Out[I64],
    chosen_logprobs: Out[F32],
    ids: In[I64],
    logprobs: In[F32],
    rules: In[I64],
    batch: Int32,
    k: Int32,
):
    follow_block(
        tokens, positions, ranges, stamps, seeds, chosen, chosen_logprobs, ids, logprobs, rules, Int(batch), Int(k)
    )


def token_probs(probs: Out[F32], logits: In[F32], tokens: In[I64], n_vocab: Int32, n_text: Int32):
    token_probs_block(probs, logits, tokens, Int(n_vocab), Int(n_text))


def head_weights(
    weights: Out[F32], scores: In[F32], heads: In[I64], n_tokens: Int32, n_frames: Int32, n_audio_ctx: Int32
):
    head_weights_block(weights, scores, heads, Int(n_tokens), Int(n_frames), Int(n_audio_ctx))


def standardize(y: Out[F32], x: In[F32], n_tokens: Int32, n_frames: Int32):
    standardize_thread(y, x, Int(n_tokens), Int(n_frames))


def add_medians(matrix: Out[F32], x: In[F32], k: Int32, n_tokens: Int32, n_frames: Int32):
    add_medians_thread(matrix, x, Int(k), Int(n_tokens), Int(n_frames))
