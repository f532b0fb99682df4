"""The interpreter of PTX computes what a GPU would, and stops at what a GPU would not do, or not always."""

from __future__ import annotations

import numpy as np
import pytest

from . import AccessError, Kernel, KernelError, RaceError

# As LLVM 23 wrote it, for a block of 64 threads: y[block] = sum of w[block, :k] * x[:k], w float16.
DOTS = """
.version 8.5
.target sm_90a
.address_size 64

.visible .entry dots(
    .param .u64 .ptr .align 1 dots_param_0,
    .param .u64 .ptr .align 1 dots_param_1,
    .param .u64 .ptr .align 1 dots_param_2,
    .param .b32 dots_param_3
)
{
    .reg .pred  %p<5>;
    .reg .b16   %rs<5>;
    .reg .b32   %r<38>;
    .reg .b64   %rd<19>;
    // demoted variable
    .shared .align 4 .b8 sums[8];
    ld.param::entry.b32     %r5, [dots_param_3];
    mov.u32     %r1, %tid.x;
    mov.u32     %r6, %ctaid.x;
    shl.b32     %r2, %r1, 2;
    setp.ge.s32     %p1, %r2, %r5;
    mov.b32     %r34, 0f00000000;
    mov.b32     %r35, %r34;
    mov.b32     %r36, %r34;
    mov.b32     %r37, %r34;
    @%p1 bra    $L__BB0_3;
    ld.param::entry.b64     %rd8, [dots_param_1];
    ld.param::entry.b64     %rd9, [dots_param_2];
    cvta.to.global.u64  %rd1, %rd9;
    cvta.to.global.u64  %rd2, %rd8;
    cvt.u64.u32     %rd3, %r6;
    cvt.s64.s32     %rd5, %r5;
    cvt.u64.u32     %rd18, %r2;
    mul.lo.s64  %rd11, %rd5, %rd3;
    shl.b64     %rd12, %rd11, 1;
    mul.wide.u32    %rd13, %r1, 8;
    add.s64     %rd14, %rd12, %rd13;
    add.s64     %rd17, %rd1, %rd14;
    mul.wide.u32    %rd15, %r1, 16;
    add.s64     %rd16, %rd2, %rd15;
$L__BB0_2:
    add.s64     %rd18, %rd18, 256;
    ld.global.nc.v4.b16     {%rs1, %rs2, %rs3, %rs4}, [%rd17];
    cvt.f32.f16     %r7, %rs4;
    cvt.f32.f16     %r8, %rs1;
    cvt.f32.f16     %r9, %rs2;
    cvt.f32.f16     %r10, %rs3;
    ld.global.nc.v4.b32     {%r11, %r12, %r13, %r14}, [%rd16];
    fma.rn.f32  %r36, %r10, %r13, %r36;
    fma.rn.f32  %r35, %r9, %r12, %r35;
    fma.rn.f32  %r34, %r8, %r11, %r34;
    fma.rn.f32  %r37, %r7, %r14, %r37;
    add.s64     %rd17, %rd17, 512;
    add.s64     %rd16, %rd16, 1024;
    setp.lt.s64     %p2, %rd18, %rd5;
    @%p2 bra    $L__BB0_2;
$L__BB0_3:
    add.f32     %r15, %r34, %r36;
    add.f32     %r16, %r35, %r37;
    add.f32     %r17, %r15, %r16;
    shfl.sync.bfly.b32  %r18, %r17, 16, 31, -1;
    add.f32     %r19, %r17, %r18;
    shfl.sync.bfly.b32  %r20, %r19, 8, 31, -1;
    add.f32     %r21, %r19, %r20;
    shfl.sync.bfly.b32  %r22, %r21, 4, 31, -1;
    add.f32     %r23, %r21, %r22;
    shfl.sync.bfly.b32  %r24, %r23, 2, 31, -1;
    add.f32     %r25, %r23, %r24;
    shfl.sync.bfly.b32  %r26, %r25, 1, 31, -1;
    mov.u32     %r27, %laneid;
    setp.ne.b32     %p3, %r27, 0;
    @%p3 bra    $L__BB0_5;
    shr.u32     %r28, %r1, 3;
    and.b32     %r29, %r28, 124;
    mov.b32     %r30, sums;
    add.s32     %r3, %r30, %r29;
    add.f32     %r4, %r25, %r26;
    st.shared.b32   [%r3], %r4;
$L__BB0_5:
    bar.sync    0;
    setp.ne.b32     %p4, %r1, 0;
    @%p4 bra    $L__BB0_7;
    ld.param::entry.b64     %rd6, [dots_param_0];
    cvta.to.global.u64  %rd7, %rd6;
    mul.wide.u32    %rd10, %r6, 4;
    add.s64     %rd4, %rd7, %rd10;
    ld.shared.b32   %r31, [sums];
    ld.shared.b32   %r32, [sums+4];
    add.f32     %r33, %r31, %r32;
    st.global.b32   [%rd4], %r33;
$L__BB0_7:
    ret;
}
"""

