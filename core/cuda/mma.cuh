/* Products of one warp on the tensor cores (mma.sync, sm_80 and later) over tiles of copy.cuh.
 *
 * Registers of one warp, lane = 4 g + t:
 *   sums[4]    16 x 8 f32: rows g (0, 1) and g + 8 (2, 3), columns 2 t and 2 t + 1
 *   left[4]    16 x 16, a left operand: row g columns 2 t, + 1; row g + 8; then columns + 8
 *   right[4]   16 x 16, a right operand for two products of 8 columns each: 0, 1 and 2, 3 */
#ifndef HPA_CORE_CUDA_MMA_CUH
#define HPA_CORE_CUDA_MMA_CUH

#include "core/cuda/copy.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

template <typename T>
__device__ __forceinline__ void multiply_add(float (&sums)[4], const uint32_t (&left)[4],
                                             uint32_t right_0, uint32_t right_1);

#define HPA_DEFINE_MULTIPLY_ADD(type, name)                                                        \
    template <>                                                                                    \
    __device__ __forceinline__ void multiply_add<type>(float(&sums)[4], const uint32_t(&left)[4],  \
                                                       uint32_t right_0, uint32_t right_1)         \
    {                                                                                              \
        asm("mma.sync.aligned.m16n8k16.row.col.f32." name "." name ".f32 "                         \
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                      \
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                           \
            : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right_0), "r"(right_1)); \
    }
HPA_DEFINE_MULTIPLY_ADD(__half, "f16")
HPA_DEFINE_MULTIPLY_ADD(__nv_bfloat16, "bf16")
#undef HPA_DEFINE_MULTIPLY_ADD

/* Four 8 x 8 matrices; lane i gives the address of row i % 8 of matrix i / 8. */
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], uint32_t row_address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row_address));
}

__device__ __forceinline__ void load_matrices_transposed(uint32_t (&to)[4], uint32_t row_address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row_address));
}

/* Bytes from the corner of a 16 x 16 part of a tile to the row that this lane names: for a left
 * operand and for a right operand that runs down the rows (load_matrices_transposed) ... */
template <int D> __device__ __forceinline__ uint32_t lane_offset()
{
    const uint32_t lane = threadIdx.x % 32;
    return lane % 16 * tile_row_bytes<D> + lane / 16 * 16;
}

/* ... and for a right operand that is given transposed: rows are its columns. */
template <int D> __device__ __forceinline__ uint32_t lane_offset_across()
{
    const uint32_t lane = threadIdx.x % 32;
    return (lane / 16 * 8 + lane % 8) * tile_row_bytes<D> + lane / 8 % 2 * 16;
}

/* Bytes from a tile's start to the 16 x 16 part number (down, across). */
template <int D> __device__ __forceinline__ constexpr uint32_t part_offset(int down, int across)
{
    return (uint32_t)(16 * down * tile_row_bytes<D> + 32 * across);
}

__device__ __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

template <typename T> __device__ __forceinline__ uint32_t pack(float low, float high);

template <> __device__ __forceinline__ uint32_t pack<__half>(float low, float high)
{
    const __half2 both = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t *>(&both);
}

template <> __device__ __forceinline__ uint32_t pack<__nv_bfloat16>(float low, float high)
{
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t *>(&both);
}

template <typename T> __device__ __forceinline__ float2 unpack(uint32_t both);

template <> __device__ __forceinline__ float2 unpack<__half>(uint32_t both)
{
    return __half22float2(*reinterpret_cast<const __half2 *>(&both));
}

template <> __device__ __forceinline__ float2 unpack<__nv_bfloat16>(uint32_t both)
{
    return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162 *>(&both));
}

/* Two neighbouring 16 x 8 sums, rounded, are a left operand of 16 x 16. */
template <typename T>
__device__ __forceinline__ void sums_to_left(uint32_t (&left)[4], const float (&low)[4],
                                             const float (&high)[4])
{
    left[0] = pack<T>(low[0], low[1]);
    left[1] = pack<T>(low[2], low[3]);
    left[2] = pack<T>(high[0], high[1]);
    left[3] = pack<T>(high[2], high[3]);
}

/* sums(16 x D) += left(16 x 16) * rows 16 down ... of the tile (16 x D) */
template <typename T, int D>
__device__ __forceinline__ void multiply_rows(float (&sums)[D / 8][4], const uint32_t (&left)[4],
                                              uint32_t tile_lane, int down)
{
#pragma unroll
    for (int across = 0; across < D / 16; across++) {
        uint32_t right[4];
        load_matrices_transposed(right, tile_lane + part_offset<D>(down, across));
        multiply_add<T>(sums[2 * across], left, right[0], right[1]);
        multiply_add<T>(sums[2 * across + 1], left, right[2], right[3]);
    }
}

/* The same for two groups of 16 rows that share the right operand. */
template <typename T, int D, int groups>
__device__ __forceinline__ void multiply_rows(float (&sums)[groups][D / 8][4],
                                              const uint32_t (&left)[groups][4], uint32_t tile_lane,
                                              int down)
{
#pragma unroll
    for (int across = 0; across < D / 16; across++) {
        uint32_t right[4];
        load_matrices_transposed(right, tile_lane + part_offset<D>(down, across));
#pragma unroll
        for (int n = 0; n < groups; n++) {
            multiply_add<T>(sums[n][2 * across], left[n], right[0], right[1]);
            multiply_add<T>(sums[n][2 * across + 1], left[n], right[2], right[3]);
        }
    }
}

/* sums(16 groups x columns) = a(16 groups x D) * b(columns x D)^T, a and b being tiles */
template <typename T, int D, int groups, int columns>
__device__ __forceinline__ void multiply_tiles(float (&sums)[groups][columns / 8][4],
                                               uint32_t a_lane, uint32_t b_lane_across)
{
#pragma unroll
    for (int n = 0; n < groups; n++)
#pragma unroll
        for (int c = 0; c < columns / 8; c++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                sums[n][c][i] = 0;
#pragma unroll
    for (int d = 0; d < D / 16; d++) {
        uint32_t left[groups][4];
#pragma unroll
        for (int n = 0; n < groups; n++)
            load_matrices(left[n], a_lane + part_offset<D>(n, d));
#pragma unroll
        for (int c = 0; c < columns / 16; c++) {
            uint32_t right[4];
            load_matrices(right, b_lane_across + part_offset<D>(c, d));
#pragma unroll
            for (int n = 0; n < groups; n++) {
                multiply_add<T>(sums[n][2 * c], left[n], right[0], right[1]);
                multiply_add<T>(sums[n][2 * c + 1], left[n], right[2], right[3]);
            }
        }
    }
}

#endif
