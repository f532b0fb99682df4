"""The interpreter of PTX has the layouts of tensor cores that the ISA describes, and needs whole warps for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from . import AccessError, Kernel, KernelError, RaceError

# Each lane's registers of A, B and C, one lane's after the other's, and D's the same way.
PRODUCT = """
.visible .entry product(.param .u64 d, .param .u64 a, .param .u64 b, .param .u64 c)
{
    .reg .pred  %p<2>;
    .reg .b32   %r<15>;
    .reg .b64   %rd<6>;
    ld.param.b64    %rd0, [d];
    ld.param.b64    %rd1, [a];
    ld.param.b64    %rd2, [b];
    ld.param.b64    %rd3, [c];
    mov.u32     %r0, %tid.x;
    mul.wide.u32    %rd4, %r0, 16;
    add.s64     %rd0, %rd0, %rd4;
    add.s64     %rd3, %rd3, %rd4;
    mul.wide.u32    %rd4, %r0, SIZE;
    add.s64     %rd1, %rd1, %rd4;
    shr.u64     %rd4, %rd4, 1;
    add.s64     %rd2, %rd2, %rd4;
    ld.global.v4.b32    {%r11, %r12, %r13, %r14}, [%rd3];
    LOAD
    setp.lt.u32     %p1, %r0, 31;
    mma.sync.aligned.m16n8kSIZE.row.col.f32.TYPE.TYPE.f32
        {%r11, %r12, %r13, %r14},
        {%r5, %r6, %r7, %r8},
        {%r9, %r10},
        {%r11, %r12, %r13, %r14};
    st.global.v4.b32    [%rd0], {%r11, %r12, %r13, %r14};
    ret;
}
"""
LOADS = {
    16: "ld.global.v4.b32 {%r5, %r6, %r7, %r8}, [%rd1]; ld.global.v2.b32 {%r9, %r10}, [%rd2];",
    8: "ld.global.v2.b32 {%r5, %r6}, [%rd1]; ld.global.b32 %r9, [%rd2];",
}

# A thread's row of 16 bytes goes to shared memory; %r1 is the address of a row that `ldmatrix` takes from the thread.
MATRICES = """
.visible .entry matrices(.param .u64 y, .param .u64 x, .param .u64 rows)
{
    .reg .pred  %p<2>;
    .reg .b32   %r<10>;
    .reg .b64   %rd<5>;
    .shared .align 16 .b8 shared[1024];
    ld.param.b64    %rd0, [y];
    ld.param.b64    %rd1, [x];
    ld.param.b64    %rd2, [rows];
    mov.u32     %r0, %tid.x;
    mul.wide.u32    %rd3, %r0, 16;
    add.s64     %rd0, %rd0, %rd3;
    add.s64     %rd1, %rd1, %rd3;
    mul.wide.u32    %rd3, %r0, 4;
    add.s64     %rd2, %rd2, %rd3;
    ld.global.v4.b32    {%r2, %r3, %r4, %r5}, [%rd1];
    ld.global.b32   %r6, [%rd2];
    mov.b32     %r7, shared;
    mad.lo.s32  %r1, %r6, 16, %r7;
    mad.lo.s32  %r8, %r0, 16, %r7;
    and.b32     %r9, %r0, 31;
    setp.eq.b32     %p1, %r9, 31;
    st.shared.v4.b32    [%r8], {%r2, %r3, %r4, %r5};
    bar.sync    0;
    BODY
    st.global.v4.b32    [%rd0], {%r2, %r3, %r4, %r5};
    ret;
}
"""
X4 = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r2, %r3, %r4, %r5}, [%r1];"

# c (32, 8) = a (32, k) times b (8, k) transposed, by two warps. While 16 values of each row are multiplied, each thread
# brings eight of the next 16 of a, and some threads also of b; 1280 bytes on lies the other of two stages.
PIPELINE = """
.visible .entry pipeline(.param .u64 c, .param .u64 a, .param .u64 b, .param .u32 k)
{
    .reg .pred  %p<4>;
    .reg .b32   %r<32>;
    .reg .b64   %rd<8>;
    .shared .align 16 .b8 tiles[2560];
    ld.param.b64    %rd0, [c];
    ld.param.b64    %rd1, [a];
    ld.param.b64    %rd2, [b];
    ld.param.b32    %r0, [k];
    mov.u32     %r1, %tid.x;
    setp.lt.u32     %p0, %r1, 16;
    shr.u32     %r2, %r1, 1;
    and.b32     %r3, %r1, 1;
    shl.b32     %r3, %r3, 3;
    mad.lo.s32  %r4, %r2, %r0, %r3;
    mul.wide.u32    %rd3, %r4, 2;
    add.s64     %rd1, %rd1, %rd3;
    add.s64     %rd2, %rd2, %rd3;
    mov.b32     %r5, tiles;
    mad.lo.s32  %r6, %r1, 16, %r5;
    // What a lane loads of a: row % 16 of its warp's, and one of two halves; of b: row % 8.
    mov.u32     %r7, %laneid;
    mov.u32     %r8, %warpid;
    and.b32     %r9, %r7, 15;
    shl.b32     %r10, %r8, 4;
    add.s32     %r9, %r9, %r10;
    shr.u32     %r11, %r7, 4;
    shl.b32     %r11, %r11, 4;
    mad.lo.s32  %r9, %r9, 32, %r11;
    add.s32     %r9, %r9, %r5;
    and.b32     %r12, %r7, 7;
    and.b32     %r13, %r7, 8;
    shl.b32     %r13, %r13, 1;
    mad.lo.s32  %r12, %r12, 32, %r13;
    add.s32     %r12, %r12, %r5;
    mov.b32     %r20, 0f00000000;
    mov.b32     %r21, %r20;
    mov.b32     %r22, %r20;
    mov.b32     %r23, %r20;
    mov.b32     %r14, 0;
    mov.b32     %r15, 0;
    cp.async.cg.shared.global   [%r6], [%rd1], 16;
    @%p0 cp.async.cg.shared.global  [%r6+1024], [%rd2], 16;
    cp.async.commit_group;
$next:
    add.s32     %r14, %r14, 16;
    setp.lt.u32     %p1, %r14, %r0;
    and.pred    %p2, %p0, %p1;
    add.s64     %rd1, %rd1, 32;
    add.s64     %rd2, %rd2, 32;
    xor.b32     %r16, %r15, 1280;
    add.s32     %r17, %r6, %r16;
    @%p1 cp.async.cg.shared.global  [%r17], [%rd1], 16;
    @%p2 cp.async.cg.shared.global  [%r17+1024], [%rd2], 16;
    cp.async.commit_group;
    cp.async.wait_group     1;
    bar.sync    1;
    add.s32     %r18, %r9, %r15;
    add.s32     %r19, %r12, %r15;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16    {%r24, %r25, %r26, %r27}, [%r18];
    ldmatrix.sync.aligned.m8n8.x2.shared.b16    {%r28, %r29}, [%r19+1024];
    mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32
        {%r20, %r21, %r22, %r23},
        {%r24, %r25, %r26, %r27},
        {%r28, %r29},
        {%r20, %r21, %r22, %r23};
    bar.sync    2;
    mov.b32     %r15, %r16;
    @%p1 bra    $next;
    shr.u32     %r16, %r7, 2;
    add.s32     %r16, %r16, %r10;
    and.b32     %r17, %r7, 3;
    shl.b32     %r17, %r17, 3;
    mad.lo.s32  %r16, %r16, 32, %r17;
    cvt.u64.u32     %rd3, %r16;
    add.s64     %rd0, %rd0, %rd3;
    st.global.v2.b32    [%rd0], {%r20, %r21};
    st.global.v2.b32    [%rd0+256], {%r22, %r23};
    ret;
}
"""


def product(type_: torch.dtype, k: int, text: str = PRODUCT, threads: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Multiply matrices of whole numbers, all different; return D and what is right.

    The fragments are put together by the formulas that the PTX ISA has for row and column of a lane's element i.
    """
    random = np.random.default_rng(0)
    shapes = ((16, k), (k, 8), (16, 8))
    a, b, c = (random.permutation(1 + np.arange(m * n)).reshape(m, n).astype("f4") for m, n in shapes)
    of_a, of_b, of_c = (np.zeros((32, each), "f4") for each in (k // 2, k // 4, 4))
    places = np.zeros((2, 32, 4), int)
    for lane in range(32):
        group, member = lane >> 2, lane % 4
        for i in range(k // 2):
            row = group if i % 4 < 2 else group + 8
            of_a[lane, i] = a[row, member * 2 + (i & 1) + (8 if i >= 4 else 0)]
        for i in range(k // 4):
            of_b[lane, i] = b[member * 2 + (i & 1) + (8 if i >= 2 else 0), group]
        for i in range(4):
            places[:, lane, i] = group if i < 2 else group + 8, member * 2 + (i & 1)
            of_c[lane, i] = c[tuple(places[:, lane, i])]
    name = {torch.float16: "f16", torch.bfloat16: "bf16"}[type_]
    text = text.replace("LOAD", LOADS[k]).replace("SIZE", str(k)).replace("TYPE", name)
    if k == 8:
        text = text.replace("{%r5, %r6, %r7, %r8}", "{%r5, %r6}").replace("{%r9, %r10}", "{%r9}")
    halves = [torch.from_numpy(each).to(type_).view(torch.int16).numpy() for each in (of_a, of_b)]
    d = np.full((32, 4), np.nan, "f4")
    Kernel(text).run(1, threads, [d, *halves, of_c])
    actual = np.full((16, 8), np.nan, "f4")
    actual[tuple(places)] = d
    return actual, a.astype("f8") @ b + c


def matrices(body: str, rows: np.ndarray, text: str = MATRICES) -> tuple[np.ndarray, np.ndarray]:
    """Load matrices, of which each thread gives the address of a row; return the registers, and all rows."""
    x = np.arange(len(rows) * 8, dtype="u2").reshape(-1, 8)
    y = np.zeros((len(rows), 4), "u4")
    Kernel(text.replace("BODY", body)).run(1, len(rows), [y, x, rows.astype("i4")])
    return y, x


def pipeline(text: str = PIPELINE, k: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """Return the product of random matrices, and what is right."""
    random = np.random.default_rng(0)
    a, b = (random.standard_normal((rows, k)).astype("f2") for rows in (32, 8))
    c = np.full((32, 8), np.nan, "f4")
    Kernel(text).run(1, 64, [c, a, b, k])
    return c, a.astype("f8") @ b.astype("f8").T


@pytest.mark.parametrize("k", [8, 16])
@pytest.mark.parametrize("type_", [torch.float16, torch.bfloat16])
def test_product_of_fragments(type_: torch.dtype, k: int) -> None:
    np.testing.assert_array_equal(*product(type_, k))


@pytest.mark.parametrize(
    ("known", "new", "threads", "message"),
    [
        ("", "", 31, "not all lanes of the warp take part"),
        ("mma.sync", "@%p1 mma.sync", 32, "waits for lanes of its warp that never come"),
        ("mma.sync", "@%p1 bra $a; bra $b; $a: mma.sync", 32, "waits for lanes of its warp that never come"),
        ("mma.sync", "@!%p1 ret; mma.sync", 32, "not all lanes of the warp take part"),
    ],
)
def test_product_without_a_lane_raises(known: str, new: str, threads: int, message: str) -> None:
    text = PRODUCT.replace(known, new).replace("st.global", "$b: st.global") if known else PRODUCT
    with pytest.raises(KernelError, match=message):
        product(torch.float16, 16, text, threads)


@pytest.mark.parametrize("trans", ["", ".trans"])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_matrices_are_loaded_by_rows(n: int, trans: str) -> None:
    rows = np.random.default_rng(0).permutation(32)
    rows[8 * n :] = 1000  # nothing is asked of these lanes
    registers = ", ".join(f"%r{2 + i}" for i in range(n))
    y, x = matrices(f"ldmatrix.sync.aligned.m8n8.x{n}{trans}.shared.b16 {{{registers}}}, [%r1];", rows)
    for i in range(n):
        matrix = x[rows[8 * i : 8 * i + 8]]
        pairs = np.ascontiguousarray(matrix.T if trans else matrix).view("u4")
        np.testing.assert_array_equal(y[:, i], pairs.ravel())  # four lanes for each row


@pytest.mark.parametrize(
    ("body", "rows", "error", "message"),
    [
        (f"add.s32 %r1, %r1, 8; {X4}", 0, AccessError, "misaligned access of 16 bytes to shared memory's shared"),
        (X4, 33, AccessError, r"thread \(31, 0, 0\): 16 bytes outside of .* at offset 1024"),
        (X4, 1, AccessError, r"thread \(31, 0, 0\): a value that was never written .* at offset 512"),
        (f"@%p1 {X4}", 0, KernelError, "waits for lanes of its warp that never come"),
        (f"@!%p1 ret; {X4}", 0, KernelError, "not all lanes of the warp take part"),
        (f"cp.async.cg.shared.global [%r8], [%rd1], 16; {X4}", 0, RaceError, "reads .* in flight"),
    ],
)
def test_matrices_that_cannot_be_loaded(body: str, rows: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        matrices(body, np.arange(32) + rows)


def test_matrices_of_other_warps_need_a_barrier() -> None:
    rows = np.arange(64) ^ 32
    assert matrices(X4, rows)[0][0, 0] == 256 | 257 << 16
    with pytest.raises(RaceError, match=r"thread \(0, 0, 0\): reads shared memory, which was written by warp 1"):
        matrices(X4, rows, MATRICES.replace("bar.sync", "// bar.sync"))


@pytest.mark.parametrize(
    "unknown",
    [
        "ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r2}, [%r1];",
        "ldmatrix.sync.aligned.m8n16.x1.shared.b8x16.b4x16_p64 {%r2}, [%r1];",
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.bf16.f32 {_, _, _, _}, {%r2, %r3}, {%r4}, {%r2, %r3, %r4, %r5};",
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {_, _, _, _}, {%r2}, {%r4}, {%r2, %r3, %r4, %r5};",
        "mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {_, _}, {%r2, %r3}, {%r4}, {%r2, %r3};",
    ],
)
def test_other_forms_are_unknown(unknown: str) -> None:
    with pytest.raises(ValueError, match=r"^PTX line 26: (?:ldmatrix|mma)"):
        Kernel(MATRICES.replace("BODY", unknown))


@pytest.mark.parametrize("k", [16, 80])
def test_pipeline_of_copies_and_products(k: int) -> None:
    actual, expected = pipeline(k=k)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("known", "new", "message"),
    [
        ("cp.async.wait_group     1", "cp.async.wait_group 2", "reads shared memory where the copy of"),
        ("bar.sync    1", "// bar.sync 1", "reads shared memory, which was written by warp 0"),
        ("bar.sync    2", "// bar.sync 2", "starts a copy into shared memory, which was read by warp"),
    ],
)
def test_pipeline_without_a_wait_or_barrier_races(known: str, new: str, message: str) -> None:
    assert known in PIPELINE
    with pytest.raises(RaceError, match=message):
        pipeline(PIPELINE.replace(known, new))
