"""The search over the vocabulary on a GPU: many blocks filter and rank parts of each row, and one block merges them."""

from max.gpu import WARP_SIZE, barrier, block_idx, lane_id, thread_idx
from max.gpu.host import DeviceContext
from max.gpu.memory import AddressSpace
from max.gpu.primitives import warp
from std.math import ceildiv, exp, log
from std.memory import stack_allocation

from .gpu_overlap import changing, early, wait_for_last
from .noise import gumbel
from .vectors import Float

comptime THREADS = 256
comptime WARPS = THREADS // WARP_SIZE
comptime EACH = 8  # tokens of a thread
comptime PART = THREADS * EACH  # tokens of a block
comptime TEXT = 0  # kinds of tokens
comptime STAMPS = 1
comptime LOWEST = -Float.MAX_FINITE * 2  # minus infinity
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
    var result = shared[unsafe_offset=0]
    comptime for i in range(1, WARPS):
        comptime if operation == "max":
            result = max(result, shared[unsafe_offset=i])
        elif operation == "min":
            result = min(result, shared[unsafe_offset=i])
        else:
            result += shared[unsafe_offset=i]
    return result


@fieldwise_init
struct Best(TrivialRegisterPassable):
    """Finds the best logits one after the other: of lower value than the last, or of the same and further on."""

    var value: Float
    var token: Int32  # NOWHERE if there is none

    @staticmethod
    @always_inline
    def none_yet() -> Self:
        return Self(-LOWEST, -1)

    @always_inline
    def comes_after(self, last: Self) -> Bool:
        return self.value < last.value or (self.value == last.value and self.token > last.token)

    @always_inline
    def of_block(self) -> Self:
        """Return the best of what the threads have found, the first of equals."""
        var value = reduce_block["max"](self.value)
        return Self(value, reduce_block["min"](self.token if self.value == value else NOWHERE))


@always_inline
def search_part_block(
    totals: Pointer[mut=True, Float, ...],
    best: Pointer[mut=True, Float, ...],
    tokens: Pointer[mut=True, Int32, ...],
    logits: Pointer[mut=True, Float, ...],
    suppressed: Pointer[mut=False, Int64, ...],
    ranges: Pointer[mut=False, Int64, ...],
    temperatures: Pointer[mut=False, Float, ...],
    seeds: Pointer[mut=False, Int64, ...],
    n_vocab: Int,
    n_suppressed: Int,
    k: Int,
):
    """What the block of a row's `PART` tokens does, see `SearchParts`."""
    var part = Int(block_idx.x)
    var row = Int(block_idx.y)
    var thread = Int(thread_idx.x)
    var begin = part * PART
    var end = min(n_vocab, begin + PART)

    var hidden = stack_allocation[PART, UInt8, address_space=AddressSpace.SHARED]()
    comptime for i in range(EACH):
        hidden[unsafe_offset = i * THREADS + thread] = 0
    barrier()
    if thread < WARP_SIZE:  # one warp alone: a token may be listed twice, and warps that write one place race
        for i in range(thread, n_suppressed, WARP_SIZE):
            var token = Int(suppressed[unsafe_offset=i])
            if begin <= token < end:
                hidden[unsafe_offset = token - begin] = 1
    barrier()
    var bounds = Array[Int, 4](fill=0)  # of text and of timestamps
    comptime for i in range(4):
        bounds[i] = Int(changing(ranges)[unsafe_offset = 4 * row + i])
    var temperature = temperatures[unsafe_offset=row]
    var seed = changing(seeds)[unsafe_offset=row]
    wait_for_last()

    var values = Array[Float, EACH](fill=LOWEST)
    comptime for i in range(EACH):
        var token = begin + i * THREADS + thread
        if token < end:
            values[i] = logits[unsafe_offset = row * n_vocab + token]
    var scores = values.copy()
    if temperature != 0:
        comptime for i in range(EACH):
            scores[i] += temperature * gumbel(seed, begin + i * THREADS + thread)

    comptime for kind in [TEXT, STAMPS]:
        var first = bounds[2 * kind]
        var last = bounds[2 * kind + 1]
        var is_here = first < end and begin < last and first < last  # alike for all threads

        @always_inline
        def is_meant(i: Int) {imm} -> Bool:
            return first <= begin + i * THREADS + thread < last and hidden[unsafe_offset = i * THREADS + thread] == 0

        var top = LOWEST
        var total = Float(0)
        if is_here:
            comptime for i in range(EACH):
                if is_meant(i):
                    top = max(top, values[i])
            top = reduce_block["max"](top)
            comptime for i in range(EACH):
                if is_meant(i) and not values[i] == LOWEST:
                    total += exp(values[i] - top)
            total = reduce_block["sum"](total)
        var of_part = (row * ceildiv(n_vocab, PART) + part) * 2 + kind
        if thread == 0:
            totals[unsafe_offset = 2 * of_part] = top
            totals[unsafe_offset = 2 * of_part + 1] = total

        var last_best = Best.none_yet()
        for place in range(k):
            var mine = Best(LOWEST, NOWHERE)
            if is_here:
                comptime for i in range(EACH):
                    var candidate = Best(scores[i], Int32(begin + i * THREADS + thread))
                    if is_meant(i) and candidate.value > mine.value and candidate.comes_after(last_best):
                        mine = candidate
                last_best = mine.of_block()
                mine = last_best
            if thread == 0:
                best[unsafe_offset = of_part * k + place] = mine.value
                tokens[unsafe_offset = of_part * k + place] = mine.token

    comptime for i in range(EACH):
        var token = begin + i * THREADS + thread
        var is_left = bounds[0] <= token < bounds[1] or bounds[2] <= token < bounds[3]
        if token < end and (not is_left or hidden[unsafe_offset = i * THREADS + thread] != 0):
            logits[unsafe_offset = row * n_vocab + token] = LOWEST


