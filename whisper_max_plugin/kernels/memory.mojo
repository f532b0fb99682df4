"""Where windows' keys and values lie: addresses, so that windows share a step though each has memory of its own."""

comptime Table = Pointer[mut=False, Scalar[DType.int64], ...]


@fieldwise_init
struct Places[type: DType](TrivialRegisterPassable):
    """Finds what one layer reads and writes, of `type`, in a table (n_audio, `width`), width being 1 + 4 * n_layer.

    An entry is how many rows the window's cache has at each position; behind it, of each layer, are the addresses of the
    cache's keys and values (n_text_ctx, n_rows, n_state), and of the audio's (n_head, n_audio_ctx, head_dim).
    """

    comptime Values = Pointer[mut=True, Scalar[Self.type], MutAnyOrigin]

    var width: Int
    var layer: Int

    @always_inline
    def n_rows(self, memory: Table, window: Int) -> Int:
        return Int(memory[unsafe_offset = window * self.width])

    @always_inline
    def keys(self, memory: Table, window: Int) -> Self.Values:
        return self._address(memory, window, 0)

    @always_inline
    def values(self, memory: Table, window: Int) -> Self.Values:
        return self._address(memory, window, 1)

    @always_inline
    def cross_keys(self, memory: Table, window: Int) -> Self.Values:
        return self._address(memory, window, 2)

    @always_inline
    def cross_values(self, memory: Table, window: Int) -> Self.Values:
        return self._address(memory, window, 3)

    @always_inline
    def _address(self, memory: Table, window: Int, part: Int) -> Self.Values:
        var entry = memory[unsafe_offset = window * self.width + 1 + 4 * self.layer + part]
        return Self.Values(unsafe_from_address=Int(entry))
