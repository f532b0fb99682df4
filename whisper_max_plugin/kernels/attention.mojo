"""Attention of one token: queries of one position against keys and values where they lie."""

import extensibility
from extensibility import InputTensor, OutputTensor
from max.gpu.host import DeviceContext
from std.math import ceildiv, exp, rsqrt
from std.sys import size_of

from .gpu_attention import KEYS, cross_attention_parts, merge_parts, self_attention_on_gpu
from .memory import Places, Table
from .sharing import share
from .vectors import AHEAD, Floats, Numbers, Results, WIDTH, fetch, numbers, results, sum_each, unread

comptime GROUP = 5  # queries that read keys and values together: the beams of one window


@no_inline
def attend[
    type: DType, of_kv: DType, //, rows: Int, head_dim: Int, indirect: Bool = False
](
    y: Results[type],
    q: Numbers[type],
    k: Numbers[of_kv],
    v: Numbers[of_kv],
    holders: Numbers[DType.int32],
    row_stride: Int,
    key_stride: Int,
    n_keys: Int,
):
    """Softmax attention of `rows` queries, a `row_stride` apart, to `n_keys` keys and values, a `key_stride` apart.

    With `indirect`, the key and value at t are those of row holders[t].
    """
    comptime assert head_dim % WIDTH == 0, "a head is not a whole number of vectors"
    comptime lanes = head_dim // WIDTH
    comptime ahead = AHEAD // (head_dim * size_of[of_kv]())  # keys
    var scale = rsqrt(Scalar[DType.float32](head_dim))
    var padded = (n_keys + WIDTH - 1) // WIDTH * WIDTH
    var scores = List[Scalar[DType.float32]](length=rows * padded, fill=Scalar[DType.float32].MIN_FINITE)
    var p = scores.unsafe_ptr()

    var qs = Array[Floats, rows * lanes](fill=Floats(0))
    comptime for r in range(rows):
        comptime for i in range(lanes):
            qs[r * lanes + i] = q.unsafe_load[width=WIDTH](r * row_stride + i * WIDTH).cast[DType.float32]() * scale

    @always_inline
    def offset(t: Int) {imm} -> Int:
        comptime if indirect:
            return t * key_stride + Int(holders[unsafe_offset=t]) * row_stride
        return t * key_stride

    @always_inline
    def score[n: Int](t: Int) {imm}:
        """Multiply with `n` keys from the one at t on."""
        var products = Array[Floats, rows * n](fill=Floats(0))
        comptime for j in range(n):
            var key = k.unsafe_offset(offset(t + j))
            fetch[head_dim](k.unsafe_offset(offset(min(t + j + ahead, n_keys - 1))))
            comptime for i in range(lanes):
                var ks = key.unsafe_load[width=WIDTH](i * WIDTH).cast[DType.float32]()
                comptime for r in range(rows):
                    products[r * n + j] = ks.fma(qs[r * lanes + i], products[r * n + j])
        comptime for r in range(rows):
            p.unsafe_store(r * padded + t, sum_each[n](products, r * n))

    comptime together = min(WIDTH, 8 if rows == 1 else 4)
    var together_end = n_keys - n_keys % together
    for t in range(0, together_end, together):
        score[together](t)
    for t in range(together_end, n_keys):
        score[1](t)

    var inverse = Array[Scalar[DType.float32], rows](fill=0)
    comptime for r in range(rows):
        var row = p.unsafe_offset(r * padded)
        var largest = Floats(Scalar[DType.float32].MIN_FINITE)
        for t in range(0, padded, WIDTH):
            largest = max(largest, row.unsafe_load[width=WIDTH](t))
        var top = largest.reduce_max()
        var total = Floats(0)
        for t in range(0, padded, WIDTH):
            var weight = exp(row.unsafe_load[width=WIDTH](t) - top)
            row.unsafe_store(t, weight)
            total += weight
        # the padding's weights are exactly zero: exp of a value far below the smallest exponent
        inverse[r] = 1 / total.reduce_add()

    var sums = Array[Floats, rows * lanes](fill=Floats(0))
    for t in range(n_keys):
        var value = v.unsafe_offset(offset(t))
        fetch[head_dim](v.unsafe_offset(offset(min(t + ahead, n_keys - 1))))
        comptime for i in range(lanes):
            var vs = value.unsafe_load[width=WIDTH](i * WIDTH).cast[DType.float32]()
            comptime for r in range(rows):
                sums[r * lanes + i] = vs.fma(p[unsafe_offset = r * padded + t], sums[r * lanes + i])
    comptime for r in range(rows):
        comptime for i in range(lanes):
            y.unsafe_store(r * row_stride + i * WIDTH, (sums[r * lanes + i] * inverse[r]).cast[type]())


