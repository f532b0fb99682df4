"""Attention of many tokens as operations of graphs."""

import extensibility
from extensibility import InputTensor, OutputTensor
from extensibility import _MutableInputTensor as MutableInputTensor
from max.gpu.host import DeviceContext
from std.math import ceildiv

from .attention import GROUP as FEW
from .attention import attend
from .flash import attend_many
from .gemm import PANEL
from .gpu_flash import causal_attention_on_gpu, flash_on_gpu
from .gpu_tensor_flash import tensor_flash_on_gpu
from .sharing import n_cores, share
from .vectors import WIDTH, numbers, results, unread


@extensibility.register("whisper_attention")
struct Attention[head_dim: Int]:
    """Attend with many queries of each audio to its keys and values.

    y and q (n_audio, n_queries, n_state); keys and values (n_audio, n_head, n_keys, head_dim).
    """

    @staticmethod
    def execute[
        type: DType, of_kv: DType, target: StaticString
    ](
        y: OutputTensor[dtype=type, rank=3, ...],
        q: InputTensor[dtype=type, rank=3, ...],
        keys: InputTensor[dtype=of_kv, rank=4, ...],
        values: InputTensor[dtype=of_kv, rank=4, ...],
        ctx: DeviceContext,
    ) raises:
        var n_audio = keys.dim_size(0)
        var n_head = keys.dim_size(1)
        var n_keys = keys.dim_size(2)
        var n_queries = q.dim_size(1)
        var n_state = q.dim_size(2)
        var yp = y.unsafe_ptr()
        var qp = q.unsafe_ptr()
        var kp = keys.unsafe_ptr()
        var vp = values.unsafe_ptr()

        comptime if target != "cpu":
            comptime assert type == of_kv, "a GPU takes queries, keys and values of the same type"
            var ks = kp.unsafe_bitcast[Scalar[type]]()
            var vs = vp.unsafe_bitcast[Scalar[type]]()
            comptime if type == DType.float32:
                flash_on_gpu[Self.head_dim](yp, qp, ks, vs, n_audio, n_head, n_queries, n_keys, ctx)
            else:
                tensor_flash_on_gpu[Self.head_dim](yp, qp, ks, vs, n_audio, n_head, n_queries, n_keys, ctx)
            return

        var no_holders = unread[DType.int32](qp)
        var n_panels = ceildiv(n_queries, PANEL)
        var blocks = min(n_panels, ceildiv(16 * n_cores(), n_audio * n_head))
        var block = ceildiv(n_panels, blocks) * PANEL  # queries of a task
        blocks = ceildiv(n_queries, block)

        def work(task: Int) raises {imm}:
            var head = task // blocks
            var start = task % blocks * block
            var end = min(n_queries, start + block)
            var at = head // n_head * n_queries * n_state + head % n_head * Self.head_dim
            var of_head = head * n_keys * Self.head_dim
            if n_queries <= FEW:
                comptime for rows in range(1, FEW + 1):
                    if n_queries == rows:
                        attend[rows, Self.head_dim](
                            results(yp.unsafe_offset(at)),
                            numbers(qp.unsafe_offset(at)),
                            numbers(kp.unsafe_offset(of_head)),
                            numbers(vp.unsafe_offset(of_head)),
                            no_holders,
                            n_state,
                            Self.head_dim,
                            n_keys,
                        )
            else:
                attend_many[Self.head_dim](
                    results(yp.unsafe_offset(at)),
                    numbers(qp.unsafe_offset(at)),
                    numbers(kp.unsafe_offset(of_head)),
                    numbers(vp.unsafe_offset(of_head)),
                    n_state,
                    n_state,
                    Self.head_dim,
                    start,
                    end,
                    n_queries,
                    n_keys,
                    False,
                )

        share(work, n_audio * n_head * blocks)


@extensibility.register("whisper_causal_attention")
struct CausalAttention[head_dim: Int]:
    """Write the tokens' keys and values at the end of the cache, and attend to all of it that comes before each.

    y (batch, n_tokens, n_state); qkv (batch, n_tokens, 3 * n_state); keys and values (n_filled, n_audio, n_group,
    n_copies, n_state), batch being n_audio * n_group, of which this fills the last n_tokens. A sequence's entries are
    in the first of its n_copies rows; the others are for those that are to start from it.
    """

    @staticmethod
    def execute[
        type: DType, of_kv: DType, target: StaticString
    ](
        y: OutputTensor[dtype=type, rank=3, ...],
        qkv: InputTensor[dtype=type, rank=3, ...],
        keys: MutableInputTensor[dtype=of_kv, rank=5, ...],
        values: MutableInputTensor[dtype=of_kv, rank=5, ...],
        ctx: DeviceContext,
    ) raises:
        var n_filled = keys.dim_size(0)
        var n_copies = keys.dim_size(3)
        var batch = y.dim_size(0)
        var n_tokens = y.dim_size(1)
        var n_state = y.dim_size(2)
        var n_head = n_state // Self.head_dim
        var yp = y.unsafe_ptr()
        var xp = qkv.unsafe_ptr()
        var kp = keys.unsafe_ptr()
        var vp = values.unsafe_ptr()

        comptime if target != "cpu":
            causal_attention_on_gpu[Self.head_dim](yp, xp, kp, vp, n_filled, batch, n_copies, n_tokens, n_state, ctx)
            return

        def work(task: Int) raises {imm}:
            var b = task // n_head
            var of_head = task % n_head * Self.head_dim
            var row = b * n_copies
            var source = xp.unsafe_offset(b * n_tokens * 3 * n_state + of_head)
            for t in range(n_tokens):
                var new = source.unsafe_offset(t * 3 * n_state)
                var to = ((n_filled - n_tokens + t) * batch * n_copies + row) * n_state + of_head
                for i in range(0, Self.head_dim, WIDTH):
                    kp.unsafe_store(to + i, new.unsafe_load[width=WIDTH](n_state + i).cast[of_kv]())
                    vp.unsafe_store(to + i, new.unsafe_load[width=WIDTH](2 * n_state + i).cast[of_kv]())
            attend_many[Self.head_dim](
                results(yp.unsafe_offset(b * n_tokens * n_state + of_head)),
                numbers(source),
                numbers(kp.unsafe_offset(row * n_state + of_head)),
                numbers(vp.unsafe_offset(row * n_state + of_head)),
                n_state,
                3 * n_state,
                batch * n_copies * n_state,
                0,
                n_tokens,
                n_tokens,
                n_filled,
                True,
            )

        share(work, batch * n_head)
