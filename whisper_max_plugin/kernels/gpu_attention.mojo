"""Attention of one token on a GPU: the warps of a block share the keys of one head, and then merge what they found."""

from max.gpu import WARP_SIZE, barrier, block_idx, lane_id, thread_idx
from max.gpu.host import DeviceContext
from max.gpu.memory import AddressSpace
from max.gpu.primitives import warp
from std.math import ceildiv, exp, rsqrt
from std.memory import stack_allocation
from std.sys import size_of

from .memory import Places, Table

comptime WARPS = 8  # in a block
comptime THREADS = WARPS * WARP_SIZE
comptime KEYS = THREADS  # of a window, that one block attends to: a key for each thread
comptime GROUP = 5  # queries that read keys and values together: the beams of one window
comptime LOWEST = Scalar[DType.float32].MIN_FINITE


@always_inline
def attend_block[
    of_q: DType, of_kv: DType, out: DType, holder: DType, //, rows: Int, head_dim: Int, indirect: Bool, partial: Bool
](
    y: Pointer[mut=True, Scalar[out], ...],
    q: Pointer[mut=False, Scalar[of_q], ...],
    k: Pointer[Scalar[of_kv], ...],
    v: Pointer[Scalar[of_kv], ...],
    holders: Pointer[mut=False, Scalar[holder], ...],
    m: Int,
    q_stride: Int,
    key_stride: Int,
    row_stride: Int,
    begin: Int,
    end: Int,
):
    """Softmax attention of `m` <= `rows` queries, `q_stride` apart, to the keys and values from `begin` to `end`.

    Keys are `key_stride` apart; with `indirect`, the one at t is that of row holders[t], rows being `row_stride` apart.
    With `partial`, y (m, head_dim + 2) gets the unscaled sum, the largest score and the sum of weights.
    """
    comptime load = 16 // size_of[of_kv]()  # values that a lane reads at once
    comptime assert head_dim % load == 0, "a head is not a whole number of vectors"
    comptime slots = (head_dim + WARP_SIZE - 1) // WARP_SIZE  # values of the head that a lane sums up
    comptime width = head_dim + 2
    var shared = stack_allocation[WARPS * rows * width, Scalar[DType.float32], address_space=AddressSpace.SHARED]()
    var lane = Int(lane_id())
    var warp_index = Int(thread_idx.x) // WARP_SIZE
    var scale = rsqrt(Scalar[DType.float32](head_dim))

    var tops = Array[Scalar[DType.float32], rows](fill=LOWEST)
    var totals = Array[Scalar[DType.float32], rows](fill=0)
    var sums = Array[Scalar[DType.float32], rows * slots](fill=0)

    for first in range(begin + warp_index * WARP_SIZE, end, THREADS):
        var t = min(first + lane, end - 1)
        var offset = t * key_stride
        comptime if indirect:
            offset += Int(holders[unsafe_offset=t]) * row_stride
        var products = Array[Scalar[DType.float32], rows](fill=0)
        for i in range(0, head_dim, load):
            var key = k.unsafe_load[width=load, alignment=16](offset + i).cast[DType.float32]()
            comptime for r in range(rows):
                var query = q.unsafe_load[width=load, alignment=16](min(r, m - 1) * q_stride + i)
                products[r] += (key * query.cast[DType.float32]()).reduce_add()

        var weights = Array[Scalar[DType.float32], rows](fill=0)
        comptime for r in range(rows):
            var score = products[r] * scale if first + lane < end else LOWEST
            var top = max(tops[r], warp.max(score))
            weights[r] = exp(score - top) if first + lane < end else Scalar[DType.float32](0)
            var shrink = exp(tops[r] - top)
            totals[r] = totals[r] * shrink + warp.sum(weights[r])
            comptime for s in range(slots):
                sums[r * slots + s] *= shrink
            tops[r] = top

        for j in range(min(WARP_SIZE, end - first)):
            var value = Int(warp.shuffle_idx(Int32(offset), UInt32(j)))
            comptime for s in range(slots):
                comptime if (s + 1) * WARP_SIZE <= head_dim:
                    var x = v[unsafe_offset = value + s * WARP_SIZE + lane].cast[DType.float32]()
                    comptime for r in range(rows):
                        sums[r * slots + s] = x.fma(warp.shuffle_idx(weights[r], UInt32(j)), sums[r * slots + s])
                else:
                    var at = value + min(s * WARP_SIZE + lane, head_dim - 1)
                    var x = v[unsafe_offset=at].cast[DType.float32]()
                    comptime for r in range(rows):
                        sums[r * slots + s] = x.fma(warp.shuffle_idx(weights[r], UInt32(j)), sums[r * slots + s])

    comptime for r in range(rows):
        var of_warp = (warp_index * rows + r) * width
        comptime for s in range(slots):
            if s * WARP_SIZE + lane < head_dim:
                shared[unsafe_offset = of_warp + s * WARP_SIZE + lane] = sums[r * slots + s]
        if lane == 0:
            shared[unsafe_offset = of_warp + head_dim] = tops[r]
            shared[unsafe_offset = of_warp + head_dim + 1] = totals[r]
    barrier()

    for i in range(Int(thread_idx.x), m * head_dim, THREADS):
        var r = i // head_dim
        var top = LOWEST
        comptime for w in range(WARPS):
            top = max(top, shared[unsafe_offset = (w * rows + r) * width + head_dim])
        var total = Scalar[DType.float32](0)
        var sum = Scalar[DType.float32](0)
        comptime for w in range(WARPS):
            var of_warp = (w * rows + r) * width
            var weight = exp(shared[unsafe_offset = of_warp + head_dim] - top)
            total = weight.fma(shared[unsafe_offset = of_warp + head_dim + 1], total)
            sum = weight.fma(shared[unsafe_offset = of_warp + i % head_dim], sum)
        comptime if partial:
            y[unsafe_offset = r * width + i % head_dim] = sum.cast[out]()
            if i % head_dim == 0:
                y[unsafe_offset = r * width + head_dim] = top.cast[out]()
                y[unsafe_offset = r * width + head_dim + 1] = total.cast[out]()
        else:
            y[unsafe_offset = r * q_stride + i % head_dim] = (sum / total).cast[out]()


