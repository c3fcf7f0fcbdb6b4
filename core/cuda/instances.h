/* The dtypes and head sizes that the tensor-core kernels (_mma) are built for: the one list. The
 * build makes a source file of each entry for each operation, and the tables of forward.c and
 * backward.c are made of it. X(dtype, its name, its type in CUDA, head_dim) */
#ifndef HPA_CORE_CUDA_INSTANCES_H
#define HPA_CORE_CUDA_INSTANCES_H

#define HPA_MMA_INSTANCES(X)              \
    X(HPA_F16, f16, __half, 32)           \
    X(HPA_F16, f16, __half, 64)           \
    X(HPA_F16, f16, __half, 96)           \
    X(HPA_F16, f16, __half, 128)          \
    X(HPA_F16, f16, __half, 256)          \
    X(HPA_BF16, bf16, __nv_bfloat16, 32)  \
    X(HPA_BF16, bf16, __nv_bfloat16, 64)  \
    X(HPA_BF16, bf16, __nv_bfloat16, 96)  \
    X(HPA_BF16, bf16, __nv_bfloat16, 128) \
    X(HPA_BF16, bf16, __nv_bfloat16, 256)

/* Those that the Hopper kernels (_sm90) are built for, all in one source file of each operation. */
#define HPA_SM90_INSTANCES(X)            \
    X(HPA_F16, f16, __half, 64)          \
    X(HPA_F16, f16, __half, 128)         \
    X(HPA_BF16, bf16, __nv_bfloat16, 64) \
    X(HPA_BF16, bf16, __nv_bfloat16, 128)

#endif