# %r1 is the thread's number, %p1 whether it is odd, %rd1 where its own value lies; it ends with %r9 there.
FRAME = """
.visible .entry one(.param .u64 one_param_0)
{
    .reg .pred  %p<4>;
    .reg .b16   %h<4>;
    .reg .b32   %r<10>;
    .reg .b64   %rd<4>;
    .shared .align 16 .b8 shared[256];
    ld.param.b64    %rd0, [one_param_0];
    cvta.to.global.u64  %rd0, %rd0;
    mov.u32     %r1, %tid.x;
    mul.wide.u32    %rd1, %r1, 4;
    add.s64     %rd1, %rd0, %rd1;
    and.b32     %r2, %r1, 1;
    setp.eq.b32     %p1, %r2, 1;
    mov.b32     %r9, -1;
    BODY
$store:
    st.global.b32   [%rd1], %r9;
    ret;
}
"""


def dots(text: str = DOTS, rows: int = 3, k: int = 300, results: int = 3) -> tuple[list[float], list[float]]:
    """Run the kernel on random numbers; return what it wrote and what is right."""
    random = np.random.default_rng(0)
    w, x = random.standard_normal((rows, k)).astype(np.float16), random.standard_normal(k).astype(np.float32)
    w.flags.writeable = False
    y = np.full(results, np.nan, np.float32)
    Kernel(text).run(rows, 64, [y, x, w, k])
    return list(map(float, y)), list(map(float, w.astype(np.float64) @ x))


def of_threads(body: str, threads: int = 32, at_first: int = 7) -> list[int]:
    """Return %r9 of every thread after the instructions, as signed numbers."""
    values = np.full(threads, at_first, np.int32)
    Kernel(FRAME.replace("BODY", body)).run(1, threads, [values])
    return list(map(int, values))


def test_loops_shuffles_and_barriers_give_the_right_sums() -> None:
    actual, expected = dots()
    assert actual == pytest.approx(expected, abs=1e-4)


def test_access_outside_of_an_array_names_line_thread_and_offset() -> None:
    with pytest.raises(AccessError, match=r"line 92, block \(2, 0, 0\), thread \(0, 0, 0\): .* outside .* offset 8$"):
        dots(results=2)


def test_vectors_are_aligned_as_a_whole() -> None:
    with pytest.raises(AccessError, match=r"misaligned access of 8 bytes to argument 2 .* at offset 604"):
        dots(k=302)


def test_missing_barrier_is_a_race() -> None:
    with pytest.raises(RaceError, match="reads shared memory, which was written by warp 1 of block 0"):
        dots(DOTS.replace("bar.sync", "// bar.sync"))


