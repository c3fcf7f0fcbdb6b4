/* Tiles in shared memory, and the asynchronous copies that fill them (sm_80 and later).
 *
 * A tile is some rows of D 16-bit elements. Its rows lie D + 8 elements apart, an odd number of
 * 16-byte units, so that the eight rows which ldmatrix reads at once fall into different banks. */
#ifndef HPA_CORE_CUDA_COPY_CUH
#define HPA_CORE_CUDA_COPY_CUH

#include "core/cuda/shared.cuh"
#include "core/geometry.h"

/* Elements and bytes from one row of a tile to the next. */
template <int D> inline constexpr int tile_pitch = D + 8;
template <int D> inline constexpr int tile_row_bytes = 2 * tile_pitch<D>;

/* Where exists is false the bytes become zeros and nothing is read. */
__device__ __forceinline__ void copy_async_16(uint32_t shared, const void *global, bool exists)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
                 "r"(exists ? 16 : 0)
                 : "memory");
}

__device__ __forceinline__ void copy_async_8(uint32_t shared, const void *global, bool exists)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared), "l"(global),
                 "r"(exists ? 8 : 0)
                 : "memory");
}

__device__ __forceinline__ void copy_async_4(uint32_t shared, const void *global, bool exists)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared), "l"(global),
                 "r"(exists ? 4 : 0)
                 : "memory");
}

/* Waits for every copy that this thread has begun; synchronise the block to see the others'. */
__device__ __forceinline__ void copy_async_wait()
{
    asm volatile("cp.async.wait_all;" ::: "memory");
}

/* Rows first ... of one head into a tile; rows at end and beyond become zeros. */
template <int D, typename T>
__device__ __forceinline__ void copy_rows(uint32_t tile, int rows, const T *head_data,
                                          int64_t token_stride, int64_t first, int64_t end)
{
    constexpr int units = D / 8;
    for (int i = (int)threadIdx.x; i < rows * units; i += (int)blockDim.x) {
        const int row = i / units, unit = i % units;
        const int64_t token = first + row;
        const bool exists = token < end;
        copy_async_16(tile + row * tile_row_bytes<D> + unit * 16,
                      head_data + (exists ? token : 0) * token_stride + unit * 8, exists);
    }
}

#endif
