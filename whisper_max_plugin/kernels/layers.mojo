"""The decoder's layers for one token per sequence on a CPU, as one operation: eight phases a layer for all cores.

A step of a small model is over in two milliseconds, and an operation of its own for each of its eleven parts a layer spends
some microseconds on its start and end, and hundreds when a core has gone to sleep in between.
"""

import extensibility
from extensibility import InputTensor, OutputTensor
from max.gpu.host import DeviceContext
from std.math import ceildiv, rsqrt

from .attention import cross_attention_part, self_attention_part
from .linear import linear_part, outputs_of_task
from .memory import Places
from .phases import Phases, in_phases
from .sharing import n_cores
from .vectors import EPSILON, Finish, Float, Floats, Numbers, Results, WIDTH, numbers, results

comptime TASK_BYTES = 32 * 1024  # of weights; a phase's tasks cost less than an operation's
comptime PHASES = 8  # of a layer

comptime Addresses = Numbers[DType.int64]


@fieldwise_init
struct Norm(TrivialRegisterPassable):
    """A layer norm."""

    var weight: Numbers[]
    var bias: Numbers[]

    def run(self, y: Results[], x: Results[], m: Int, n: Int):
        """Write to y the layer norm of each row of x (m, n), n being a whole number of vectors."""
        for row in range(m):
            var source = x.unsafe_offset(row * n)
            var total = Floats(0)
            for i in range(0, n, WIDTH):
                total += source.unsafe_load[width=WIDTH](i)
            var mean = total.reduce_add() / Float(n)
            var squares = Floats(0)
            for i in range(0, n, WIDTH):
                var difference = source.unsafe_load[width=WIDTH](i) - mean
                squares = difference.fma(difference, squares)
            var scale = rsqrt(squares.reduce_add() / Float(n) + EPSILON)
            for i in range(0, n, WIDTH):
                var value = (source.unsafe_load[width=WIDTH](i) - mean) * scale
                var weight = self.weight.unsafe_load[width=WIDTH](i)
                y.unsafe_store(row * n + i, value.fma(weight, self.bias.unsafe_load[width=WIDTH](i)))


@fieldwise_init
struct Product[type: DType](TrivialRegisterPassable):
    """A linear layer (n, k); weights of int8 have a scale for each row."""

    var weight: Numbers[Self.type]
    var bias: Numbers[]
    var scales: Numbers[]
    var n: Int
    var k: Int

    @always_inline
    def run_normalized[
        gelu: Bool = False
    ](self, norm: Norm, phases: Phases, phase: Int, y: Results[], x: Results[], m: Int, own: Results[]):
        """Do what `run` does for the layer norm of x; each core makes its `own` (m, k), which is less than to wait."""
        # A core that another process had may come when all is done.
        if not phases.is_over(phase, ceildiv(self.n, self._outputs_of_task())):
            norm.run(own, x, m, self.k)
        self.run[gelu](phases, phase, y, own, m)

    @always_inline
    def run[gelu: Bool = False, add: Bool = False](self, phases: Phases, phase: Int, y: Results[], x: Results[], m: Int):
        """Write the outputs for x (m, k) to y (m, n), or `add` them to it."""
        var per_task = self._outputs_of_task()
        var finish = Finish(self.bias, numbers(y), True, gelu, add)

        @always_inline
        def work(task: Int) {imm}:
            var first = task * per_task
            var last = min(self.n, first + per_task)
            linear_part(y, x, self.weight, self.scales, finish, m, self.n, self.k, first, last)

        phases.run(phase, work, ceildiv(self.n, per_task))

    @always_inline
    def _outputs_of_task(self) -> Int:
        return outputs_of_task[Self.type](self.k, TASK_BYTES)


