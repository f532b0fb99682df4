"""Attention of many tokens on a GPU, in float32: a block takes some queries of a head through all keys, tile by tile."""

from max.gpu import barrier, block_idx, thread_idx
from max.gpu.host import DeviceContext
from max.gpu.memory import AddressSpace
from max.gpu.primitives import warp
from std.math import ceildiv, exp, rsqrt
from std.memory import stack_allocation

from .gpu_attend import attend_block
from .vectors import Float

comptime THREADS = 256  # 16 by 16: four queries, and a sixteenth of the keys or of the head
comptime QUERIES = 64  # of a block
comptime KEYS = 32  # of a tile
comptime STRIDE = QUERIES + 4  # against conflicts of banks
comptime LOWEST = Float.MIN_FINITE
comptime Four = SIMD[DType.float32, 4]


@always_inline
def flash_block[
    type: DType, //, head_dim: Int
](
    y: Pointer[mut=True, Scalar[type], ...],
    q: Pointer[mut=False, Scalar[type], ...],
    keys: Pointer[mut=False, Scalar[type], ...],
    values: Pointer[mut=False, Scalar[type], ...],
    n_head: Int,
    n_queries: Int,
    n_keys: Int,
):
    """Attend with `QUERIES` queries of one head, see `Attention`."""
    comptime assert head_dim % 16 == 0, "a head is not shared evenly by the threads"
    comptime parts = head_dim // 16
    var qs = stack_allocation[head_dim * STRIDE, Float, address_space=AddressSpace.SHARED, alignment=16]()
    var ks = stack_allocation[head_dim * (KEYS + 1), Float, address_space=AddressSpace.SHARED, alignment=16]()
    var vs = stack_allocation[KEYS * head_dim, Float, address_space=AddressSpace.SHARED, alignment=16]()
    var ps = stack_allocation[KEYS * STRIDE, Float, address_space=AddressSpace.SHARED, alignment=16]()
    var thread = Int(thread_idx.x)
    var x = thread % 16
    var row = thread // 16 * 4
    var head = Int(block_idx.y)  # of all audios
    var n_state = n_head * head_dim
    var first = Int(block_idx.x) * QUERIES
    var of_audio = head // n_head * n_queries
    var in_row = head % n_head * head_dim
    var scale = rsqrt(Float(head_dim))

    for i in range(thread, QUERIES * head_dim, THREADS):
        var query = min(first + i // head_dim, n_queries - 1)
        qs[unsafe_offset = i % head_dim * STRIDE + i // head_dim] = (
            q[unsafe_offset = (of_audio + query) * n_state + in_row + i % head_dim].cast[DType.float32]() * scale
        )

    var tops = Array[Float, 4](fill=LOWEST)
    var totals = Array[Float, 4](fill=0)
    var sums = Array[Four, parts](fill=Four(0))  # of four queries each
    for begin in range(0, n_keys, KEYS):
        barrier()  # the tile before has been read
        for i in range(thread, KEYS * head_dim, THREADS):
            var at = (head * n_keys + min(begin + i // head_dim, n_keys - 1)) * head_dim + i % head_dim
            ks[unsafe_offset = i % head_dim * (KEYS + 1) + i // head_dim] = keys[unsafe_offset=at].cast[DType.float32]()
            vs[unsafe_offset=i] = values[unsafe_offset=at].cast[DType.float32]()
        barrier()

        comptime columns = KEYS // 16
        var scores = Array[Four, columns](fill=Four(0))
        comptime for d in range(head_dim):
            var queries = qs.unsafe_load[width=4, alignment=16](d * STRIDE + row)
            comptime for c in range(columns):
                scores[c] = queries.fma(Four(ks[unsafe_offset = d * (KEYS + 1) + c * 16 + x]), scores[c])

        var shrink = Four(0)
        comptime for r in range(4):
            var top = tops[r]
            comptime for c in range(columns):
                if begin + c * 16 + x < n_keys:
                    top = max(top, scores[c][r])
            comptime for step in [8, 4, 2, 1]:  # among the 16 threads of these queries
                top = max(top, warp.shuffle_xor(top, UInt32(step)))
            var total = Float(0)
            comptime for c in range(columns):
                var weight = Float(0)
                if begin + c * 16 + x < n_keys:
                    weight = exp(scores[c][r] - top)
                total += weight
                ps[unsafe_offset = (c * 16 + x) * STRIDE + row + r] = weight
            comptime for step in [8, 4, 2, 1]:
                total += warp.shuffle_xor(total, UInt32(step))
            shrink[r] = exp(tops[r] - top)
            totals[r] = totals[r] * shrink[r] + total
            tops[r] = top
        barrier()

        comptime for p in range(parts):
            sums[p] *= shrink
        for t in range(KEYS):
            var weights = ps.unsafe_load[width=4, alignment=16](t * STRIDE + row)
            comptime for p in range(parts):
                sums[p] = weights.fma(Four(vs[unsafe_offset = t * head_dim + p * 16 + x]), sums[p])

    comptime for r in range(4):
        if first + row + r < n_queries:
            comptime for p in range(parts):
                var at = (of_audio + first + row + r) * n_state + in_row + p * 16 + x
                y[unsafe_offset=at] = (sums[p][r] / totals[r]).cast[type]()


@always_inline
def flash_on_gpu[
    type: DType, //, head_dim: Int
](
    y: Pointer[mut=True, Scalar[type], ...],
    q: Pointer[mut=False, Scalar[type], ...],
    keys: Pointer[mut=False, Scalar[type], ...],
    values: Pointer[mut=False, Scalar[type], ...],
    n_audio: Int,
    n_head: Int,
    n_queries: Int,
    n_keys: Int,
    ctx: DeviceContext,
) raises:
    """Launch `flash_block`."""
    var n_head_ = Int32(n_head)
    var n_queries_ = Int32(n_queries)
    var n_keys_ = Int32(n_keys)

    def kernel() {var}:
        flash_block[head_dim](y, q, keys, values, Int(n_head_), Int(n_queries_), Int(n_keys_))

    ctx.enqueue_function(kernel, grid_dim=(ceildiv(n_queries, QUERIES), n_audio * n_head), block_dim=THREADS)


@always_inline
def store_block[
    type: DType, of_kv: DType, //
](
    qkv: Pointer[mut=False, Scalar[type], ...],
    keys: Pointer[mut=True, Scalar[of_kv], ...],
    values: Pointer[mut=True, Scalar[of_kv], ...],
    n_before: Int,
    batch: Int,
    n_copies: Int,
    n_tokens: Int,
    n_state: Int,
):
    """Write the keys and values of one token of one sequence to the cache, after the `n_before` that it holds."""
    var token = Int(block_idx.x)
    var b = Int(block_idx.y)
    var source = (b * n_tokens + token) * 3 * n_state
    var target = ((n_before + token) * batch + b) * n_copies * n_state
    for i in range(Int(thread_idx.x), n_state, THREADS):
        keys[unsafe_offset = target + i] = qkv[unsafe_offset = source + n_state + i].cast[of_kv]()
        values[unsafe_offset = target + i] = qkv[unsafe_offset = source + 2 * n_state + i].cast[of_kv]()


@always_inline
def causal_block[
    type: DType, of_kv: DType, //, head_dim: Int
](
    y: Pointer[mut=True, Scalar[type], ...],
    qkv: Pointer[mut=False, Scalar[type], ...],
    keys: Pointer[mut=False, Scalar[of_kv], ...],
    values: Pointer[mut=False, Scalar[of_kv], ...],
    n_before: Int,
    batch: Int,
    n_copies: Int,
    n_tokens: Int,
    n_state: Int,
):
    """Attend with one head of one token to all that does not come after it."""
    var token = Int(block_idx.x)
    var b = Int(block_idx.y)
    var head = Int(block_idx.z) * head_dim
    attend_block[1, head_dim, indirect=False, partial=False, overlaps=False](
        y.unsafe_offset((b * n_tokens + token) * n_state + head),
        qkv.unsafe_offset((b * n_tokens + token) * 3 * n_state + head),
        keys.unsafe_offset(b * n_copies * n_state + head),
        values.unsafe_offset(b * n_copies * n_state + head),
        qkv,  # no holders
        1,
        n_state,
        batch * n_copies * n_state,
        0,
        0,
        n_before + token + 1,
    )


@always_inline
def causal_attention_on_gpu[
    type: DType, of_kv: DType, //, head_dim: Int
](
    y: Pointer[mut=True, Scalar[type], ...],
    qkv: Pointer[mut=False, Scalar[type], ...],
    keys: Pointer[mut=True, Scalar[of_kv], ...],
    values: Pointer[mut=True, Scalar[of_kv], ...],
    n_filled: Int,
    batch: Int,
    n_copies: Int,
    n_tokens: Int,
    n_state: Int,
    ctx: DeviceContext,
) raises:
    """Launch `store_block`, and then `causal_block`."""
    var n_before = Int32(n_filled - n_tokens)
    var batch_ = Int32(batch)
    var n_copies_ = Int32(n_copies)
    var n_tokens_ = Int32(n_tokens)
    var n_state_ = Int32(n_state)

    def store() {var}:
        store_block(qkv, keys, values, Int(n_before), Int(batch_), Int(n_copies_), Int(n_tokens_), Int(n_state_))

    def attend() {var}:
        causal_block[head_dim](
            y, qkv, keys, values, Int(n_before), Int(batch_), Int(n_copies_), Int(n_tokens_), Int(n_state_)
        )

    ctx.enqueue_function(store, grid_dim=(n_tokens, batch), block_dim=THREADS)
    ctx.enqueue_function(attend, grid_dim=(n_tokens, batch, n_state // head_dim), block_dim=THREADS)
