/* How the queries of a query block are shared out to thread blocks, and the list that each walks. */
#ifndef HPA_CORE_CUDA_TILING_H
#define HPA_CORE_CUDA_TILING_H

#include "core/cuda/gather.cuh"
#include "core/cuda/rows.cuh"

#include <math.h>

struct query_tiling {
    int tiles_per_block; /* thread blocks for a query block */
    int queries;         /* of one thread block, whole warps of them */
    size_t shared_bytes;
};

/* As few tiles as warps and shared memory allow, of equal size. query_bytes: shared memory of one
 * query; other_bytes: of the rest. */
static inline query_tiling query_tiling_of(const hpa_geometry *g, int max_warps,
                                           int queries_per_warp, size_t query_bytes,
                                           size_t other_bytes, int64_t device_shared_bytes)
{
    const auto shared_bytes = [&](int64_t warps) {
        return (size_t)(warps * queries_per_warp) * query_bytes + other_bytes;
    };
    int warps = max_warps;
    while (warps > 1 && (int64_t)shared_bytes(warps) > device_shared_bytes)
        warps--;
    const int64_t tiles = hpa_ceil_div(g->block_q, warps * queries_per_warp);
    const int64_t used_warps = hpa_ceil_div(hpa_ceil_div(g->block_q, tiles), queries_per_warp);
    return {(int)tiles, (int)used_warps * queries_per_warp, shared_bytes(used_warps)};
}

/* scale / log 2, never 0, so that it times -inf stays -inf. */
static inline float scale_log2_of(const hpa_geometry *g)
{
    return fmaxf((float)(g->scale * 1.4426950408889634), 1e-37f);
}

__device__ __forceinline__ block_list row_list(const hpa_geometry &g, const hpa_mask &m,
                                               const hpa_sequence &s, int64_t mask_row)
{
    const int32_t kept = m.row_length[mask_row];
    return {m.row_blocks + mask_row * g.capacity, max(0, min(kept, (int32_t)g.capacity)),
            __ffs((int)g.block_k / PART_TOKENS) - 1, (int32_t)s.key_blocks};
}

/* First key of a list that is not empty. */
__device__ __forceinline__ int32_t first_key_of(const block_list &list)
{
    return (list.blocks[0] << list.part_shift) * PART_TOKENS;
}

#endif
