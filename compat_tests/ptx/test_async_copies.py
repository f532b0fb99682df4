"""Asynchronous copies of the interpreter of PTX arrive, and nobody may touch what has not been waited for."""

from __future__ import annotations

import numpy as np
import pytest

from . import AccessError, Kernel, KernelError, RaceError

# Two warps. Each thread has 16 bytes at %rd1 to copy from, and at %r1 to copy to; at %r3 are those of the other warp.
# It stores what it has read, %r4 and so on, of which each is 7 at first.
COPIES = """
.visible .entry copies(.param .u64 to, .param .u64 of)
{
    .reg .pred  %p<4>;
    .reg .b32   %r<12>;
    .reg .b64   %rd<4>;
    .shared .align 16 .b8 shared[1024];
    ld.param.b64    %rd0, [to];
    ld.param.b64    %rd1, [of];
    mov.u32     %r0, %tid.x;
    mul.wide.u32    %rd2, %r0, 16;
    add.s64     %rd0, %rd0, %rd2;
    add.s64     %rd1, %rd1, %rd2;
    mov.b32     %r2, shared;
    mad.lo.s32  %r1, %r0, 16, %r2;
    xor.b32     %r3, %r0, 32;
    mad.lo.s32  %r3, %r3, 16, %r2;
    setp.lt.u32     %p1, %r0, 32;
    setp.eq.b32     %p2, %r0, 0;
    mov.b32     %r4, 7;
    mov.b32     %r5, 7;
    mov.b32     %r6, 7;
    mov.b32     %r7, 7;
    BODY
    st.global.v4.b32    [%rd0], {%r4, %r5, %r6, %r7};
    ret;
}
"""
COPY = "cp.async.cg.shared.global [%r1], [%rd1], 16; "
READ_OWN = "ld.shared.v4.b32 {%r4, %r5, %r6, %r7}, [%r1]; "
READ_OTHER = "ld.shared.v4.b32 {%r4, %r5, %r6, %r7}, [%r3]; "
STORE_OWN = "st.shared.v4.b32 [%r1], {%r4, %r5, %r6, %r7}; "
COMMIT, WAIT_ALL, BARRIER = "cp.async.commit_group; ", "cp.async.wait_all; ", "bar.sync 0; "


