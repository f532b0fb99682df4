"""What upstream's logit filters and search compute over the vocabulary, in three passes over a row of logits."""

import extensibility
from extensibility import InputTensor, OutputTensor
from extensibility import _MutableInputTensor as MutableInputTensor
from max.gpu.host import DeviceContext
from std.math import exp, log
from std.sys import simd_width_of

from .noise import gumbel
from .sharing import share

comptime WIDTH = simd_width_of[DType.float32]()
comptime Floats = SIMD[DType.float32, WIDTH]
comptime MINUS_INFINITY = -Scalar[DType.float32].MAX_FINITE * 2


@always_inline
def fill(row: Pointer[mut=True, Scalar[DType.float32], ...], begin: Int, end: Int):
    """Suppress the tokens from `begin` to `end`."""
    var vector_end = begin + max(end - begin, 0) // WIDTH * WIDTH
    for i in range(begin, vector_end, WIDTH):
        row.unsafe_store(i, Floats(MINUS_INFINITY))
    for i in range(vector_end, end):
        row[unsafe_offset=i] = MINUS_INFINITY


@always_inline
def largest(row: Pointer[Scalar[DType.float32], ...], begin: Int, end: Int) -> Scalar[DType.float32]:
    """Return the largest logit from `begin` to `end`."""
    var vector_end = begin + max(end - begin, 0) // WIDTH * WIDTH
    var found = Floats(MINUS_INFINITY)
    for i in range(begin, vector_end, WIDTH):
        found = max(found, row.unsafe_load[width=WIDTH](i))
    var result = found.reduce_max()
    for i in range(vector_end, end):
        result = max(result, row[unsafe_offset=i])
    return result


@always_inline
def sum_of_exp(
    row: Pointer[Scalar[DType.float32], ...], begin: Int, end: Int, top: Scalar[DType.float32]
) -> Scalar[DType.float32]:
    """Return the sum of ``exp(logit - top)`` from `begin` to `end`."""
    var vector_end = begin + max(end - begin, 0) // WIDTH * WIDTH
    var sums = Floats(0)
    for i in range(begin, vector_end, WIDTH):
        sums += exp(row.unsafe_load[width=WIDTH](i) - top)
    var result = sums.reduce_add()
    for i in range(vector_end, end):
        result += exp(row[unsafe_offset=i] - top)
    return result


@always_inline
def rank(
    ids: Pointer[mut=True, Scalar[DType.int64], ...],
    best: Pointer[mut=True, Scalar[DType.float32], ...],
    k: Int,
    row: Pointer[Scalar[DType.float32], ...],
    begin: Int,
    end: Int,
    temperature: Scalar[DType.float32],
    seed: Int64,
):
    """Merge the logits from `begin` to `end` into the `k` best, in falling order; the first of equals comes first.

    What is best is said by the logits with `temperature` times their noise.
    """

    @always_inline
    def consider(i: Int, value: Scalar[DType.float32]) {imm}:
        if not value > best[unsafe_offset = k - 1]:
            return
        var place = k - 1
        while place > 0 and value > best[unsafe_offset = place - 1]:
            best[unsafe_offset=place] = best[unsafe_offset = place - 1]
            ids[unsafe_offset=place] = ids[unsafe_offset = place - 1]
            place -= 1
        best[unsafe_offset=place] = value
        ids[unsafe_offset=place] = Int64(i)

    if temperature != 0:
        for i in range(begin, end):
            consider(i, row[unsafe_offset=i] + temperature * gumbel(seed, i))
        return
    comptime together = 4 * WIDTH  # most are not worth a closer look
    var vector_end = begin + max(end - begin, 0) // together * together
    for i in range(begin, vector_end, together):
        var found = Floats(MINUS_INFINITY)
        comptime for j in range(0, together, WIDTH):
            found = max(found, row.unsafe_load[width=WIDTH](i + j))
        if found.reduce_max() > best[unsafe_offset = k - 1]:
            for j in range(i, i + together):
                consider(j, row[unsafe_offset=j])
    for i in range(vector_end, end):
        consider(i, row[unsafe_offset=i])


