/* Results of a warp, from registers to rows of global memory. */
#ifndef HPA_CORE_CUDA_STORE_CUH
#define HPA_CORE_CUDA_STORE_CUH

#include "core/cuda/mma.cuh"

/* factor * sums(16 groups x D), rounded, to the first `rows` of the rows at `to`; added to what is
 * there with accumulate. They pass through the warp's own rows of a tile, to be written out in
 * pieces of 16 bytes. factor: of rows g and g + 8 of each group. */
template <typename T, int D, int groups>
__device__ __forceinline__ void
store_rows(T *to, int64_t token_stride, int rows, const float (&sums)[groups][D / 8][4],
           const float (&factor)[groups][2], bool accumulate, uint32_t warp_tile)
{
    const int lane = (int)(threadIdx.x % 32);
    __syncwarp();
#pragma unroll
    for (int n = 0; n < 2 * groups; n++) {
        const int row = 8 * n + lane / 4;
#pragma unroll
        for (int c = 0; c < D / 8; c++) {
            float low = sums[n / 2][c][n % 2 * 2] * factor[n / 2][n % 2];
            float high = sums[n / 2][c][n % 2 * 2 + 1] * factor[n / 2][n % 2];
            if (accumulate && row < rows) {
                const float2 before = unpack<T>(*reinterpret_cast<const uint32_t *>(
                    to + row * token_stride + 8 * c + lane % 4 * 2));
                low += before.x;
                high += before.y;
            }
            asm volatile("st.shared.u32 [%0], %1;" ::"r"(warp_tile + row * tile_row_bytes<D> +
                                                         16 * c + lane % 4 * 4),
                         "r"(pack<T>(low, high))
                         : "memory");
        }
    }
    __syncwarp();
    for (int i = lane; i < min(16 * groups, rows) * (D / 8); i += 32) {
        const int row = i / (D / 8), unit = i % (D / 8);
        uint4 value;
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                     : "r"(warp_tile + row * tile_row_bytes<D> + unit * 16));
        *reinterpret_cast<uint4 *>(to + row * token_stride + unit * 8) = value;
    }
    __syncwarp();
}

#endif
