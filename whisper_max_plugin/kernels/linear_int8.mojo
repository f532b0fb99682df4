"""The projection onto the vocabulary by weights of int8, with one float32 scale for each row of them; for CPUs only."""

import extensibility
from extensibility import InputTensor
from extensibility import _MutableInputTensor as MutableInputTensor
from max.gpu.host import DeviceContext

from .linear import linear
from .vectors import Finish, numbers, results, unread


@extensibility.register("whisper_project_int8")
struct ProjectInt8:
    """Write ``x @ (w * scales).T`` to memory that is there, so that it can be filtered in place."""

    @staticmethod
    def execute[
        target: StaticString
    ](
        y: MutableInputTensor[dtype=DType.float32, rank=2, ...],
        x: InputTensor[dtype=DType.float32, rank=2, ...],
        w: InputTensor[dtype=DType.int8, rank=2, ...],
        scales: InputTensor[dtype=DType.float32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "int8 weights are read by CPUs only"
        var nothing = unread(x.unsafe_ptr())
        linear(
            results(y.unsafe_ptr()),
            numbers(x.unsafe_ptr()),
            numbers(w.unsafe_ptr()),
            numbers(scales.unsafe_ptr()),
            Finish(nothing, nothing, False, False, False),
            x.dim_size(0),
            w.dim_size(0),
            w.dim_size(1),
        )
