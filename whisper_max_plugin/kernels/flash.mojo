"""Attention of many tokens: blocks of keys and values meet blocks of queries while both are in a cache."""

from std.math import ceildiv, exp2, iota, rsqrt

from .gemm import LANES, PANEL, TILE_ROWS, Scratch, lay_out, multiply, transpose
from .pairs import HAS_PAIRS, paired
from .vectors import Float, Floats, Numbers, Results, WIDTH, results

comptime LOG2_E = 1.4426950408889634
comptime KEYS = 96  # of a block


@always_inline
def scores_of[
    of_kv: DType, //, lanes: Int, pairs: Bool
](
    scores: Pointer[mut=True, Float, ...],
    keys: Pointer[Scalar[of_kv], ...],
    queries: Pointer[Float, ...],
    key_stride: Int,
    head_dim: Int,
    n_keys: Int,
):
    """Multiply a block of keys, `key_stride` apart, and a panel of queries (head_dim, lanes * WIDTH).

    Of `pairs`, all these count pairs.
    """
    var key = 0
    while key + TILE_ROWS <= n_keys:
        multiply[TILE_ROWS, lanes, pairs](
            scores.unsafe_offset(key * lanes * WIDTH),
            keys.unsafe_offset(key * key_stride),
            queries,
            key_stride,
            1,
            head_dim,
        )
        key += TILE_ROWS
    while key < n_keys:
        multiply[1, lanes, pairs](
            scores.unsafe_offset(key * lanes * WIDTH),
            keys.unsafe_offset(key * key_stride),
            queries,
            key_stride,
            1,
            head_dim,
        )
        key += 1