@pytest.mark.parametrize(
    ("known", "unknown"),
    [("fma.rn.f32", "fma.rz.f32"), ("bar.sync", "bar.red"), ("ld.global.nc", "ld.tex"), ("ret;", "ret")],
)
def test_what_is_unknown_is_never_skipped(known: str, unknown: str) -> None:
    with pytest.raises(ValueError, match=r"^PTX line \d+: "):
        Kernel(DOTS.replace(known, unknown))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("@%p1 mov.b32 %r9, %r1;", [i if i % 2 else -1 for i in range(32)]),
        ("@!%p1 bra $store; mov.b32 %r9, %r1;", [i if i % 2 else -1 for i in range(32)]),
        ("shfl.sync.idx.b32 %r9, %r1, 5, 31, -1;", [5] * 32),
        ("shfl.sync.up.b32 %r9, %r1, 3, 0, -1;", [max(i - 3, i if i < 3 else 0) for i in range(32)]),
        ("shfl.sync.down.b32 %r9|%p2, %r1, 2, 31, -1; @!%p2 mov.b32 %r9, -5;", [*range(2, 32), -5, -5]),
        ("shfl.sync.bfly.b32 %r9, %r1, 1, 0x1c1f, -1;", [i ^ 1 for i in range(32)]),
        ("vote.sync.ballot.b32 %r9, %p1, -1;", [-0x55555556] * 32),
        ("redux.sync.max.s32 %r9, %r1, -1;", [31] * 32),
        ("atom.global.add.u32 %r9, [%rd1], 1;", [7] * 32),
        ("cvt.rn.f32.u32 %r8, %r1; mov.b32 {%h1, %h2}, %r8; mov.b32 %r9, {%h2, %h1};", None),
        ("shl.b32 %r3, %r1, 2; mov.b32 %r4, shared; add.s32 %r3, %r3, %r4; st.shared.b32 [%r3], %r1; "
         "ld.shared.b32 %r9, [%r3];", list(range(32))),
    ],
)  # fmt: skip
def test_instructions_of_threads_and_warps(body: str, expected: list[int] | None) -> None:
    if expected is None:
        swapped = np.arange(32, dtype=np.float32).view("u2").reshape(-1, 2)[:, ::-1].copy()
        expected = swapped.view("i4")[:, 0].tolist()
    assert of_threads(body) == expected


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ("mov.b32 %r9, %r5;", AccessError, "%r5 has no value"),
        ("@%p1 bra $store; shfl.sync.bfly.b32 %r9, %r1, 2, 31, -1;", KernelError, "never come"),
        ("@%p1 ret; shfl.sync.bfly.b32 %r9, %r1, 1, 31, -1;", KernelError, "reads lane 1, which does not"),
        ("@%p1 bra $a; bar.warp.sync -1; bra $store; $a: bar.warp.sync -1;", KernelError, "never come"),
        ("ld.shared.b32 %r9, [shared+8];", AccessError, "never written"),
        ("ld.shared.b32 %r9, [shared+256];", AccessError, r"shared \(256 bytes\) at offset 256"),
        ("st.shared.b32 [shared], %r1;", RaceError, "different values"),
        ("st.global.b32 [%rd0], %r1;", RaceError, "different values"),
        ("@%p1 trap;", KernelError, r"thread \(1, 0, 0\): trap"),
        ("div.u32 %r9, %r1, %r2;", KernelError, "by zero"),
    ],
)
def test_what_no_gpu_defines_raises(body: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        of_threads(body)


def test_endless_loop_raises() -> None:
    with pytest.raises(KernelError, match="no end after 1000 instructions"):
        Kernel(FRAME.replace("BODY", "$a: bra $a;")).run(1, 32, [np.zeros(32, "i4")], limit=1000)


def test_fma_is_rounded_once() -> None:
    one = "mov.b32 %r3, 0f3F800001; mov.b32 %r4, 0fBF800002; fma.rn.f32 %r9, %r3, %r3, %r4;"
    assert of_threads(one)[0] == 0x28800000  # (1 + 2**-23)**2 - (1 + 2**-22) = 2**-46
