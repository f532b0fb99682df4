"""Prints the kernels for GPUs as PTX, each after a line `//===== name`, for a processor on which kernels overlap.

It has to be said to the compiler, too: `--target-accelerator sm_90a`.
"""

from max.gpu.host import get_gpu_target
from std.compile import compile_info

from plain_kernels import (
    add_medians,
    causal,
    cross_attention,
    embed,
    flash,
    follow,
    gemm,
    head_weights,
    linear,
    merge,
    projections,
    scores,
    search_merge,
    search_parts,
    self_attention,
    standardize,
    store,
    tensor_flash,
    tensor_gemm,
    tensor_linear,
    token_probs,
)

comptime F32 = DType.float32
comptime TARGET = get_gpu_target["sm_90a"]()


def show[FuncType: TrivialRegisterPassable, //, kernel: FuncType](name: String):
    print("//=====", name)
    print(compile_info[kernel, target=TARGET]().asm)


def main():
    comptime for type in [DType.float16, DType.bfloat16, DType.float32]:
        show[embed[type]](String("embed ", type))
        comptime for rows in [1, 5, 8]:
            comptime outputs = 1 if rows == 1 else 2
            show[linear[type, F32, rows, outputs, overlaps=False]](String("linear apart ", type, " ", rows))
            show[linear[type, F32, rows, outputs]](String("linear ", type, " ", rows))
            show[linear[type, F32, rows, outputs, has_norm=True]](String("linear norm ", type, " ", rows))
    comptime for rows in [1, 5]:
        comptime outputs = 1 if rows == 1 else 2
        comptime F16 = DType.float16
        show[linear[F16, F32, rows, outputs, has_norm=True, has_bias=True]](String("linear norm bias float16 ", rows))
        show[linear[F16, F32, rows, outputs, has_norm=True, has_bias=True, has_gelu=True]](
            String("linear norm gelu float16 ", rows)
        )
        show[linear[F16, F32, rows, outputs, has_bias=True]](String("linear bias float16 ", rows))
        show[linear[F16, F32, rows, outputs, has_bias=True, has_gelu=True]](String("linear gelu float16 ", rows))
        show[linear[F16, F32, rows, outputs, has_bias=True, has_residual=True]](String("linear add float16 ", rows))

    comptime for type in [DType.float16, DType.float32]:
        comptime for side in [4, 8]:
            show[gemm[type, 1, side, True, True, False]](String("gemm gelu ", type, " ", side))
            show[gemm[type, 1, side, True, False, True]](String("gemm add ", type, " ", side))
            show[gemm[type, 1, side, True, False, False]](String("gemm heads ", type, " ", side))
            show[gemm[type, 3, side, True, True, True]](String("gemm conv ", type, " ", side))
    show[gemm[F32, 3, 4, True, True, False]]("gemm conv without positions")
    show[scores]("scores")

    comptime for type in [DType.float16, DType.bfloat16]:
        show[tensor_linear[type, F32]](String("tensor linear ", type))
        show[tensor_linear[type, F32, has_norm=True]](String("tensor linear norm ", type))
        show[tensor_linear[type, F32, has_norm=True, has_bias=True]](String("tensor linear norm bias ", type))
        show[tensor_linear[type, F32, has_norm=True, has_bias=True, has_gelu=True]](
            String("tensor linear norm gelu ", type)
        )
        show[tensor_linear[type, F32, has_bias=True]](String("tensor linear bias ", type))
        show[tensor_linear[type, F32, has_bias=True, has_gelu=True]](String("tensor linear gelu ", type))
        show[tensor_linear[type, F32, has_bias=True, has_residual=True]](String("tensor linear add ", type))
        show[tensor_linear[type, F32, warps=16, has_bias=True, has_residual=True]](String("tensor linear deep ", type))
        show[tensor_linear[type, type, has_bias=True, overlaps=False]](String("tensor linear apart ", type))
        comptime for groups in [2, 4]:
            show[tensor_linear[type, F32, groups]](String("tensor linear ", type, " ", groups))
            show[tensor_linear[type, F32, groups, has_norm=True]](String("tensor linear norm ", type, " ", groups))
        comptime for side in [64, 128]:
            show[tensor_gemm[type, type, 1, side, True, True, False]](String("tensor gelu ", type, " ", side))
            show[tensor_gemm[type, F32, 1, side, True, False, True]](String("tensor add ", type, " ", side))
            show[tensor_gemm[type, type, 1, side, True, False, False]](String("tensor heads ", type, " ", side))
            show[tensor_gemm[type, F32, 3, side, True, True, True]](String("tensor conv ", type, " ", side))
            show[projections[type, side]](String("tensor projections ", type, " ", side))
        show[tensor_flash[type]](String("tensor flash ", type))
        show[store[type]](String("store ", type))
        show[causal[type, 64]](String("causal ", type))
        show[self_attention[type, 64]](String("self_attention ", type, " 64"))
        comptime for rows in [1, 5]:
            show[cross_attention[type, rows, 64]](String("cross_attention ", type, " ", rows))
    show[tensor_gemm[DType.float16, F32, 1, 64, False, False, False]]("tensor without bias")

    comptime for head_dim in [32, 64]:
        show[self_attention[F32, head_dim]](String("self_attention float32 ", head_dim))
    comptime for rows in [1, 5]:
        show[cross_attention[F32, rows, 64]](String("cross_attention float32 ", rows))
    show[merge[64]]("merge")
    comptime for head_dim in [32, 64]:
        show[flash[head_dim]](String("flash ", head_dim))
    show[store[F32]]("store")
    show[causal[F32, 64]]("causal")
    show[search_parts]("search parts")
    show[search_merge]("search merge")
    show[follow]("follow")
    show[token_probs]("token probs")
    show[head_weights]("head weights")
    show[standardize]("standardize")
    show[add_medians]("add medians")
