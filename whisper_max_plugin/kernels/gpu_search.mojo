"""The search over the vocabulary on a GPU: a block for each row of logits."""

from max.gpu import WARP_SIZE, barrier, block_idx, lane_id, thread_idx
from max.gpu.host import DeviceContext
from max.gpu.memory import AddressSpace
from max.gpu.primitives import warp
from std.math import exp, log
from std.memory import stack_allocation

comptime THREADS = 1024
comptime WARPS = THREADS // WARP_SIZE
comptime LOWEST = -Scalar[DType.float32].MAX_FINITE * 2  # minus infinity
comptime NOWHERE = Int32.MAX


@always_inline
def reduce_warp[type: DType, //, operation: StaticString](value: Scalar[type]) -> Scalar[type]:
    """Return the "max", "min" or "sum" of a warp's values, to all of its threads."""
    comptime if operation == "max":
        return warp.max(value)
    elif operation == "min":
        return warp.min(value)
    else:
        return warp.sum(value)


@always_inline
def reduce_block[type: DType, //, operation: StaticString](value: Scalar[type]) -> Scalar[type]:
    """Return the "max", "min" or "sum" of all threads' values, to all."""
    var shared = stack_allocation[WARPS, Scalar[type], address_space=AddressSpace.SHARED]()
    var of_warp = reduce_warp[operation](value)
    barrier()  # whoever reads an earlier result has done so
    if Int(lane_id()) == 0:
        shared[unsafe_offset = Int(thread_idx.x) // WARP_SIZE] = of_warp
    barrier()
    return reduce_warp[operation](shared[unsafe_offset = Int(lane_id())])


@always_inline
def largest(
    row: Pointer[Scalar[DType.float32], ...], begin: Int, end: Int, lane: Int
) -> Scalar[DType.float32]:
    """Return the largest logit from `begin` to `end`."""
    var found = LOWEST
    for i in range(begin + lane, end, THREADS):
        found = max(found, row[unsafe_offset=i])
    return reduce_block["max"](found)


@always_inline
def sum_of_exp(
    row: Pointer[Scalar[DType.float32], ...], begin: Int, end: Int, top: Scalar[DType.float32], lane: Int
) -> Scalar[DType.float32]:
    """Return the sum of ``exp(logit - top)`` from `begin` to `end`."""
    var sum = Scalar[DType.float32](0)
    for i in range(begin + lane, end, THREADS):
        sum += exp(row[unsafe_offset=i] - top)
    return reduce_block["sum"](sum)


@always_inline
def search_block(
    ids: Pointer[mut=True, Scalar[DType.int64], ...],
    logprobs: Pointer[mut=True, Scalar[DType.float32], ...],
    logits: Pointer[mut=True, Scalar[DType.float32], ...],
    suppressed: Pointer[Scalar[DType.int64], ...],
    ranges: Pointer[Scalar[DType.int64], ...],
    n_vocab: Int,
    n_suppressed: Int,
    k: Int,
):
    """What the block of one row does, see `Search`."""
    var batch = Int(block_idx.x)
    var lane = Int(thread_idx.x)
    var row = logits.unsafe_offset(batch * n_vocab)
    var text = Int(ranges[unsafe_offset = 4 * batch])
    var text_end = Int(ranges[unsafe_offset = 4 * batch + 1])
    var stamps = Int(ranges[unsafe_offset = 4 * batch + 2])
    var stamps_end = Int(ranges[unsafe_offset = 4 * batch + 3])
    for i in range(lane, n_vocab, THREADS):
        if not (text <= i < text_end or stamps <= i < stamps_end):
            row[unsafe_offset=i] = LOWEST
    barrier()
    if lane < WARP_SIZE:  # one warp alone: a token may be listed twice, and warps that write one place race
        for i in range(lane, n_suppressed, WARP_SIZE):
            var token = Int(suppressed[unsafe_offset=i])
            if token >= 0:
                row[unsafe_offset=token] = LOWEST
    barrier()

    var text_top = largest(row, text, text_end, lane)
    var stamps_top = largest(row, stamps, stamps_end, lane)
    var top = max(text_top, stamps_top)
    var total = sum_of_exp(row, stamps, stamps_end, top, lane)
    if log(total) > text_top - top:  # alike for all threads
        for i in range(text + lane, text_end, THREADS):
            row[unsafe_offset=i] = LOWEST
        text_end = text
        top = stamps_top
        total = sum_of_exp(row, stamps, stamps_end, top, lane)
    else:
        total += sum_of_exp(row, text, text_end, top, lane)
    var log_total = log(total)

    # Each round finds the best of what comes after the last: of lower value, or of the same and further on.
    var bound = -LOWEST
    var after = Int32(-1)
    for place in range(k):
        var best = LOWEST
        var found = NOWHERE

        @always_inline
        def consider(begin: Int, end: Int) {mut best, mut found, imm}:
            for i in range(begin + lane, end, THREADS):
                var value = row[unsafe_offset=i]
                if value > best and (value < bound or (value == bound and Int32(i) > after)):
                    best = value
                    found = Int32(i)

        consider(text, text_end)
        consider(stamps, stamps_end)
        bound = reduce_block["max"](best)
        after = reduce_block["min"](found if best == bound else NOWHERE)
        if lane == 0:
            ids[unsafe_offset = batch * k + place] = Int64(after if after != NOWHERE else 0)
            logprobs[unsafe_offset = batch * k + place] = bound - top - log_total


@always_inline
def search_on_gpu(
    ids: Pointer[mut=True, Scalar[DType.int64], ...],
    logprobs: Pointer[mut=True, Scalar[DType.float32], ...],
    logits: Pointer[mut=True, Scalar[DType.float32], ...],
    suppressed: Pointer[Scalar[DType.int64], ...],
    ranges: Pointer[Scalar[DType.int64], ...],
    batch: Int,
    n_vocab: Int,
    n_suppressed: Int,
    k: Int,
    ctx: DeviceContext,
) raises:
    """Launch `search_block`."""
    var n_vocab_ = Int32(n_vocab)
    var n_suppressed_ = Int32(n_suppressed)
    var k_ = Int32(k)

    def kernel() {var}:
        search_block(ids, logprobs, logits, suppressed, ranges, Int(n_vocab_), Int(n_suppressed_), Int(k_))

    ctx.enqueue_function(kernel, grid_dim=batch, block_dim=THREADS)
