"""Attention of one token on a GPU: to the text so far, and to the audio, whose keys several blocks share."""

from max.gpu import block_idx, thread_idx
from max.gpu.host import DeviceContext
from std.math import ceildiv, exp

from .gpu_attend import LOWEST, THREADS, attend_block
from .gpu_overlap import changing, early, wait_for_last
from .memory import Places, Table
from .vectors import Float

comptime KEYS = 256  # of a window, that one block attends to
comptime GROUP = 5  # queries that read keys and values together: the beams of one window


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
