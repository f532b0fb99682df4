"""How a kernel begins before the one before it has ended, on GPUs since sm_90; others start it afterwards, as ever.

A step is up to three hundred short kernels, and all of them begin with reading memory. What the kernel before
does not write, weights above all, a kernel reads before it waits for that one ("programmatic dependent launch"). Behind such a
kernel come only others of ours: those of MAX wait too, but read as if nobody wrote meanwhile.
"""

from max.gpu.host.launch_attribute import LaunchAttribute
from max.gpu.memory import AddressSpace
from max.gpu.primitives.grid_controls import (
    PDLLevel,
    launch_dependent_grids,
    pdl_launch_attributes,
    wait_on_dependent_grids,
)


@always_inline
def wait_for_last():
    """Wait until the kernel before has ended, and let the next one begin; every thread does this once.

    Before, a kernel writes nothing, and reads nothing that its predecessor writes. All before that have ended: the
    predecessor waited for them before it let this one begin.
    """
    wait_on_dependent_grids()
    launch_dependent_grids()


@always_inline
def changing[
    type: DType, //
](p: Pointer[Scalar[type], ...]) -> Pointer[mut=True, Scalar[type], MutAnyOrigin, address_space=AddressSpace.GLOBAL]:
    """Return a pointer to global memory whose loads stay where they are written, before or after `wait_for_last`.

    Whoever reads through a pointer that writes nothing promises that nobody does, and the compiler and the assembler move such
    loads across the wait: what the kernel before writes would be read too early, and weights too late.
    """
    var global_ = p.unsafe_address_space_cast[AddressSpace.GLOBAL]()
    return Pointer[mut=True, Scalar[type], MutAnyOrigin, address_space=AddressSpace.GLOBAL](
        unsafe_from_address=Int(global_)
    )


@always_inline
def early[overlaps: Bool = True]() -> List[LaunchAttribute]:
    """Return what a kernel that calls `wait_for_last` is launched with, or one that does not."""
    return pdl_launch_attributes(PDLLevel.ON if overlaps else PDLLevel.OFF)