@extensibility.register("whisper_search")
struct Search:
    """Filter each row of logits in place, and find its best tokens with their log-probabilities.

    ids and logprobs (batch, k), the best first; logits (batch, n_vocab); suppressed (n), tokens that no row may choose,
    negative where there is none; ranges (batch, 4): a row's tokens are those of [0] to [1], text, and of [2] to [3],
    timestamps. Where the timestamps together are likelier than any token of text, they alone are left. At a temperature
    of a row, (batch), above 0 the best are samples, without repetition, by the noise of its seed, (batch).
    """

    @staticmethod
    def execute[
        target: StaticString
    ](
        ids: MutableInputTensor[dtype=DType.int64, rank=2, ...],
        logprobs: MutableInputTensor[dtype=DType.float32, rank=2, ...],
        logits: MutableInputTensor[dtype=DType.float32, rank=2, ...],
        suppressed: InputTensor[dtype=DType.int64, rank=1, ...],
        ranges: InputTensor[dtype=DType.int64, rank=2, ...],
        temperatures: InputTensor[dtype=DType.float32, rank=1, ...],
        seeds: InputTensor[dtype=DType.int64, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "a GPU takes two operations, `SearchParts` and `SearchMerge`"
        var n_vocab = logits.dim_size(1)
        var k = ids.dim_size(1)
        var n_suppressed = suppressed.dim_size(0)
        var all_ids = ids.unsafe_ptr()
        var all_logprobs = logprobs.unsafe_ptr()
        var all_logits = logits.unsafe_ptr()
        var all_suppressed = suppressed.unsafe_ptr()
        var all_ranges = ranges.unsafe_ptr()
        var all_temperatures = temperatures.unsafe_ptr()
        var all_seeds = seeds.unsafe_ptr()

        def work(batch: Int) raises {imm}:
            var row = all_logits.unsafe_offset(batch * n_vocab)
            var text = Int(all_ranges[unsafe_offset = 4 * batch])
            var text_end = Int(all_ranges[unsafe_offset = 4 * batch + 1])
            var stamps = Int(all_ranges[unsafe_offset = 4 * batch + 2])
            var stamps_end = Int(all_ranges[unsafe_offset = 4 * batch + 3])
            fill(row, 0, text)
            fill(row, text_end, stamps)
            fill(row, stamps_end, n_vocab)
            for i in range(n_suppressed):
                var token = Int(all_suppressed[unsafe_offset=i])
                if token >= 0:
                    row[unsafe_offset=token] = MINUS_INFINITY

            var text_top = largest(row, text, text_end)
            var stamps_top = largest(row, stamps, stamps_end)
            var top = max(text_top, stamps_top)
            var total = sum_of_exp(row, stamps, stamps_end, top)
            if log(total) > text_top - top:
                fill(row, text, text_end)
                text_end = text
                top = stamps_top
                total = sum_of_exp(row, stamps, stamps_end, top)
            else:
                total += sum_of_exp(row, text, text_end, top)

            var best = all_logprobs.unsafe_offset(batch * k)
            var found = all_ids.unsafe_offset(batch * k)
            for i in range(k):
                best[unsafe_offset=i] = MINUS_INFINITY
                found[unsafe_offset=i] = 0
            var temperature = all_temperatures[unsafe_offset=batch]
            var seed = all_seeds[unsafe_offset=batch]
            rank(found, best, k, row, text, text_end, temperature, seed)
            rank(found, best, k, row, stamps, stamps_end, temperature, seed)
            var log_total = log(total)
            for i in range(k):
                var logit = best[unsafe_offset=i]
                if temperature != 0 and logit > MINUS_INFINITY:
                    logit = row[unsafe_offset = Int(found[unsafe_offset=i])]
                best[unsafe_offset=i] = logit - top - log_total

        share(work, logits.dim_size(0))