@always_inline
def self_attention_part[
    of_kv: DType, //, head_dim: Int
](
    y: Pointer[mut=True, Scalar[DType.float32], ...],
    qkv: Pointer[Scalar[DType.float32], ...],
    memory: Table,
    holders: Pointer[Scalar[DType.int32], ...],
    positions: Pointer[Scalar[DType.int64], ...],
    places: Places[of_kv],
    n_group: Int,
    n_text_ctx: Int,
    n_state: Int,
    task: Int,
):
    """Do what `SelfAttention` does for one head of one sequence, which `task` counts."""
    var n_head = n_state // head_dim
    var b = task // n_head
    var head = task % n_head * head_dim
    var window = b // n_group
    var key_stride = places.n_rows(memory, window) * n_state
    var keys = places.keys(memory, window).unsafe_offset(head)
    var values = places.values(memory, window).unsafe_offset(head)
    var last = Int(positions[unsafe_offset=b])
    var holder = holders.unsafe_offset(b * n_text_ctx)
    var source = qkv.unsafe_offset(b * 3 * n_state + head)
    var latest = last * key_stride + Int(holder[unsafe_offset=last]) * n_state
    for i in range(0, head_dim, WIDTH):
        keys.unsafe_store(latest + i, source.unsafe_load[width=WIDTH](n_state + i).cast[of_kv]())
        values.unsafe_store(latest + i, source.unsafe_load[width=WIDTH](2 * n_state + i).cast[of_kv]())
    attend[1, head_dim, indirect=True](
        results(y.unsafe_offset(b * n_state + head)),
        numbers(source),
        numbers(keys),
        numbers(values),
        numbers(holder),
        n_state,
        key_stride,
        last + 1,
    )


@always_inline
def cross_attention_part[
    of_kv: DType, //, head_dim: Int
](
    y: Pointer[mut=True, Scalar[DType.float32], ...],
    q: Pointer[Scalar[DType.float32], ...],
    memory: Table,
    places: Places[of_kv],
    n_group: Int,
    n_keys: Int,
    n_state: Int,
    task: Int,
):
    """Do what `CrossAttention` does for one head of one window, which `task` counts."""
    var n_head = n_state // head_dim
    var window = task // n_head
    var head = task % n_head
    var keys = places.cross_keys(memory, window).unsafe_offset(head * n_keys * head_dim)
    var values = places.cross_values(memory, window).unsafe_offset(head * n_keys * head_dim)
    var at = window * n_group * n_state + head * head_dim
    var no_holders = unread[DType.int32](q)
    var row = 0
    while row < n_group:
        var rows = min(GROUP, n_group - row)
        comptime for r in range(1, GROUP + 1):
            if rows == r:
                attend[r, head_dim](
                    results(y.unsafe_offset(at + row * n_state)),
                    numbers(q.unsafe_offset(at + row * n_state)),
                    numbers(keys),
                    numbers(values),
                    no_holders,
                    n_state,
                    head_dim,
                    n_keys,
                )
        row += rows


@extensibility.register("whisper_self_attention")
struct SelfAttention[of_kv: DType, head_dim: Int]:
    """Write one token's keys and values into the cache at its position, and attend to all up to it.

    y (batch, n_state), batch being n_audio * n_group; qkv (batch, 3 * n_state); memory (n_audio, 1 + 4 * n_layer), see
    `memory.mojo`; holders (batch, n_text_ctx): which row of its cache holds a sequence's entry at each position, its own
    row from this one on; positions (batch).
    """

    @staticmethod
    def execute[
        target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        qkv: InputTensor[dtype=DType.float32, rank=2, ...],
        memory: InputTensor[dtype=DType.int64, rank=2, ...],
        holders: InputTensor[dtype=DType.int32, rank=2, ...],
        positions: InputTensor[dtype=DType.int64, rank=1, ...],
        layer: Scalar[DType.int32],
        ctx: DeviceContext,
    ) raises:
        var n_text_ctx = holders.dim_size(1)
        var batch = y.dim_size(0)
        var n_state = y.dim_size(1)
        var n_head = n_state // Self.head_dim
        var n_group = batch // memory.dim_size(0)
        var places = Places[Self.of_kv](memory.dim_size(1), Int(layer))
        var yp = y.unsafe_ptr()
        var xp = qkv.unsafe_ptr()
        var mp = memory.unsafe_ptr()
        var hp = holders.unsafe_ptr()
        var pp = positions.unsafe_ptr()

        comptime if target != "cpu":
            self_attention_on_gpu[Self.head_dim](yp, xp, mp, hp, pp, places, batch, n_group, n_text_ctx, n_state, ctx)
            return

        def work(task: Int) raises {imm}:
            self_attention_part[Self.head_dim](yp, xp, mp, hp, pp, places, n_group, n_text_ctx, n_state, task)

        share(work, batch * n_head)