@always_inline
def search_merge_block(
    ids: Pointer[mut=True, Int64, ...],
    logprobs: Pointer[mut=True, Float, ...],
    logits: Pointer[mut=True, Float, ...],
    totals: Pointer[mut=False, Float, ...],
    best: Pointer[mut=False, Float, ...],
    tokens: Pointer[mut=False, Int32, ...],
    ranges: Pointer[mut=False, Int64, ...],
    temperatures: Pointer[mut=False, Float, ...],
    n_vocab: Int,
    k: Int,
):
    """What the block of a row does, see `SearchMerge`."""
    var row = Int(block_idx.x)
    var thread = Int(thread_idx.x)
    var n_parts = ceildiv(n_vocab, PART)
    var of_row = row * n_parts * 2
    var totals_ = changing(totals)
    var best_ = changing(best)
    var tokens_ = changing(tokens)
    var ranges_ = changing(ranges)
    var temperature = temperatures[unsafe_offset=row]
    wait_for_last()

    @always_inline
    def top_of(kind: Int) {imm} -> Float:
        """Return the largest logit of one kind."""
        var found = LOWEST
        for part in range(thread, n_parts, THREADS):
            found = max(found, totals_[unsafe_offset = 2 * (of_row + 2 * part + kind)])
        return reduce_block["max"](found)

    @always_inline
    def sum_of_exp(kind: Int, top: Float) {imm} -> Float:
        """Return the sum of ``exp(logit - top)`` of one kind."""
        var sum = Float(0)
        for part in range(thread, n_parts, THREADS):
            var at = 2 * (of_row + 2 * part + kind)
            var of_part = totals_[unsafe_offset = at + 1]
            if of_part != 0:
                of_part *= exp(totals_[unsafe_offset=at] - top)
            sum += of_part
        return reduce_block["sum"](sum)

    var text_top = top_of(TEXT)
    var stamps_top = top_of(STAMPS)
    var top = max(text_top, stamps_top)
    var total = sum_of_exp(STAMPS, top)
    var without_text = log(total) > text_top - top  # alike for all threads
    if without_text:
        top = stamps_top
        total = sum_of_exp(STAMPS, top)
        var text_end = Int(ranges_[unsafe_offset = 4 * row + 1])
        for i in range(Int(ranges_[unsafe_offset = 4 * row]) + thread, text_end, THREADS):
            logits[unsafe_offset = row * n_vocab + i] = LOWEST
    else:
        total += sum_of_exp(TEXT, top)
    var log_total = log(total)

    var last_best = Best.none_yet()
    for place in range(k):
        var mine = Best(LOWEST, NOWHERE)
        for i in range(thread, n_parts * 2 * k, THREADS):
            if without_text and i // k % 2 == TEXT:
                continue
            var candidate = Best(best_[unsafe_offset = of_row * k + i], tokens_[unsafe_offset = of_row * k + i])
            var is_better = candidate.value > mine.value or (
                candidate.value == mine.value and candidate.token < mine.token
            )
            if candidate.value > LOWEST and is_better and candidate.comes_after(last_best):
                mine = candidate
        last_best = mine.of_block()
        if thread == 0:
            var token = Int(last_best.token) if last_best.token != NOWHERE else 0
            var logit = last_best.value
            if temperature != 0 and last_best.token != NOWHERE:
                logit = logits[unsafe_offset = row * n_vocab + token]
            ids[unsafe_offset = row * k + place] = Int64(token)
            logprobs[unsafe_offset = row * k + place] = logit - top - log_total


