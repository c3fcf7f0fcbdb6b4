/* Sums and maxima over the lanes that share a row, and the search for values that are not finite. */
#ifndef HPA_CORE_CUDA_REDUCE_CUH
#define HPA_CORE_CUDA_REDUCE_CUH

#include "core/cuda/copy.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

/* Over the width lanes of an aligned group; every lane gets the same bits. */
template <int width, typename T> __device__ __forceinline__ T lanes_sum(T value)
{
#pragma unroll
    for (int step = width / 2; step > 0; step /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

/* A NaN loses: it is seen in the sum that follows. */
template <int width, typename T> __device__ __forceinline__ T lanes_max(T value)
{
#pragma unroll
    for (int step = width / 2; step > 0; step /= 2)
        value = max(value, __shfl_xor_sync(0xffffffffu, value, step));
    return value;
}

/* The exponent bits of one 16-bit element: all are set in infinities and NaNs. */
template <typename T> inline constexpr uint32_t exponent_bits = 0;
template <> inline constexpr uint32_t exponent_bits<__half> = 0x7c00u;
template <> inline constexpr uint32_t exponent_bits<__nv_bfloat16> = 0x7f80u;

/* Two elements at once, with 0 in place of those that are not finite. */
template <typename T> __device__ __forceinline__ uint32_t finite_or_zero(uint32_t both)
{
    constexpr uint32_t low = exponent_bits<T>, high = low << 16;
    const uint32_t without_low = (both & low) == low ? both & 0xffff0000u : both;
    return (both & high) == high ? without_low & 0x0000ffffu : without_low;
}

/* Does this thread's share of a tile hold a value that is not finite? */
template <typename T, int D>
__device__ __forceinline__ bool share_is_not_finite(uint32_t tile, int rows)
{
    constexpr int words = D / 2;
    bool found = false;
    for (int i = (int)threadIdx.x; i < rows * words; i += (int)blockDim.x) {
        uint32_t both;
        asm volatile("ld.shared.u32 %0, [%1];"
                     : "=r"(both)
                     : "r"(tile + i / words * tile_row_bytes<D> + i % words * 4));
        found |= finite_or_zero<T>(both) != both;
    }
    return found;
}

/* Puts 0 in place of what is not finite in the tile: this thread's share of it. */
template <typename T, int D>
__device__ __forceinline__ void make_share_finite(uint32_t tile, int rows)
{
    constexpr int words = D / 2;
    for (int i = (int)threadIdx.x; i < rows * words; i += (int)blockDim.x) {
        const uint32_t address = tile + i / words * tile_row_bytes<D> + i % words * 4;
        uint32_t both;
        asm volatile("ld.shared.u32 %0, [%1];" : "=r"(both) : "r"(address));
        asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(finite_or_zero<T>(both))
                     : "memory");
    }
}

#endif
