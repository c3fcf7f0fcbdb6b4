/* Warpgroup matrix products of sm_90a: 128 threads, 64 rows, operands in shared memory or registers.
 *
 * Operand tiles are what tma.cuh fetches: rows of 64 16-bit elements (128 bytes) in the 128-byte
 * swizzle; a tile of more columns is several such panels, one after another.
 * Each warp owns 16 of the 64 rows. Of an accumulator d[], d[4 n + 0] and d[4 n + 1] are columns
 * 8 n + 2 (lane % 4) and the next of row lane / 4; d[4 n + 2] and d[4 n + 3] are those of row
 * lane / 4 + 8. */
#ifndef HPA_CORE_CUDA_WGMMA_CUH
#define HPA_CORE_CUDA_WGMMA_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

/* Orders this thread's register and shared-memory writes before the products that follow. */
__device__ __forceinline__ void wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Waits until at most `pending` of the committed groups are under way. */
template <int pending> __device__ __forceinline__ void wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

/* The compiler must not move or copy sums that a product under way still writes. */
template <int n> __device__ __forceinline__ void wgmma_hold(float (&d)[n])
{
#pragma unroll
    for (int i = 0; i < n; i++)
        asm volatile("" : "+f"(d[i])::"memory");
}

/* A panel for the products below. stride_bytes: from one 64-column panel to the next, used when the
 * product's columns run along the panel rows (transposed B); rows come in groups of 8, 1024 bytes. */
__device__ __forceinline__ uint64_t wgmma_panel(uint32_t address, uint32_t stride_bytes)
{
    const uint64_t swizzle_128 = (uint64_t)1 << 62;
    const uint64_t group_stride = (uint64_t)(1024 >> 4) << 32;
    const uint64_t panel_stride = (uint64_t)(stride_bytes >> 4 & 0x3fff) << 16;
    return swizzle_128 | group_stride | panel_stride | (address >> 4 & 0x3fff);
}

/* The panel that begins some bytes further on: one addition, in place of a panel made anew. */
__device__ __forceinline__ uint64_t wgmma_panel_at(uint64_t panel, uint32_t bytes)
{
    return (panel & 0xffffffff00000000u) | ((uint32_t)panel + (bytes >> 4));
}

#define WGMMA_SUMS_32(d)                                                                          \
    "+f"((d)[0]), "+f"((d)[1]), "+f"((d)[2]), "+f"((d)[3]), "+f"((d)[4]), "+f"((d)[5]),           \
        "+f"((d)[6]), "+f"((d)[7]), "+f"((d)[8]), "+f"((d)[9]), "+f"((d)[10]), "+f"((d)[11]),     \
        "+f"((d)[12]), "+f"((d)[13]), "+f"((d)[14]), "+f"((d)[15]), "+f"((d)[16]), "+f"((d)[17]), \
        "+f"((d)[18]), "+f"((d)[19]), "+f"((d)[20]), "+f"((d)[21]), "+f"((d)[22]), "+f"((d)[23]), \
        "+f"((d)[24]), "+f"((d)[25]), "+f"((d)[26]), "+f"((d)[27]), "+f"((d)[28]), "+f"((d)[29]), \
        "+f"((d)[30]), "+f"((d)[31])

#define WGMMA_NAMES_32                                                        \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "

#define WGMMA_SUMS_64(d)                                                                          \
    "+f"((d)[0]), "+f"((d)[1]), "+f"((d)[2]), "+f"((d)[3]), "+f"((d)[4]), "+f"((d)[5]),           \
        "+f"((d)[6]), "+f"((d)[7]), "+f"((d)[8]), "+f"((d)[9]), "+f"((d)[10]), "+f"((d)[11]),     \
        "+f"((d)[12]), "+f"((d)[13]), "+f"((d)[14]), "+f"((d)[15]), "+f"((d)[16]), "+f"((d)[17]), \
        "+f"((d)[18]), "+f"((d)[19]), "+f"((d)[20]), "+f"((d)[21]), "+f"((d)[22]), "+f"((d)[23]), \
        "+f"((d)[24]), "+f"((d)[25]), "+f"((d)[26]), "+f"((d)[27]), "+f"((d)[28]), "+f"((d)[29]), \
        "+f"((d)[30]), "+f"((d)[31]), "+f"((d)[32]), "+f"((d)[33]), "+f"((d)[34]), "+f"((d)[35]), \
        "+f"((d)[36]), "+f"((d)[37]), "+f"((d)[38]), "+f"((d)[39]), "+f"((d)[40]), "+f"((d)[41]), \
        "+f"((d)[42]), "+f"((d)[43]), "+f"((d)[44]), "+f"((d)[45]), "+f"((d)[46]), "+f"((d)[47]), \
        "+f"((d)[48]), "+f"((d)[49]), "+f"((d)[50]), "+f"((d)[51]), "+f"((d)[52]), "+f"((d)[53]), \
        "+f"((d)[54]), "+f"((d)[55]), "+f"((d)[56]), "+f"((d)[57]), "+f"((d)[58]), "+f"((d)[59]), \
        "+f"((d)[60]), "+f"((d)[61]), "+f"((d)[62]), "+f"((d)[63])

