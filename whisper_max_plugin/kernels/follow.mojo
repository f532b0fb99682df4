"""What follows from a step's best tokens, so that the next step needs nothing from the host."""

import extensibility
from extensibility import InputTensor
from extensibility import _MutableInputTensor as MutableInputTensor
from max.gpu import WARP_SIZE, thread_idx
from max.gpu.host import DeviceContext

from .gpu_overlap import changing, early, wait_for_last


@always_inline
def follow_row(
    tokens: Pointer[mut=True, Scalar[DType.int64], ...],
    positions: Pointer[mut=True, Scalar[DType.int64], ...],
    ranges: Pointer[mut=True, Scalar[DType.int64], ...],
    stamps: Pointer[mut=True, Scalar[DType.int64], ...],
    seeds: Pointer[mut=True, Scalar[DType.int64], ...],
    chosen: Pointer[mut=True, Scalar[DType.int64], ...],
    chosen_logprobs: Pointer[mut=True, Scalar[DType.float32], ...],
    ids: Pointer[Scalar[DType.int64], ...],
    logprobs: Pointer[Scalar[DType.float32], ...],
    rules: Pointer[Scalar[DType.int64], ...],
    row: Int,
    batch: Int,
    k: Int,
):
    """What `Follow` does for one sequence."""
    var position = Int(positions[unsafe_offset=row])
    positions[unsafe_offset=row] = Int64(position + 1)
    seeds[unsafe_offset=row] += 1
    var eot = rules[unsafe_offset=0]
    var begin = rules[unsafe_offset=1]
    var end = rules[unsafe_offset=2]
    var last = tokens[unsafe_offset=row]
    var token = eot if last == eot else ids[unsafe_offset = row * k]
    tokens[unsafe_offset=row] = token
    chosen[unsafe_offset = position * batch + row] = token
    chosen_logprobs[unsafe_offset = position * batch + row] = logprobs[unsafe_offset = row * k]

    var text = Int64(0)
    var first_stamp = begin
    if token >= begin:
        stamps[unsafe_offset=row] = token
        if last >= begin:  # a pair of timestamps is complete: text has to follow
            end = begin
        else:  # text cannot follow
            text = eot
            first_stamp = token
    elif stamps[unsafe_offset=row] >= 0:  # timestamps do not decrease, and segments are not empty
        first_stamp = stamps[unsafe_offset=row] + 1
    ranges[unsafe_offset = 4 * row] = text
    ranges[unsafe_offset = 4 * row + 1] = begin
    ranges[unsafe_offset = 4 * row + 2] = first_stamp
    ranges[unsafe_offset = 4 * row + 3] = end


@always_inline
def follow_block(
    tokens: Pointer[mut=True, Scalar[DType.int64], ...],
    positions: Pointer[mut=True, Scalar[DType.int64], ...],
    ranges: Pointer[mut=True, Scalar[DType.int64], ...],
    stamps: Pointer[mut=True, Scalar[DType.int64], ...],
    seeds: Pointer[mut=True, Scalar[DType.int64], ...],
    chosen: Pointer[mut=True, Scalar[DType.int64], ...],
    chosen_logprobs: Pointer[mut=True, Scalar[DType.float32], ...],
    ids: Pointer[Scalar[DType.int64], ...],
    logprobs: Pointer[Scalar[DType.float32], ...],
    rules: Pointer[Scalar[DType.int64], ...],
    batch: Int,
    k: Int,
):
    """What one warp of a GPU does for all sequences, see `Follow`."""
    wait_for_last()
    for row in range(Int(thread_idx.x), batch, WARP_SIZE):
        follow_row(
            tokens,
            positions,
            ranges,
            stamps,
            seeds,
            chosen,
            chosen_logprobs,
            changing(ids),
            changing(logprobs),
            rules,
            row,
            batch,
            k,
        )


@extensibility.register("whisper_follow")
struct Follow:
    """Let every sequence continue with the token that was found best, or sampled, as ``GreedyDecoder`` does.

    It writes what the next step reads: tokens (n_audio, n_group); positions (batch), of these tokens; ranges (batch, 4),
    what may follow, as ``ApplyTimestampRules`` says of sequences of which two tokens at least were sampled; stamps
    (batch), the latest timestamp of each, negative where there was none; seeds (batch), of other noise. And what the host
    reads when it looks: chosen and chosen_logprobs (n_text_ctx, batch), at the position of the token before. It reads ids
    and logprobs (batch, k) and rules (3): the token that ends a text, the first timestamp, the end of the vocabulary.
    """

    @staticmethod
    def execute[
        target: StaticString
    ](
        tokens: MutableInputTensor[dtype=DType.int64, rank=2, ...],
        positions: MutableInputTensor[dtype=DType.int64, rank=1, ...],
        ranges: MutableInputTensor[dtype=DType.int64, rank=2, ...],
        stamps: MutableInputTensor[dtype=DType.int64, rank=1, ...],
        seeds: MutableInputTensor[dtype=DType.int64, rank=1, ...],
        chosen: MutableInputTensor[dtype=DType.int64, rank=2, ...],
        chosen_logprobs: MutableInputTensor[dtype=DType.float32, rank=2, ...],
        ids: MutableInputTensor[dtype=DType.int64, rank=2, ...],
        logprobs: MutableInputTensor[dtype=DType.float32, rank=2, ...],
        rules: InputTensor[dtype=DType.int64, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        var batch = ids.dim_size(0)
        var k = ids.dim_size(1)
        var tokens_ = tokens.unsafe_ptr()
        var positions_ = positions.unsafe_ptr()
        var ranges_ = ranges.unsafe_ptr()
        var stamps_ = stamps.unsafe_ptr()
        var seeds_ = seeds.unsafe_ptr()
        var chosen_ = chosen.unsafe_ptr()
        var chosen_logprobs_ = chosen_logprobs.unsafe_ptr()
        var ids_ = ids.unsafe_ptr()
        var logprobs_ = logprobs.unsafe_ptr()
        var rules_ = rules.unsafe_ptr()

        comptime if target == "cpu":
            for row in range(batch):
                follow_row(
                    tokens_,
                    positions_,
                    ranges_,
                    stamps_,
                    seeds_,
                    chosen_,
                    chosen_logprobs_,
                    ids_,
                    logprobs_,
                    rules_,
                    row,
                    batch,
                    k,
                )
        else:
            var n = Int32(batch)
            var n_candidates = Int32(k)

            def kernel() {var}:
                follow_block(
                    tokens_,
                    positions_,
                    ranges_,
                    stamps_,
                    seeds_,
                    chosen_,
                    chosen_logprobs_,
                    ids_,
                    logprobs_,
                    rules_,
                    Int(n),
                    Int(n_candidates),
                )

            ctx.enqueue_function(kernel, grid_dim=1, block_dim=WARP_SIZE, attributes=early())
