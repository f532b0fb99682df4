"""Attention of one token on a GPU: the warps of a block share the keys of one head, and then merge what they found.

Lanes side by side read a key, or a value, and multiply with their part of the query; several keys lie next to each other in a
warp.
"""

from max.gpu import WARP_SIZE, barrier, block_idx, lane_id, thread_idx
from max.gpu.host import DeviceContext
from max.gpu.memory import AddressSpace
from max.gpu.primitives import warp
from std.bit import log2_floor
from std.math import ceildiv, exp, rsqrt
from std.memory import stack_allocation
from std.sys import size_of

from .gpu_overlap import changing, early, wait_for_last
from .memory import Places, Table
from .vectors import Float

comptime WARPS = 8  # in a block
comptime THREADS = WARPS * WARP_SIZE
comptime KEYS = 256  # of a window, that one block attends to
comptime ROUNDS = 8  # keys and values that a lane has on their way
comptime GROUP = 5  # queries that read keys and values together: the beams of one window
comptime LOWEST = Scalar[DType.float32].MIN_FINITE


@always_inline
def across[operation: StaticString, nearest: Int](value: Float) -> Float:
    """Return the "sum" or "max" of the lanes that are `nearest`, or a multiple of that, apart, to all of them."""
    var result = value
    comptime for i in range(log2_floor(WARP_SIZE // nearest)):
        var other = warp.shuffle_xor(result, UInt32(nearest << i))
        comptime if operation == "sum":
            result += other
        else:
            result = max(result, other)
    return result


@always_inline
def attend_block[
    of_q: DType,
    of_kv: DType,
    out: DType,
    holder: DType,
    //,
    rows: Int,
    head_dim: Int,
    indirect: Bool,
    partial: Bool,
    overlaps: Bool,
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

    Keys are `key_stride` apart; with `indirect`, the one at t is that of row holders[t], rows being `row_stride` apart, and
    the last key and value are those behind the query, which nobody has stored yet. With `partial`, y (m, head_dim + 2) gets
    the unscaled sum, the largest score and the sum of weights. With `overlaps`, q is what the kernel before writes.
    """
    comptime load = 16 // size_of[of_kv]()  # values that a lane reads at once
    comptime lanes = head_dim // load  # that read a key
    comptime assert head_dim % load == 0 and WARP_SIZE % lanes == 0, "keys do not fill a warp"
    comptime beside = WARP_SIZE // lanes  # keys
    comptime of_warp = ROUNDS * beside  # keys at a time
    comptime width = head_dim + 2
    comptime Stored = SIMD[of_kv, load]
    comptime Floats = SIMD[DType.float32, load]
    var shared = stack_allocation[WARPS * rows * width, Float, address_space=AddressSpace.SHARED]()
    var lane = Int(lane_id())
    var part = lane % lanes * load  # of the head
    var warp_index = Int(thread_idx.x) // WARP_SIZE
    var scale = rsqrt(Float(head_dim))

    var keys = Array[Stored, ROUNDS](fill=Stored(0))
    var values = Array[Stored, ROUNDS](fill=Stored(0))

    var stored = end - 1 if indirect else end

    @always_inline
    def fetch(first: Int) {mut keys, mut values, imm}:
        """Read the keys from `first` on, and their values, as far as they are stored."""
        if first >= stored:
            return
        comptime for i in range(ROUNDS):
            var t = min(first + i * beside + lane // lanes, stored - 1)
            var offset = t * key_stride + part
            comptime if indirect:
                offset += Int(holders[unsafe_offset=t]) * row_stride
            keys[i] = changing(k).unsafe_load[width=load, alignment=16](offset)
            values[i] = changing(v).unsafe_load[width=load, alignment=16](offset)

    var first = begin + warp_index * of_warp
    fetch(first)
    comptime if overlaps:
        wait_for_last()

    @always_inline
    def load_query(row: Int) {imm} -> SIMD[of_q, load]:
        return changing(q).unsafe_load[width=load, alignment=16](row * q_stride + part)

    var queries = Array[Floats, rows](fill=Floats(0))
    comptime for r in range(rows):
        queries[r] = load_query(min(r, m - 1)).cast[DType.float32]() * scale
    var latest_key = Stored(0)
    var latest_value = Stored(0)
    comptime if indirect:
        latest_key = load_query(1).cast[of_kv]()
        latest_value = load_query(2).cast[of_kv]()
    var tops = Array[Float, rows](fill=LOWEST)
    var totals = Array[Float, rows](fill=0)
    var sums = Array[Floats, rows](fill=Floats(0))

    while first < end:
        comptime if indirect:
            comptime for i in range(ROUNDS):
                if first + i * beside + lane // lanes >= stored:
                    keys[i] = latest_key
                    values[i] = latest_value
        var weights = Array[Float, ROUNDS * rows](fill=LOWEST)  # scores at first
        comptime for i in range(ROUNDS):
            var key = keys[i].cast[DType.float32]()
            var is_there = first + i * beside + lane // lanes < end
            comptime for r in range(rows):
                var product = warp.lane_group_sum[num_lanes=lanes]((key * queries[r]).reduce_add())
                if is_there:
                    weights[i * rows + r] = product
        comptime for r in range(rows):
            var top = tops[r]
            comptime for i in range(ROUNDS):
                top = max(top, weights[i * rows + r])
            top = across["max", lanes](top)
            var shrink = exp(tops[r] - top)
            tops[r] = top
            totals[r] *= shrink
            sums[r] *= shrink
        comptime for i in range(ROUNDS):
            var value = values[i].cast[DType.float32]()
            var is_there = first + i * beside + lane // lanes < end
            comptime for r in range(rows):
                var weight = exp(weights[i * rows + r] - tops[r]) if is_there else Float(0)
                totals[r] += weight
                sums[r] = value.fma(Floats(weight), sums[r])
        first += WARPS * of_warp
        fetch(first)

    comptime for r in range(rows):
        var place = shared.unsafe_offset((warp_index * rows + r) * width)
        var total = across["sum", lanes](totals[r])
        comptime for i in range(load):
            var sum = across["sum", lanes](sums[r][i])
            if lane < lanes:
                place[unsafe_offset = part + i] = sum
        if lane == 0:
            place[unsafe_offset=head_dim] = tops[r]
            place[unsafe_offset = head_dim + 1] = total
    barrier()

    for i in range(Int(thread_idx.x), m * head_dim, THREADS):
        var r = i // head_dim
        var top = LOWEST
        comptime for w in range(WARPS):
            top = max(top, shared[unsafe_offset = (w * rows + r) * width + head_dim])
        var total = Float(0)
        var sum = Float(0)
        comptime for w in range(WARPS):
            var of_one = (w * rows + r) * width
            var weight = exp(shared[unsafe_offset = of_one + head_dim] - top)
            total = weight.fma(shared[unsafe_offset = of_one + head_dim + 1], total)
            sum = weight.fma(shared[unsafe_offset = of_one + i % head_dim], sum)
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
    y: Pointer[mut=True, Float, ...],
    qkv: Pointer[Float, ...],
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
    var last = Int(changing(positions)[unsafe_offset=b])
    var holder = holders.unsafe_offset(b * n_text_ctx)
    var source = qkv.unsafe_offset(b * 3 * n_state + head)
    attend_block[1, head_dim, indirect=True, partial=False, overlaps=True](
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
    var latest = last * key_stride + Int(holder[unsafe_offset=last]) * n_state
    for i in range(Int(thread_idx.x), head_dim, THREADS):
        keys[unsafe_offset = latest + i] = changing(source)[unsafe_offset = n_state + i].cast[of_kv]()
        values[unsafe_offset = latest + i] = changing(source)[unsafe_offset = 2 * n_state + i].cast[of_kv]()


@always_inline
def cross_attention_block[
    of_kv: DType, //, rows: Int, head_dim: Int
](
    parts: Pointer[mut=True, Float, ...],
    q: Pointer[mut=False, Float, ...],
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
    attend_block[rows, head_dim, indirect=False, partial=True, overlaps=True](
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
    y: Pointer[mut=True, Float, ...],
    parts: Pointer[Float, ...],
    n_group: Int,
    n_head: Int,
    n_parts: Int,
):
    """Merge the parts that `cross_attention_block` left of one window's head."""
    wait_for_last()
    comptime width = head_dim + 2
    var head = Int(block_idx.x)  # of all windows
    var of_head = changing(parts).unsafe_offset(head * n_parts * n_group * width)
    for i in range(Int(thread_idx.x), n_group * head_dim, THREADS):
        var row = i // head_dim
        var top = LOWEST
        for part in range(n_parts):
            top = max(top, of_head[unsafe_offset = (part * n_group + row) * width + head_dim])
        var total = Float(0)
        var sum = Float(0)
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
    y: Pointer[mut=True, Float, ...],
    qkv: Pointer[Float, ...],
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

    ctx.enqueue_function(kernel, grid_dim=(batch, n_state // head_dim), block_dim=THREADS, attributes=early())


@always_inline
def cross_attention_parts[
    of_kv: DType, //, head_dim: Int
](
    parts: Pointer[mut=True, Float, ...],
    q: Pointer[mut=False, Float, ...],
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

                ctx.enqueue_function(
                    kernel,
                    grid_dim=(ceildiv(n_keys, KEYS), n_audio * n_head),
                    block_dim=THREADS,
                    attributes=early(),
                )


@always_inline
def merge_parts[
    head_dim: Int
](
    y: Pointer[mut=True, Float, ...],
    parts: Pointer[mut=False, Float, ...],
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

    ctx.enqueue_function(kernel, grid_dim=n_heads, block_dim=THREADS, attributes=early())