@fieldwise_init
struct Layer[type: DType](TrivialRegisterPassable):
    """A layer's parameters, by upstream's names; query, key and value of self-attention are one product."""

    var attn_ln: Norm
    var attn_qkv: Product[Self.type]
    var attn_out: Product[Self.type]
    var cross_attn_ln: Norm
    var cross_attn_query: Product[Self.type]
    var cross_attn_out: Product[Self.type]
    var mlp_ln: Norm
    var mlp_0: Product[Self.type]
    var mlp_2: Product[Self.type]

    @staticmethod
    @always_inline
    def at(row: Addresses, n_state: Int) -> Self:
        """Find a layer's parameters by their addresses, which `weights.addresses` lays out."""

        @always_inline
        def address(index: Int) {imm} -> Int:
            return Int(row[unsafe_offset=index])

        @always_inline
        def norm(index: Int) {imm} -> Norm:
            return Norm(
                Numbers[](unsafe_from_address=address(index)), Numbers[](unsafe_from_address=address(index + 1))
            )

        @always_inline
        def product(index: Int, n: Int, k: Int) {imm} -> Product[Self.type]:
            var weight = Numbers[Self.type](unsafe_from_address=address(index))
            var bias = Numbers[](unsafe_from_address=address(index + 1))
            return Product[Self.type](weight, bias, Numbers[](unsafe_from_address=address(index + 2)), n, k)

        return Self(
            norm(0),
            product(2, 3 * n_state, n_state),
            product(5, n_state, n_state),
            norm(8),
            product(10, n_state, n_state),
            product(13, n_state, n_state),
            norm(16),
            product(18, 4 * n_state, n_state),
            product(21, n_state, 4 * n_state),
        )


@extensibility.register("whisper_decoder_layers")
struct DecoderLayers[type: DType, of_kv: DType, head_dim: Int]:
    """Write to y what the layers make of x, both (n_audio * n_group, n_state).

    memory, holders and positions as `whisper_self_attention` takes them; parameters (n_layer, 24), see `Layer.at`.
    """

    @staticmethod
    def execute[
        target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        x: InputTensor[dtype=DType.float32, rank=2, ...],
        parameters: InputTensor[dtype=DType.int64, rank=2, ...],
        memory: InputTensor[dtype=DType.int64, rank=2, ...],
        holders: InputTensor[dtype=DType.int32, rank=2, ...],
        positions: InputTensor[dtype=DType.int64, rank=1, ...],
        n_audio_ctx: Scalar[DType.int32],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "a GPU takes an operation for each part of a layer"
        var m = x.dim_size(0)
        var n_state = x.dim_size(1)
        var n_head = n_state // Self.head_dim
        var n_audio = memory.dim_size(0)
        var n_group = m // n_audio
        var n_text_ctx = holders.dim_size(1)
        var n_keys = Int(n_audio_ctx)
        var n_layer = parameters.dim_size(0)
        var row_of_layer = parameters.dim_size(1)
        var width = memory.dim_size(1)
        var rows = Addresses(unsafe_from_address=Int(parameters.unsafe_ptr()))
        var mp = memory.unsafe_ptr()
        var hp = holders.unsafe_ptr()
        var pp = positions.unsafe_ptr()

        var source = x.unsafe_ptr()
        var result = results(y.unsafe_ptr())
        for i in range(0, m * n_state, WIDTH):
            result.unsafe_store(i, source.unsafe_load[width=WIDTH](i))

        # What all cores share, and behind it what each normalizes for itself.
        var shared = 8 * m * n_state
        var scratch = List[Float](unsafe_uninit_length=shared + n_cores() * m * n_state)
        var products = results(scratch.unsafe_ptr())
        var attended = products.unsafe_offset(3 * m * n_state)
        var hidden = attended.unsafe_offset(m * n_state)

        def take_part(core: Int, phases: Phases) raises {imm}:
            var own = products.unsafe_offset(shared + core * m * n_state)
            for index in range(n_layer):
                var places = Places[Self.of_kv](width, index)
                var layer = Layer[Self.type].at(rows.unsafe_offset(index * row_of_layer), n_state)
                var phase = PHASES * index

                @always_inline
                def attend_to_text(task: Int) {imm}:
                    self_attention_part[Self.head_dim](
                        attended, products, mp, hp, pp, places, n_group, n_text_ctx, n_state, task
                    )

                @always_inline
                def attend_to_audio(task: Int) {imm}:
                    cross_attention_part[Self.head_dim](
                        attended, products, mp, places, n_group, n_keys, n_state, task
                    )

                layer.attn_qkv.run_normalized(layer.attn_ln, phases, phase, products, result, m, own)
                phases.run(phase + 1, attend_to_text, m * n_head)
                layer.attn_out.run[add=True](phases, phase + 2, result, attended, m)

                layer.cross_attn_query.run_normalized(
                    layer.cross_attn_ln, phases, phase + 3, products, result, m, own
                )
                phases.run(phase + 4, attend_to_audio, n_audio * n_head)
                layer.cross_attn_out.run[add=True](phases, phase + 5, result, attended, m)

                layer.mlp_0.run_normalized[gelu=True](layer.mlp_ln, phases, phase + 6, hidden, result, m, own)
                layer.mlp_2.run[add=True](phases, phase + 7, result, hidden, m)

        in_phases(take_part, PHASES * n_layer)
        _ = scratch^
