"""Attention of many tokens on the tensor cores of a GPU: a warp takes 16 queries of a head through all keys."""

from max.gpu import WARP_SIZE, barrier, block_idx, lane_id, thread_idx
from max.gpu.host import DeviceContext
from max.gpu.memory import async_copy_commit_group, async_copy_wait_group
from max.gpu.primitives import warp
from std.math import ceildiv, rsqrt
from std.sys import llvm_intrinsic

from .gpu_tensor import CHUNK, Sums, Tile, add_product
from .vectors import Float

comptime THREADS = 128
comptime QUERIES = 64  # of a block, 16 of each warp
comptime KEYS = 64  # of a tile
comptime LOWEST = Float.MIN_FINITE
comptime LOG2_E = 1.4426950408889634


@always_inline
def power_of_two(x: Float) -> Float:
    """Return 2 to the power of x, or zero where it would be denormal: one instruction, where `exp2` takes five."""
    return llvm_intrinsic["llvm.nvvm.ex2.approx.ftz.f", Float, has_side_effect=False](x)


@always_inline
def tensor_flash_block[
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
    comptime assert head_dim == 64, "tiles have the rows of a head of 64 values"
    comptime Part = Tile[type, KEYS, head_dim]
    var queries = Part(Part.allocate[1]())
    var ks = Part.allocate[2]()
    var vs = Part.allocate[2]()
    var thread = Int(thread_idx.x)
    var lane = Int(lane_id())
    var first_of_warp = thread // WARP_SIZE * 16
    var head = Int(block_idx.y)  # of all audios
    var first = Int(block_idx.x) * QUERIES
    var n_state = n_head * head_dim
    var of_head = head // n_head * n_queries * n_state + head % n_head * head_dim  # in q and y

    # What a thread brings of a tile: a chunk of each of these rows.
    comptime brings = Part.SIZE // CHUNK // THREADS
    var chunk = thread % (head_dim // CHUNK)
    var first_row = thread // (head_dim // CHUNK)
    comptime stride = KEYS // brings
    var from_keys = keys.unsafe_offset(head * n_keys * head_dim + chunk * CHUNK)
    var from_values = values.unsafe_offset(head * n_keys * head_dim + chunk * CHUNK)

    @always_inline
    def fetch(tile: Int) {imm}:
        """Begin to copy a tile of keys and values."""
        var stage = tile % 2 * Part.SIZE
        comptime for i in range(brings):
            var row = first_row + i * stride
            var at = Int(min(Int32(tile * KEYS + row), Int32(n_keys - 1)) * Int32(head_dim))
            Part(ks.unsafe_offset(stage)).fetch(row, chunk, from_keys.unsafe_offset(at))
            Part(vs.unsafe_offset(stage)).fetch(row, chunk, from_values.unsafe_offset(at))

    comptime for i in range(brings):
        var row = first_row + i * stride
        var query = min(first + row, n_queries - 1)
        queries.fetch(row, chunk, q.unsafe_offset(of_head + query * n_state + chunk * CHUNK))
    fetch(0)
    async_copy_commit_group()

    # A lane has two queries, lane // 4 and the one 8 behind it, of which four lanes share keys and the head.
    comptime depths = head_dim // 16
    comptime columns = KEYS // 8
    var scale = rsqrt(Float(head_dim)) * LOG2_E  # weights are powers of two
    var lefts = Array[SIMD[type, 8], depths](fill=SIMD[type, 8](0))
    var tops = Array[Float, 2](fill=LOWEST)
    var totals = Array[Float, 2](fill=0)
    var sums = Array[Sums, head_dim // 8](fill=Sums(0))
    var n_tiles = ceildiv(n_keys, KEYS)
    for tile in range(n_tiles):
        async_copy_wait_group(0)
        barrier()  # the tile has come for all, and the one before it is not needed any more
        if tile + 1 < n_tiles:
            fetch(tile + 1)
        async_copy_commit_group()
        if tile == 0:
            comptime for d in range(depths):
                lefts[d] = queries.left(first_of_warp, d * 16)
        var k = Part(ks.unsafe_offset(tile % 2 * Part.SIZE))
        var v = Part(vs.unsafe_offset(tile % 2 * Part.SIZE))

        var scores = Array[Sums, columns](fill=Sums(0))
        comptime for d in range(depths):
            comptime for c in range(0, columns, 2):
                var rights = k.right(c * 8, d * 16)
                add_product(scores[c], lefts[d], rights.slice[4]())
                add_product(scores[c + 1], lefts[d], rights.slice[4, offset=4]())

        if (tile + 1) * KEYS > n_keys:
            comptime for c in range(columns):
                comptime for i in range(4):
                    if tile * KEYS + c * 8 + lane % 4 * 2 + i % 2 >= n_keys:
                        scores[c][i] = LOWEST
        comptime for half in range(2):
            var top = tops[half]
            comptime for c in range(columns):
                top = max(top, max(scores[c][2 * half], scores[c][2 * half + 1]))
            comptime for step in [1, 2]:
                top = max(top, warp.shuffle_xor(top, UInt32(step)))
            var shrink = power_of_two((tops[half] - top) * scale)
            var offset = -top * scale
            tops[half] = top
            totals[half] *= shrink
            comptime for c in range(columns):
                comptime for i in range(2):
                    scores[c][2 * half + i] = power_of_two(scores[c][2 * half + i].fma(scale, offset))
                    totals[half] += scores[c][2 * half + i]
            comptime for d in range(head_dim // 8):
                sums[d][2 * half] *= shrink
                sums[d][2 * half + 1] *= shrink

        # A lane has of two sums what it has of a left factor, in the same order.
        comptime for depth in range(KEYS // 16):
            var weights = scores[2 * depth].join(scores[2 * depth + 1]).cast[type]()
            comptime for d in range(0, head_dim // 8, 2):
                var rights = v.right_of_columns(depth * 16, d * 8)
                add_product(sums[d], weights, rights.slice[4]())
                add_product(sums[d + 1], weights, rights.slice[4, offset=4]())
    async_copy_wait_group(0)

    comptime for half in range(2):
        comptime for step in [1, 2]:
            totals[half] += warp.shuffle_xor(totals[half], UInt32(step))
        var query = first + first_of_warp + half * 8 + lane // 4
        if query < n_queries:
            comptime for d in range(head_dim // 8):
                var mean = sums[d].slice[2, offset = 2 * half]() / totals[half]
                y.unsafe_store[alignment=4](of_head + query * n_state + d * 8 + lane % 4 * 2, mean.cast[type]())


@always_inline
def tensor_flash_on_gpu[
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
    """Launch `tensor_flash_block`."""
    var n_head_ = Int32(n_head)
    var n_queries_ = Int32(n_queries)
    var n_keys_ = Int32(n_keys)

    def kernel() {var}:
        tensor_flash_block[head_dim](y, q, keys, values, Int(n_head_), Int(n_queries_), Int(n_keys_))

    ctx.enqueue_function(kernel, grid_dim=(ceildiv(n_queries, QUERIES), n_audio * n_head), block_dim=THREADS)
