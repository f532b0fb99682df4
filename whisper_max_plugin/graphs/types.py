"""The types of the numbers that graphs read and multiply."""

from __future__ import annotations

from dataclasses import dataclass

from max.dtype import DType


@dataclass(frozen=True)
class Types:
    """What graphs read and multiply; sums, and what one layer leaves for the next, are float32.

    Attributes
    ----------
    stored : DType
        the decoder's matrices, which a step reads
    operands : DType
        what is multiplied where there are many rows: float32, or of half width for the tensor cores of a GPU, which
        then take `stored` of the same type, or for a CPU that multiplies pairs of bfloat16
    cache : DType
        keys and values
    matrices : DType
        the other matrices: as operands on a GPU; on the CPU float32, the model's own, which kernels round as they read
    """

    stored: DType = DType.float32
    operands: DType = DType.float32
    cache: DType = DType.float32
    matrices: DType = DType.float32

    @property
    def features(self) -> DType:
        """What the encoder returns: where products are of half width, upstream's features are, too."""
        return self.operands if self.are_half else DType.float32

    @property
    def are_half(self) -> bool:
        """Whether products are those of tensor cores."""
        return self.matrices != DType.float32

    def __str__(self) -> str:
        """Return a name for files: the operands, and what differs from them."""
        parts = [self.operands.name]
        if self.matrices != self.operands:
            parts.append(f"{self.matrices.name}matrices")
        if self.stored != self.operands:
            parts.append(self.stored.name)
        if self.cache != self.operands:
            parts.append(f"{self.cache.name}cache")
        return "-".join(parts)
