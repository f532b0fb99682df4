"""A kernel that begins before the last one has ended may do nothing that shows it, until it has waited."""

from __future__ import annotations

import numpy as np
import pytest

from . import Kernel, RaceError

# A warp. Each thread has its place in `to`, in `of`, and in `weights`; %r0 and %r1 are what it multiplies, 1 at first.
PRODUCTS = """
.visible .entry products(.param .u64 to, .param .u64 of, .param .u64 weights)
{
    .reg .pred  %p<2>;
    .reg .b32   %r<6>;
    .reg .b64   %rd<6>;
    ld.param.b64    %rd0, [to];
    ld.param.b64    %rd1, [of];
    ld.param.b64    %rd2, [weights];
    mov.u32     %r2, %tid.x;
    mul.wide.u32    %rd3, %r2, 4;
    add.s64     %rd0, %rd0, %rd3;
    add.s64     %rd1, %rd1, %rd3;
    add.s64     %rd2, %rd2, %rd3;
    setp.lt.u32     %p1, %r2, 16;
    mov.b32     %r0, 1;
    mov.b32     %r1, 1;
    BODY
    ret;
}
"""
WAIT, NEXT = "griddepcontrol.wait; ", "griddepcontrol.launch_dependents; "
READ, READ_WEIGHT = "ld.global.b32 %r0, [%rd1]; ", "ld.global.b32 %r1, [%rd2]; "
WRITE = "mul.lo.s32 %r3, %r0, %r1; st.global.b32 [%rd0], %r3; "
COUNT = "red.global.add.u32 [%rd0], 1; "


def products(body: str, *, settled: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Run the instructions; return what was written, and what should be if all is multiplied."""
    of, weights = np.random.default_rng(0).integers(1, 1000, (2, 32), dtype="u4")
    to = np.zeros(32, "u4")
    kernel = Kernel(PRODUCTS.replace("BODY", body))
    kernel.run(1, 32, [to, of, weights], settled=[weights] if settled else [])
    return to, of * weights


@pytest.mark.parametrize(
    "body",
    [
        READ_WEIGHT + WAIT + NEXT + READ + WRITE,
        WAIT + READ_WEIGHT + READ + NEXT + WRITE,
        READ_WEIGHT + "@%p1 bra $L_there; " + WAIT + "bra $L_both; $L_there: " + WAIT + "$L_both: " + READ + WRITE,
    ],
)
def test_what_has_to_wait_waits(body: str) -> None:
    np.testing.assert_array_equal(*products(body))


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (READ + WAIT + READ_WEIGHT + WRITE, "reads argument 1 before"),
        (READ_WEIGHT + READ_WEIGHT + WRITE + WAIT, "writes argument 0 before"),
        (COUNT + WAIT, "writes argument 0 before"),
        (READ_WEIGHT + NEXT + WAIT + READ + WRITE, "lets the next launch begin before"),
        (READ_WEIGHT + "@%p1 " + WAIT + READ + WRITE, "reads argument 1 before"),
        ("@%p1 ret; " + WAIT + READ + READ_WEIGHT + WRITE, "ends before"),
    ],
)
def test_what_does_not_wait_is_named(body: str, what: str) -> None:
    with pytest.raises(RaceError, match=f"thread .*: {what} it has waited for the launch before"):
        products(body)


def test_nothing_is_settled_unless_it_is_said() -> None:
    with pytest.raises(RaceError, match="reads argument 2 before"):
        products(READ_WEIGHT + WAIT + READ + WRITE, settled=False)


def test_loads_that_may_be_moved_before_the_wait_are_for_what_is_settled() -> None:
    moved = READ.replace("global", "global.nc"), READ_WEIGHT.replace("global", "global.nc")
    np.testing.assert_array_equal(*products(moved[1] + WAIT + READ + WRITE))
    with pytest.raises(RaceError, match="reads argument 1 as if the launch before did not write it"):
        products(READ_WEIGHT + WAIT + moved[0] + WRITE)


def test_a_kernel_without_a_wait_begins_when_all_before_it_has_ended() -> None:
    np.testing.assert_array_equal(*products(READ + READ_WEIGHT + WRITE, settled=False))
    with pytest.raises(ValueError, match="does not wait for the launch before"):
        products(READ + READ_WEIGHT + WRITE)