def copies(body: str, rows: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Run the instructions; return what each thread has read, and the rows that there were to copy."""
    of = np.random.default_rng(0).integers(1, 1 << 32, (rows, 4), dtype="u4")
    to = np.zeros((64, 4), "u4")
    Kernel(COPIES.replace("BODY", body)).run(1, 64, [to, of])
    return to, of


@pytest.mark.parametrize(
    "body",
    [
        COPY + WAIT_ALL + READ_OWN,
        COPY + COMMIT + COMMIT + "cp.async.wait_group 1; " + READ_OWN,
        COPY.replace("global", "global.L2::128B") + COMMIT + "cp.async.wait_group 0; " + READ_OWN,
        "".join(f"cp.async.ca.shared.global [%r1+{at}], [%rd1+{at}], 4; " for at in (0, 4, 8)) + COMMIT
        + "cp.async.ca.shared.global [%r1+12], [%rd1+12], 4; " + WAIT_ALL + READ_OWN,
        "cp.async.ca.shared.global [%r1], [%rd1], 8; cp.async.ca.shared.global [%r1+8], [%rd1+8], 8, 8; "
        + WAIT_ALL + READ_OWN,
        # In the other warp's place: what it has stored there, or copied, is no more.
        STORE_OWN + BARRIER + COPY.replace("%r1", "%r3") + WAIT_ALL + BARRIER + READ_OTHER + READ_OWN + BARRIER
        + COPY + WAIT_ALL + READ_OWN,
        COPY + COMMIT + "cp.async.wait_group 0; " + STORE_OWN + COPY + WAIT_ALL + READ_OWN,
    ],
)  # fmt: skip
def test_copies_are_there_after_waiting(body: str) -> None:
    np.testing.assert_array_equal(*copies(body))


def test_copies_are_there_for_other_warps_after_waiting_and_a_barrier() -> None:
    to, of = copies(COPY + WAIT_ALL + BARRIER + READ_OTHER)
    np.testing.assert_array_equal(to, of[np.arange(64) ^ 32])


def test_copies_are_filled_up_with_zeros() -> None:
    sizes = np.arange(64) * 7 % 17
    to, of = copies(
        "mul.lo.u32 %r8, %r0, 7; rem.u32 %r8, %r8, 17; " + COPY.replace("16;", "16, %r8;") + WAIT_ALL + READ_OWN
    )
    expected = np.where(np.arange(16) < sizes[:, None], of.view("u1"), 0)
    np.testing.assert_array_equal(to.view("u1"), expected)


def test_copies_do_not_touch_what_they_do_not_read() -> None:
    of_some = "selp.b32 %r8, 16, 0, %p1; " + COPY.replace("16;", "16, %r8;") + WAIT_ALL + READ_OWN
    to, of = copies(of_some, rows=32)
    np.testing.assert_array_equal(to, np.concatenate([of, np.zeros_like(of)]))
    with pytest.raises(AccessError, match=r"thread \(32, 0, 0\): 16 bytes outside of argument 1 .* at offset 512"):
        copies(COPY + WAIT_ALL, rows=32)
    with pytest.raises(AccessError, match=r"thread \(32, 0, 0\): 1 bytes outside of argument 1 .* at offset 512"):
        copies(of_some.replace("16, 0,", "16, 1,"), rows=32)


READS_EARLY = "thread .*: reads shared memory where the copy of line 24 is in flight"
READS_TOO_SOON = "reads shared memory, which was written by warp . of block 0, with no barrier between"


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        # Reads before waiting: not at all, only for others, only for what is in a group, for one group too few.
        (COPY + READ_OWN, RaceError, READS_EARLY),
        (COPY + COMMIT + BARRIER + READ_OTHER, RaceError, READS_EARLY),
        (COPY + "cp.async.wait_group 0; " + READ_OWN, RaceError, READS_EARLY),
        (COPY + COMMIT + "cp.async.wait_group 1; " + READ_OWN, RaceError, READS_EARLY),
        (COPY + COMMIT + f"@%p1 {WAIT_ALL}" + BARRIER + READ_OWN, RaceError, r"thread \(32, .*: reads .* in flight"),
        (COPY + COMMIT + f"@!%p2 {WAIT_ALL}" + READ_OWN, RaceError, r"thread \(0, .*: reads .* in flight"),
        (COPY + "atom.shared.add.u32 %r4, [%r1], 1;", RaceError, READS_EARLY),
        # Waits, but no barrier follows.
        (COPY + WAIT_ALL + READ_OTHER, RaceError, READS_TOO_SOON),
        (COPY + BARRIER + WAIT_ALL + READ_OTHER, RaceError, READS_TOO_SOON),
        # Writes where a copy may land, and copies where others may still read or write.
        (COPY + STORE_OWN, RaceError, "writes shared memory where the copy of line 24 is in flight"),
        (COPY + COPY, RaceError, "starts a copy into shared memory where the copy of line 24 is in flight"),
        (COPY + WAIT_ALL + COPY.replace("%r1", "%r3"), RaceError, "starts a copy .* was written by warp"),
        (STORE_OWN + COPY.replace("%r1", "%r3"), RaceError, "starts a copy into .*, which was written by warp"),
        (STORE_OWN + BARRIER + READ_OTHER + COPY, RaceError, "starts a copy into .*, which was read by warp"),
        (f"@%p1 {COPY.replace('%r1', '%r2')}", RaceError, "two threads copy to one place"),
        (COPY.replace("%r1", "%r2"), RaceError, "starts a copy into shared memory, as does warp"),
        # Ends without waiting.
        (COPY, KernelError, r"line 24, block \(0, 0, 0\), thread \(0, 0, 0\): has not waited for this copy"),
        (COPY + COMMIT + "cp.async.wait_group 1; ", KernelError, "has not waited for this copy"),
        # Copies where nothing is, misaligned, and more than there is.
        (COPY.replace("[%r1]", "[%r1+16]"), AccessError, "16 bytes outside of shared memory's shared .* offset 1024"),
        ("@%p2 " + COPY.replace("[%r1]", "[%r1+8]"), AccessError, "misaligned access of 16 bytes to shared memory"),
        (COPY.replace("[%rd1]", "[%rd1+8]"), AccessError, "misaligned source of a copy of 16 bytes"),
        (COPY.replace("16;", "16, 17;"), KernelError, "a copy of 16 bytes reads 17"),
    ],
)  # fmt: skip
def test_wrong_copies_raise(body: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        copies(body)


@pytest.mark.parametrize(
    "unknown",
    [
        "cp.async.cg.shared.global [%r1], [%rd1], 8;",
        "cp.async.ca.shared.global [%r1], [%rd1], %r0;",
        "cp.async.ca.shared.global [%r1], [%rd1], 16, %p1;",
        "cp.async.cg.shared.global.L2::cache_hint [%r1], [%rd1], 16, %rd2;",
        "cp.async.wait_group %r0;",
    ],
)  # fmt: skip
def test_other_forms_are_unknown(unknown: str) -> None:
    with pytest.raises(ValueError, match=r"^PTX line 24: "):
        copies(unknown)
