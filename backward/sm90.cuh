/* What the two Hopper kernels of the backward pass are given. */
#ifndef HPA_BACKWARD_SM90_CUH
#define HPA_BACKWARD_SM90_CUH

#include "backward/scratch.cuh"
#include "core/cuda/warpgroup.cuh"

namespace
{

/* lse in the stats is for powers of 2. */
#define LSE_FACTOR 1.4426950408889634

struct sm90_arguments {
    hpa_geometry geometry;
    hpa_mask mask;
    column_plan plan;
    tensor_rows q, k, v, lse, d_out, d_lse, dq, dk, dv;
    stats_pair *stats;     /* [heads_q][row_slots][block_q]; found with dq if that is wanted */
    uint8_t *queries_left; /* [query_tiles][2]: 1 where 64 queries are left to the other kernels */
    uint8_t *keys_left;    /* [most_pieces + columns]: 1 where that column or piece of it is */
    int64_t query_tiles;
    unsigned long long *next_query_tile; /* how many have been taken */
    int tiles_per_block;                 /* of 128 queries, in a query block */
    float scale, scale_log2;
    bool accumulate;
};

/* p = exp(scale s - lse), scale and lse being for powers of 2. */
__device__ __forceinline__ float weight_of(float score, float scale_log2, float lse)
{
    return exp2_fast(fmaf(score, scale_log2, -lse));
}

/* This thread has read what the barrier guards. Each arrives for itself, which takes no longer than
 * __syncwarp and one arrival a warp, and leaves no order of accesses to be taken on trust.
 * barrier: its address in shared memory, or a pointer. */
template <typename Barrier> __device__ __forceinline__ void leave_stage(Barrier barrier)
{
    barrier_arrive(barrier);
}

/* factor * sums[64, D] of a warpgroup, rounded, to the first `rows` of the rows at `to`. */
template <typename T, int n>
__device__ __forceinline__ void store_group_rows(T *to, int64_t token_stride, int rows,
                                                 const float (&sums)[n], float factor,
                                                 bool accumulate)
{
    const int lane = (int)threadIdx.x % 32, first = (int)threadIdx.x % 128 / 32 * 16 + lane / 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = first + 8 * half;
        T *at = to + row * token_stride;
        if (accumulate && row < rows) {
#pragma unroll
            for (int c = 0; c < n / 4; c++) {
                uint32_t *pair = reinterpret_cast<uint32_t *>(at + 8 * c + lane % 4 * 2);
                const float2 before = unpack<T>(*pair);
                *pair = pack<T>(before.x + sums[4 * c + 2 * half] * factor,
                                before.y + sums[4 * c + 2 * half + 1] * factor);
            }
        } else if (!accumulate) {
#pragma unroll
            for (int c = 0; c < n / 4; c += 4) {
                uint32_t words[4];
#pragma unroll
                for (int i = 0; i < 4; i++)
                    words[i] = pack<T>(sums[4 * (c + i) + 2 * half] * factor,
                                       sums[4 * (c + i) + 2 * half + 1] * factor);
                const uint4 columns = gather_columns(words);
                if (row < rows)
                    *reinterpret_cast<uint4 *>(at + 8 * (c + lane % 4)) = columns;
            }
        }
    }
}

} // namespace
#endif