#define WGMMA_NAMES_64                                                                 \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "          \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "

/* d[64, columns] = (accumulate ? d : 0) + a[64, 16] b[columns, 16]^T, both in shared memory. */
template <typename T, int n>
__device__ __forceinline__ void wgmma_abt(float (&d)[n], uint64_t a, uint64_t b, bool accumulate);

/* The same with a in registers, laid out as below. */
template <typename T, int n>
__device__ __forceinline__ void wgmma_abt(float (&d)[n], const uint32_t (&a)[4], uint64_t b,
                                          bool accumulate);

/* d[64, columns] += a[64, 16] b[16, columns], a in registers as two 16-bit elements each:
 * row lane / 4 columns 2 (lane % 4), row + 8, columns + 8, row + 8 columns + 8. */
template <typename T, int n>
__device__ __forceinline__ void wgmma_ab(float (&d)[n], const uint32_t (&a)[4], uint64_t b);

#define WGMMA_DEFINE(type, name, columns, sums)                                                    \
    template <>                                                                                    \
    __device__ __forceinline__ void wgmma_abt<type, sums>(float(&d)[sums], uint64_t a, uint64_t b, \
                                                          bool accumulate)                         \
    {                                                                                              \
        asm volatile(                                                                              \
            "{\n.reg .pred add;\nsetp.ne.b32 add, %" WGMMA_NUMBER(                                 \
                sums, 2) ", 0;\n"                                                                  \
                         "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." name "." name     \
                         " " WGMMA_NAMES_##sums                                                    \
            "%" WGMMA_NUMBER(sums, 0) ", %" WGMMA_NUMBER(sums, 1) ", add, 1, 1, 0, 0;\n}\n"        \
            : WGMMA_SUMS_##sums(d)                                                                 \
            : "l"(a), "l"(b), "r"((int)accumulate));                                               \
    }                                                                                              \
    template <>                                                                                    \
    __device__ __forceinline__ void wgmma_abt<type, sums>(                                         \
        float(&d)[sums], const uint32_t(&a)[4], uint64_t b, bool accumulate)                       \
    {                                                                                              \
        asm volatile(                                                                              \
            "{\n.reg .pred add;\nsetp.ne.b32 add, %" WGMMA_NUMBER(                                 \
                sums, 5) ", 0;\n"                                                                  \
                         "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." name "." name     \
                         " " WGMMA_NAMES_##sums                                                    \
            "{%" WGMMA_NUMBER(sums, 0) ", %" WGMMA_NUMBER(sums, 1) ", %" WGMMA_NUMBER(             \
                sums, 2) ", %" WGMMA_NUMBER(sums, 3) "}, %" WGMMA_NUMBER(sums,                     \
                                                                         4) ", add, 1, 1, 0;\n}\n" \
            : WGMMA_SUMS_##sums(d)                                                                 \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate));           \
    }                                                                                              \
    template <>                                                                                    \
    __device__ __forceinline__ void wgmma_ab<type, sums>(float(&d)[sums], const uint32_t(&a)[4],   \
                                                         uint64_t b)                               \
    {                                                                                              \
        asm volatile(                                                                              \
            "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." name "." name                  \
            " " WGMMA_NAMES_##sums                                                                 \
            "{%" WGMMA_NUMBER(sums, 0) ", %" WGMMA_NUMBER(sums, 1) ", %" WGMMA_NUMBER(             \
                sums, 2) ", %" WGMMA_NUMBER(sums, 3) "}, %" WGMMA_NUMBER(sums,                     \
                                                                         4) ", 1, 1, 1, 1;\n"      \
            : WGMMA_SUMS_##sums(d)                                                                 \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                 \
    }

/* Operand number sums + n as text. */
#define WGMMA_NUMBER(sums, n) WGMMA_NUMBER_##sums##_##n
#define WGMMA_NUMBER_32_0 "32"
#define WGMMA_NUMBER_32_1 "33"
#define WGMMA_NUMBER_32_2 "34"
#define WGMMA_NUMBER_32_3 "35"
#define WGMMA_NUMBER_32_4 "36"
#define WGMMA_NUMBER_32_5 "37"
#define WGMMA_NUMBER_64_0 "64"
#define WGMMA_NUMBER_64_1 "65"
#define WGMMA_NUMBER_64_2 "66"
#define WGMMA_NUMBER_64_3 "67"
#define WGMMA_NUMBER_64_4 "68"
#define WGMMA_NUMBER_64_5 "69"

WGMMA_DEFINE(__half, "f16", 64, 32)
WGMMA_DEFINE(__half, "f16", 128, 64)
WGMMA_DEFINE(__nv_bfloat16, "bf16", 64, 32)
WGMMA_DEFINE(__nv_bfloat16, "bf16", 128, 64)

#endif