@always_inline
def search_parts_on_gpu(
    totals: Pointer[mut=True, Float, ...],
    best: Pointer[mut=True, Float, ...],
    tokens: Pointer[mut=True, Int32, ...],
    logits: Pointer[mut=True, Float, ...],
    suppressed: Pointer[mut=False, Int64, ...],
    ranges: Pointer[mut=False, Int64, ...],
    temperatures: Pointer[mut=False, Float, ...],
    seeds: Pointer[mut=False, Int64, ...],
    batch: Int,
    n_vocab: Int,
    n_suppressed: Int,
    k: Int,
    ctx: DeviceContext,
) raises:
    """Launch `search_part_block`."""
    var n_vocab_ = Int32(n_vocab)
    var n_suppressed_ = Int32(n_suppressed)
    var k_ = Int32(k)

    def kernel() {var}:
        search_part_block(
            totals,
            best,
            tokens,
            logits,
            suppressed,
            ranges,
            temperatures,
            seeds,
            Int(n_vocab_),
            Int(n_suppressed_),
            Int(k_),
        )

    ctx.enqueue_function(
        kernel, grid_dim=(ceildiv(n_vocab, PART), batch), block_dim=THREADS, attributes=early()
    )


@always_inline
def search_merge_on_gpu(
    ids: Pointer[mut=True, Int64, ...],
    logprobs: Pointer[mut=True, Float, ...],
    logits: Pointer[mut=True, Float, ...],
    totals: Pointer[mut=False, Float, ...],
    best: Pointer[mut=False, Float, ...],
    tokens: Pointer[mut=False, Int32, ...],
    ranges: Pointer[mut=False, Int64, ...],
    temperatures: Pointer[mut=False, Float, ...],
    batch: Int,
    n_vocab: Int,
    k: Int,
    ctx: DeviceContext,
) raises:
    """Launch `search_merge_block`."""
    var n_vocab_ = Int32(n_vocab)
    var k_ = Int32(k)

    def kernel() {var}:
        search_merge_block(
            ids, logprobs, logits, totals, best, tokens, ranges, temperatures, Int(n_vocab_), Int(k_)
        )

    ctx.enqueue_function(kernel, grid_dim=batch, block_dim=THREADS, attributes=early())
