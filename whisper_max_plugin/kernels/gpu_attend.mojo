"""What a block of a GPU attends to: its warps share the keys of one head, and then merge what they found.

Lanes side by side read a key, or a value, and multiply with their part of the query; several keys lie next to each other in a
warp.
"""

from max.gpu import WARP_SIZE, barrier, lane_id, thread_idx
from max.gpu.memory import AddressSpace
from max.gpu.primitives import warp
from std.bit import log2_floor
from std.math import exp, rsqrt
from std.memory import stack_allocation
from std.sys import size_of

from .gpu_overlap import changing, wait_for_last
from .vectors import Float

comptime WARPS = 8  # in a block
comptime THREADS = WARPS * WARP_SIZE
comptime ROUNDS = 8  # keys and values that a lane has on their way
comptime LOWEST = Float.MIN_FINITE


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
