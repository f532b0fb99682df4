"""The embeddings of tokens and positions on a GPU, which a step begins with."""

from max.gpu import block_idx, thread_idx
from max.gpu.host import DeviceContext

from .gpu_overlap import changing, early, wait_for_last
from .vectors import Float

comptime THREADS = 256


@always_inline
def embed_block[
    type: DType, //
](
    x: Pointer[mut=True, Float, ...],
    at: Pointer[mut=True, Int64, ...],
    tokens: Pointer[mut=False, Int64, ...],
    positions: Pointer[mut=False, Int64, ...],
    token_embedding: Pointer[mut=False, Scalar[type], ...],
    positional_embedding: Pointer[mut=False, Float, ...],
    n_state: Int,
):
    """What the block of one token does, see `Embed`."""
    var row = Int(block_idx.x)
    wait_for_last()
    var token = Int(changing(tokens)[unsafe_offset=row])
    var position = Int(changing(positions)[unsafe_offset=row])
    if thread_idx.x == 0:
        at[unsafe_offset=row] = Int64(position)
    for i in range(Int(thread_idx.x), n_state, THREADS):
        var value = token_embedding[unsafe_offset = token * n_state + i].cast[DType.float32]()
        x[unsafe_offset = row * n_state + i] = value + positional_embedding[unsafe_offset = position * n_state + i]


@always_inline
def embed_on_gpu[
    type: DType, //
](
    x: Pointer[mut=True, Float, ...],
    at: Pointer[mut=True, Int64, ...],
    tokens: Pointer[mut=False, Int64, ...],
    positions: Pointer[mut=False, Int64, ...],
    token_embedding: Pointer[mut=False, Scalar[type], ...],
    positional_embedding: Pointer[mut=False, Float, ...],
    batch: Int,
    n_state: Int,
    ctx: DeviceContext,
) raises:
    """Launch `embed_block`."""
    var n_state_ = Int32(n_state)

    def kernel() {var}:
        embed_block(x, at, tokens, positions, token_embedding, positional_embedding, Int(n_state_))

    ctx.enqueue_function(kernel, grid_dim=batch, block_dim=THREADS, attributes=early())