@always_inline
def self_attention_block[
    of_kv: DType, //, head_dim: Int
](
    y: Pointer[mut=True, Scalar[DType.float32], ...],
    qkv: Pointer[Scalar[DType.float32], ...],
    memory: Table,
    holders: Pointer[mut=False, Scalar[DType.int32], ...],
    positions: Pointer[Scalar[DType.int64], ...],
    places: Places[of_kv],
    n_group: Int,
    n_text_ctx: Int,
    n_state: Int,
):
    """What the block of one sequence and head does, see `SelfAttention`."""
    var b = Int(block_idx.x)
    var head = Int(block_idx.y) * head_dim
    var window = b // n_group
    var key_stride = places.n_rows(memory, window) * n_state
    var keys = places.keys(memory, window).unsafe_offset(head)
    var values = places.values(memory, window).unsafe_offset(head)
    var last = Int(positions[unsafe_offset=b])
    var holder = holders.unsafe_offset(b * n_text_ctx)
    var source = qkv.unsafe_offset(b * 3 * n_state + head)
    var latest = last * key_stride + Int(holder[unsafe_offset=last]) * n_state
    for i in range(Int(thread_idx.x), head_dim, THREADS):
        keys[unsafe_offset = latest + i] = source[unsafe_offset = n_state + i].cast[of_kv]()
        values[unsafe_offset = latest + i] = source[unsafe_offset = 2 * n_state + i].cast[of_kv]()
    barrier()  # and all of the block see them
    attend_block[1, head_dim, True, False](
        y.unsafe_offset(b * n_state + head),
        source,
        keys,
        values,
        holder,
        1,
        n_state,
        key_stride,
        n_state,
        0,
        last + 1,
    )


@always_inline
def cross_attention_block[
    of_kv: DType, //, rows: Int, head_dim: Int
](
    parts: Pointer[mut=True, Scalar[DType.float32], ...],
    q: Pointer[mut=False, Scalar[DType.float32], ...],
    memory: Table,
    places: Places[of_kv],
    first_row: Int,
    n_group: Int,
    n_head: Int,
    n_keys: Int,
):
    """What the block of one window's head and `KEYS` of its keys does, for queries from `first_row` on."""
    var part = Int(block_idx.x)
    var of_all = Int(block_idx.y)
    var window = of_all // n_head
    var head = of_all % n_head
    var n_parts = ceildiv(n_keys, KEYS)
    var n_state = n_head * head_dim
    var m = min(rows, n_group - first_row)
    attend_block[rows, head_dim, False, True](
        parts.unsafe_offset(((of_all * n_parts + part) * n_group + first_row) * (head_dim + 2)),
        q.unsafe_offset((window * n_group + first_row) * n_state + head * head_dim),
        places.cross_keys(memory, window).unsafe_offset(head * n_keys * head_dim),
        places.cross_values(memory, window).unsafe_offset(head * n_keys * head_dim),
        q,  # no holders
        m,
        n_state,
        head_dim,
        0,
        part * KEYS,
        min(n_keys, (part + 1) * KEYS),
    )