@always_inline
def pair_values[
    of_kv: DType, //, head_dim: Int
](pairs: Pointer[mut=True, Float, ...], values: Numbers[of_kv], stride: Int, count: Int):
    """Lay out `count` values, which are `stride` apart, as pairs (count / 2, head_dim), the last with zeros."""
    for t in range(0, count, 2):
        for d in range(0, head_dim, WIDTH):
            var next = SIMD[of_kv, WIDTH](0)
            if t + 1 < count:
                next = values.unsafe_load[width=WIDTH]((t + 1) * stride + d)
            pairs.unsafe_store(t // 2 * head_dim + d, paired(values.unsafe_load[width=WIDTH](t * stride + d), next))


@always_inline
def attend_panel[
    type: DType, of_kv: DType, //, lanes: Int, head_dim: Int
](
    y: Results[type],
    q: Numbers[type],
    k: Numbers[of_kv],
    v: Numbers[of_kv],
    queries: Pointer[mut=True, Float, ...],
    scores: Pointer[mut=True, Float, ...],
    sums: Pointer[mut=True, Float, ...],
    value_pairs: Pointer[mut=True, Float, ...],
    y_stride: Int,
    q_stride: Int,
    key_stride: Int,
    first: Int,
    n_queries: Int,
    n_keys: Int,
    causal: Bool,
):
    """Softmax attention of a panel of the queries, from the one numbered `first`, to `n_keys` keys and values.

    With `causal`, the last query sees all keys, and those before it one less each. The panel lies in `queries`
    (head_dim, lanes * WIDTH), a block of scores in `scores` (KEYS, lanes * WIDTH), the weighted values in `sums`
    (head_dim, lanes * WIDTH). Where the CPU multiplies pairs of bfloat16, the queries and keys of such numbers are pairs
    of neighbours, and values those of two keys, in `value_pairs` (KEYS // 2, head_dim).
    """
    comptime pairs = type == DType.bfloat16 and of_kv == DType.bfloat16 and HAS_PAIRS
    comptime of_column = 2 if pairs else 1
    comptime Column = DType.float32 if pairs else of_kv
    comptime width = lanes * WIDTH
    lay_out[pairs](results(queries), q, first, n_queries - 1, q_stride, head_dim // of_column, lanes)
    var keys = Numbers[Column](unsafe_from_address=Int(k))
    var stride = key_stride // of_column
    var scale = rsqrt(Float(head_dim)) * LOG2_E  # weights are exp2 of scaled scores
    for i in range(0, head_dim * width, WIDTH):
        sums.unsafe_store(i, Floats(0))
    var largest = Array[Floats, lanes](fill=Floats(Float.MIN_FINITE))
    var total = Array[Floats, lanes](fill=Floats(0))
    var seen = n_keys  # by the panel's first query
    var end = n_keys  # seen by its last
    if causal:
        seen = n_keys - n_queries + first + 1
        end = min(n_keys, seen + width - 1)

    for block in range(0, end, KEYS):
        var count = min(KEYS, end - block)
        var of_block = keys.unsafe_offset(block * stride)
        scores_of[lanes, pairs](scores, of_block, queries, stride, head_dim // of_column, count)
        if causal:
            for t in range(max(0, seen - block), count):
                comptime for l in range(lanes):
                    var at = t * width + l * WIDTH
                    var last_seen = iota[DType.int32, WIDTH](Int32(seen - 1 + l * WIDTH))
                    var hidden = last_seen.lt(Int32(block + t))
                    scores.unsafe_store(
                        at, hidden.select(Floats(Float.MIN_FINITE), scores.unsafe_load[width=WIDTH](at))
                    )
        comptime for l in range(lanes):
            var top = largest[l]
            for t in range(count):
                top = max(top, scores.unsafe_load[width=WIDTH](t * width + l * WIDTH))
            var correction = exp2((largest[l] - top) * scale)
            var sum = total[l] * correction

            @always_inline
            def weigh(t: Int) {mut sum, imm} -> Floats:
                var weight = exp2((scores.unsafe_load[width=WIDTH](t * width + l * WIDTH) - top) * scale)
                sum += weight
                return weight

            comptime if pairs:
                for t in range(0, count, 2):
                    var weight = weigh(t)
                    var next = weigh(t + 1) if t + 1 < count else Floats(0)
                    scores.unsafe_store(t // 2 * width + l * WIDTH, paired(weight, next))
            else:
                for t in range(count):
                    scores.unsafe_store(t * width + l * WIDTH, weigh(t))
            if top.ne(largest[l]).reduce_or():
                for d in range(head_dim):
                    var at = d * width + l * WIDTH
                    sums.unsafe_store(at, sums.unsafe_load[width=WIDTH](at) * correction)
            largest[l] = top
            total[l] = sum
        var values = v.unsafe_offset(block * key_stride)
        comptime if pairs:
            pair_values[head_dim](value_pairs, values, key_stride, count)
            for d in range(0, head_dim, TILE_ROWS):
                multiply[TILE_ROWS, lanes, pairs=True, start=False](
                    sums.unsafe_offset(d * width), value_pairs.unsafe_offset(d), scores, 1, head_dim, ceildiv(count, 2)
                )
        else:
            for d in range(0, head_dim, TILE_ROWS):
                multiply[TILE_ROWS, lanes, start=False](
                    sums.unsafe_offset(d * width), values.unsafe_offset(d), scores, 1, key_stride, count
                )

    comptime for l in range(lanes):
        var inverse = 1 / total[l]
        for d in range(0, head_dim, WIDTH):
            var square = Array[Floats, WIDTH](fill=Floats(0))
            comptime for i in range(WIDTH):
                square[i] = sums.unsafe_load[width=WIDTH]((d + i) * width + l * WIDTH) * inverse
            var rows = transpose(square)
            comptime for i in range(WIDTH):
                var row = first + l * WIDTH + i
                if row < n_queries:
                    y.unsafe_store(row * y_stride + d, rows[i].cast[type]())


@no_inline
def attend_many[
    type: DType, of_kv: DType, //, head_dim: Int
](
    y: Results[type],
    q: Numbers[type],
    k: Numbers[of_kv],
    v: Numbers[of_kv],
    y_stride: Int,
    q_stride: Int,
    key_stride: Int,
    start: Int,
    end: Int,
    n_queries: Int,
    n_keys: Int,
    causal: Bool,
):
    """Softmax attention of the queries from `start` to `end`, which are `q_stride` apart."""
    comptime assert head_dim % WIDTH == 0, "a head is not a whole number of vectors"
    var of_queries = Scratch(head_dim * PANEL)
    var of_scores = Scratch(KEYS * PANEL)
    var of_sums = Scratch(head_dim * PANEL)
    var of_pairs = Scratch(KEYS // 2 * head_dim)
    for first in range(start, end, PANEL):
        var lanes = min(LANES, ceildiv(end - first, WIDTH))
        comptime for l in range(1, LANES + 1):
            if lanes == l:
                attend_panel[l, head_dim](
                    y,
                    q,
                    k,
                    v,
                    of_queries.pointer(),
                    of_scores.pointer(),
                    of_sums.pointer(),
                    of_pairs.pointer(),
                    y_stride,
                    q_stride,
                    key_stride,
                    first,
                    n_queries,
                    n_keys,
                    causal,
                )
