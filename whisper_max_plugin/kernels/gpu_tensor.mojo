"""What kernels on tensor cores share: tiles of half-width values in shared memory, and their fragments in registers.

A product m16n8k16 takes fragments that are spread over a warp, of float16 or bfloat16, and sums up in float32.
"""

from max.gpu import lane_id
from max.gpu.compute.mma import ld_matrix, mma
from max.gpu.memory import AddressSpace, async_copy
from std.memory import stack_allocation

comptime CHUNK = 8  # values that are copied, and loaded, at once: 16 bytes
comptime Sums = SIMD[DType.float32, 4]  # a lane's part of 16 by 8: columns 2 * (lane % 4) and the next of two rows


@fieldwise_init
struct Tile[type: DType, rows: Int, columns: Int](TrivialRegisterPassable):
    """Rows of 32 or 64 values in shared memory.

    Chunks change places within a row, so that the same chunk of eight rows lies in all banks: fragments are loaded so.
    """

    comptime Memory = Pointer[
        mut=True, Scalar[Self.type], MutUntrackedOrigin, address_space=AddressSpace.SHARED
    ]
    comptime SIZE = Self.rows * Self.columns

    var memory: Self.Memory

    @staticmethod
    @always_inline
    def allocate[count: Int]() -> Self.Memory:
        """Return memory of `count` tiles, one behind the other."""
        return stack_allocation[
            count * Self.SIZE, Scalar[Self.type], address_space=AddressSpace.SHARED, alignment=128
        ]()

    @always_inline
    def at(self, row: Int, chunk: Int) -> Self.Memory:
        """Return where a chunk of a row lies."""
        comptime assert Self.columns == 32 or Self.columns == 64, "no other rows are laid out"
        var place = chunk ^ (row // 2 % 4 if Self.columns == 32 else row % 8)
        return self.memory.unsafe_offset(row * Self.columns + place * CHUNK)

    @always_inline
    def fetch(self, row: Int, chunk: Int, source: Pointer[mut=False, Scalar[Self.type], ...], valid: Bool = True):
        """Begin to copy a chunk from global memory, or zeros if it is not `valid`."""
        var size = Int32(2 * CHUNK if valid else 0)
        async_copy[2 * CHUNK, fill=Scalar[Self.type](0)](
            source.unsafe_address_space_cast[AddressSpace.GLOBAL](), self.at(row, chunk), size
        )

    @always_inline
    def left(self, row: Int, column: Int) -> SIMD[Self.type, 8]:
        """Load the left factor of a product: 16 rows and 16 columns of the tile."""
        var lane = Int(lane_id())
        return ld_matrix[simd_width=8](self.at(row + lane % 16, column // CHUNK + lane // 16))

    @always_inline
    def right(self, row: Int, column: Int) -> SIMD[Self.type, 8]:
        """Load the right factors of two products from 16 rows, which are columns of the factors, and 16 columns."""
        var lane = Int(lane_id())
        return ld_matrix[simd_width=8](self.at(row + lane % 8 + lane // 16 * 8, column // CHUNK + lane // 8 % 2))

    @always_inline
    def right_of_columns(self, row: Int, column: Int) -> SIMD[Self.type, 8]:
        """Load the right factors of two products, whose rows and columns are 16 each of the tile's."""
        var lane = Int(lane_id())
        return ld_matrix[simd_width=8, transpose=True](self.at(row + lane % 16, column // CHUNK + lane // 16))


@always_inline
def add_product[type: DType](mut sums: Sums, left: SIMD[type, 8], right: SIMD[type, 4]):
    """Add the product of two fragments, 16 by 16 and 16 by 8."""
    mma(sums, left, right, sums)