@always_inline
def merge_block[
    head_dim: Int
](
    y: Pointer[mut=True, Scalar[DType.float32], ...],
    parts: Pointer[Scalar[DType.float32], ...],
    n_group: Int,
    n_head: Int,
    n_parts: Int,
):
    """Merge the parts that `cross_attention_block` left of one window's head."""
    comptime width = head_dim + 2
    var head = Int(block_idx.x)  # of all windows
    var of_head = parts.unsafe_offset(head * n_parts * n_group * width)
    for i in range(Int(thread_idx.x), n_group * head_dim, THREADS):
        var row = i // head_dim
        var top = LOWEST
        for part in range(n_parts):
            top = max(top, of_head[unsafe_offset = (part * n_group + row) * width + head_dim])
        var total = Scalar[DType.float32](0)
        var sum = Scalar[DType.float32](0)
        for part in range(n_parts):
            var at = (part * n_group + row) * width
            var weight = exp(of_head[unsafe_offset = at + head_dim] - top)
            total = weight.fma(of_head[unsafe_offset = at + head_dim + 1], total)
            sum = weight.fma(of_head[unsafe_offset = at + i % head_dim], sum)
        var sequence = head // n_head * n_group + row
        y[unsafe_offset = (sequence * n_head + head % n_head) * head_dim + i % head_dim] = sum / total


@always_inline
def self_attention_on_gpu[
    of_kv: DType, //, head_dim: Int
](
    y: Pointer[mut=True, Scalar[DType.float32], ...],
    qkv: Pointer[Scalar[DType.float32], ...],
    memory: Table,
    holders: Pointer[mut=False, Scalar[DType.int32], ...],
    positions: Pointer[Scalar[DType.int64], ...],
    places: Places[of_kv],
    batch: Int,
    n_group: Int,
    n_text_ctx: Int,
    n_state: Int,
    ctx: DeviceContext,
) raises:
    """Launch `self_attention_block`."""
    var width = Int32(places.width)
    var layer = Int32(places.layer)
    var n_group_ = Int32(n_group)
    var n_text_ctx_ = Int32(n_text_ctx)
    var n_state_ = Int32(n_state)

    def kernel() {var}:
        var of_layer = Places[of_kv](Int(width), Int(layer))
        self_attention_block[head_dim](
            y, qkv, memory, holders, positions, of_layer, Int(n_group_), Int(n_text_ctx_), Int(n_state_)
        )

    ctx.enqueue_function(kernel, grid_dim=(batch, n_state // head_dim), block_dim=THREADS)


@always_inline
def cross_attention_parts[
    of_kv: DType, //, head_dim: Int
](
    parts: Pointer[mut=True, Scalar[DType.float32], ...],
    q: Pointer[mut=False, Scalar[DType.float32], ...],
    memory: Table,
    places: Places[of_kv],
    n_audio: Int,
    n_group: Int,
    n_head: Int,
    n_keys: Int,
    ctx: DeviceContext,
) raises:
    """Launch `cross_attention_block` for all rows of the groups."""
    var width = Int32(places.width)
    var layer = Int32(places.layer)
    var n_group_ = Int32(n_group)
    var n_head_ = Int32(n_head)
    var n_keys_ = Int32(n_keys)
    for first_row in range(0, n_group, GROUP):
        var first_row_ = Int32(first_row)
        comptime for rows in [1, GROUP]:
            if (n_group - first_row == 1) == (rows == 1):

                def kernel() {var}:
                    var of_layer = Places[of_kv](Int(width), Int(layer))
                    cross_attention_block[rows, head_dim](
                        parts, q, memory, of_layer, Int(first_row_), Int(n_group_), Int(n_head_), Int(n_keys_)
                    )

                ctx.enqueue_function(kernel, grid_dim=(ceildiv(n_keys, KEYS), n_audio * n_head), block_dim=THREADS)


@always_inline
def merge_parts[
    head_dim: Int
](
    y: Pointer[mut=True, Scalar[DType.float32], ...],
    parts: Pointer[mut=False, Scalar[DType.float32], ...],
    n_heads: Int,
    n_parts: Int,
    n_group: Int,
    n_head: Int,
    ctx: DeviceContext,
) raises:
    """Launch `merge_block` for the `n_heads` heads of all windows."""
    var n_parts_ = Int32(n_parts)
    var n_group_ = Int32(n_group)
    var n_head_ = Int32(n_head)

    def kernel() {var}:
        merge_block[head_dim](y, parts, Int(n_group_), Int(n_head_), Int(n_parts_))

    ctx.enqueue_function(kernel, grid_dim=n_heads, block_dim=THREADS)