@extensibility.register("whisper_cross_attention")
struct CrossAttention[of_kv: DType, head_dim: Int]:
    """Attend to a window's keys and values, read once for all sequences of its group; on a GPU it takes two operations.

    y and q (n_audio * n_group, n_state); memory (n_audio, 1 + 4 * n_layer), see `memory.mojo`; a window's keys and
    values are (n_head, n_keys, head_dim).
    """

    @staticmethod
    def execute[
        target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        q: InputTensor[dtype=DType.float32, rank=2, ...],
        memory: InputTensor[dtype=DType.int64, rank=2, ...],
        layer: Scalar[DType.int32],
        n_audio_ctx: Scalar[DType.int32],
        ctx: DeviceContext,
    ) raises:
        var n_keys = Int(n_audio_ctx)
        var n_audio = memory.dim_size(0)
        var n_state = y.dim_size(1)
        var n_head = n_state // Self.head_dim
        var n_group = y.dim_size(0) // n_audio
        var places = Places[Self.of_kv](memory.dim_size(1), Int(layer))
        var yp = y.unsafe_ptr()
        var qp = q.unsafe_ptr()
        var mp = memory.unsafe_ptr()

        def work(task: Int) raises {imm}:
            cross_attention_part[Self.head_dim](yp, qp, mp, places, n_group, n_keys, n_state, task)

        share(work, n_audio * n_head)


@extensibility.register("whisper_cross_attention_parts")
struct CrossAttentionParts[of_kv: DType, head_dim: Int]:
    """The first half of `CrossAttention` on a GPU: each block attends to `KEYS` keys of a head.

    parts (n_audio * n_head, n_keys / KEYS rounded up, n_group, head_dim + 2): the unscaled sum of values, the largest
    score, and the sum of weights
    """

    @staticmethod
    def execute[
        target: StaticString
    ](
        parts: OutputTensor[dtype=DType.float32, rank=4, ...],
        q: InputTensor[dtype=DType.float32, rank=2, ...],
        memory: InputTensor[dtype=DType.int64, rank=2, ...],
        layer: Scalar[DType.int32],
        n_audio_ctx: Scalar[DType.int32],
        ctx: DeviceContext,
    ) raises:
        comptime if target == "cpu":
            raise Error("whisper_cross_attention_parts is for GPUs")
        else:
            if parts.dim_size(1) != ceildiv(Int(n_audio_ctx), KEYS):
                raise Error("the graph has another number of parts of a window than the blocks that attend to them")
            cross_attention_parts[Self.head_dim](
                parts.unsafe_ptr(),
                q.unsafe_ptr(),
                memory.unsafe_ptr(),
                Places[Self.of_kv](memory.dim_size(1), Int(layer)),
                memory.dim_size(0),
                parts.dim_size(2),
                q.dim_size(1) // Self.head_dim,
                Int(n_audio_ctx),
                ctx,
            )


@extensibility.register("whisper_cross_attention_merge")
struct CrossAttentionMerge[head_dim: Int]:
    """The second half: y (n_audio * n_group, n_head * head_dim) of what `CrossAttentionParts` left."""

    @staticmethod
    def execute[
        target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        parts: InputTensor[dtype=DType.float32, rank=4, ...],
        ctx: DeviceContext,
    ) raises:
        comptime if target == "cpu":
            raise Error("whisper_cross_attention_merge is for GPUs")
        else:
            merge_parts[Self.head_dim](
                y.unsafe_ptr(),
                parts.unsafe_ptr(),
                parts.dim_size(0),
                parts.dim_size(1),
                parts.dim_size(2),
                y.dim_size(1) // Self.head_dim,
                ctx,
            )
