/* What the backward pass needs of every query before it meets a key:
 *
 *     delta_i = sum_d O_id dO_id - dLSE_i        and lse_i
 *
 * side by side in scratch, [heads_q][row_slots][block_q] (slot_of_query). */
#ifndef HPA_BACKWARD_ROW_STATS_CUH
#define HPA_BACKWARD_ROW_STATS_CUH

#include "core/cuda/launch.h"
#include "core/cuda/rows.cuh"
#include "core/cuda/scalar.cuh"

namespace
{

template <typename sum_type> struct alignas(2 * sizeof(sum_type)) row_stats {
    sum_type lse; /* times lse_factor; +inf for a row that attends to nothing: exp(s - lse) = 0 */
    sum_type delta;
};

struct row_stats_arguments {
    hpa_geometry geometry;
    hpa_mask mask;
    tensor_rows out, lse, d_out, d_lse;
    void *stats;
    double lse_factor; /* 1, or 1 / log 2 for kernels that raise 2 to it */
    int lanes;         /* that share a row: a power of 2 */
};

template <typename sum_type>
__device__ __forceinline__ row_stats<sum_type> stats_of(sum_type lse, sum_type delta,
                                                        double lse_factor)
{
    return {lse == -(sum_type)INFINITY ? (sum_type)INFINITY : lse * (sum_type)lse_factor, delta};
}

/* o . dO of a row is four sums, of every fourth eight elements each, in their order, that are added
 * up crosswise: so that whoever finds it, these lanes or a kernel that has the row anyway
 * (queries_sm90.cuh), finds the same bits. */
#define ROW_SUMS 4

/* This lane's share: every `lanes`-th piece of `width` elements, read in one access. */
template <typename T, int width>
__device__ __forceinline__ sum_of<T> share_of_product(const T *o, const T *d_o, int64_t head_dim,
                                                      int lanes)
{
    struct alignas(width * sizeof(T)) piece {
        T element[width];
    };
    sum_of<T> sum = 0;
    for (int d = (int)threadIdx.x % lanes; d < head_dim / width; d += lanes) {
        const piece a = reinterpret_cast<const piece *>(o)[d];
        const piece b = reinterpret_cast<const piece *>(d_o)[d];
#pragma unroll
        for (int n = 0; n < width; n++)
            sum = fma(to_sum(a.element[n]), to_sum(b.element[n]), sum);
    }
    return sum;
}

template <typename T>
__device__ __forceinline__ void write_stats(const row_stats_arguments &x, const hpa_sequence &s,
                                            int64_t head, int64_t query, sum_of<T> delta)
{
    using sum_type = sum_of<T>;
    if (x.d_lse.data)
        delta -= *row_at<const sum_type>(x.d_lse, s.batch, head, s.q_start, query);
    static_cast<row_stats<sum_type> *>(x.stats)[slot_of_query(x.geometry, s, head, query)] =
        stats_of(*row_at<const sum_type>(x.lse, s.batch, head, s.q_start, query), delta,
                 x.lse_factor);
}

/* Queries that some lanes take at once, so that their loads overlap. */
#define ROWS_IN_FLIGHT 4

/* The queries `first`, first + step, ... of a query block that ends before `end`. */
template <typename T, int width>
__device__ __forceinline__ void find_stats(const row_stats_arguments &x, const hpa_sequence &s,
                                           int64_t head, int64_t first, int step, int64_t end)
{
    sum_of<T> delta[ROWS_IN_FLIGHT];
#pragma unroll
    for (int n = 0; n < ROWS_IN_FLIGHT; n++) {
        const int64_t query = first + n * step;
        delta[n] = 0;
        if (query < end)
            delta[n] = share_of_product<T, width>(
                row_at<const T>(x.out, s.batch, head, s.q_start, query),
                row_at<const T>(x.d_out, s.batch, head, s.q_start, query), x.geometry.head_dim,
                x.lanes);
    }
#pragma unroll
    for (int n = 0; n < ROWS_IN_FLIGHT; n++) {
        const int64_t query = first + n * step;
        for (int lanes = x.lanes / 2; lanes > 0; lanes /= 2)
            delta[n] += __shfl_xor_sync(0xffffffffu, delta[n], lanes);
        if (query < end && threadIdx.x % x.lanes == 0)
            write_stats<T>(x, s, head, query, delta[n]);
    }
}

/* A block of threads has a query block, in one head after another. */
template <typename T, int width>
__global__ void __launch_bounds__(128)
    row_stats_kernel(const __grid_constant__ row_stats_arguments x)
{
    const hpa_geometry &g = x.geometry;
    const int64_t slot = blockIdx.x;
    const int64_t batch = hpa_batch_of_row(&g, x.mask.cu_seqlens_q, slot * g.mask_heads);
    const hpa_sequence s = sequence_of(g, x.mask, batch);
    const int64_t block = slot - s.row_start;
    if (block < 0 || block >= s.query_blocks)
        return;
    const int64_t begin = hpa_block_begin(block, g.block_q);
    const int64_t end = hpa_block_end(block, g.block_q, s.q_length);
    const int step = 128 / x.lanes;
    for (int64_t head = blockIdx.y; head < g.heads_q; head += gridDim.y)
        for (int64_t first = begin; first < end; first += ROWS_IN_FLIGHT * step)
            find_stats<T, width>(x, s, head, first + (int)threadIdx.x / x.lanes, step, end);
}

template <typename T, int width>
hpa_status launch_row_stats(const hpa_geometry &g, const hpa_mask &mask, const hpa_outputs *out,
                            const hpa_gradients *grads, void *stats, double lse_factor,
                            cudaStream_t stream)
{
    int lanes = width == 1 ? 32 : ROW_SUMS;
    while (lanes > 1 && lanes / 2 * width >= g.head_dim)
        lanes /= 2;
    const row_stats_arguments x = {g,
                                   mask,
                                   rows_of(&out->out, g.packed),
                                   rows_of(&out->lse, g.packed),
                                   rows_of(&grads->d_out, g.packed),
                                   rows_of(&grads->d_lse, g.packed),
                                   stats,
                                   lse_factor,
                                   lanes};
    return hpa_cuda_launch("backward_row_stats", row_stats_kernel<T, width>,
                           dim3((unsigned)g.row_slots, (unsigned)hpa_min(g.heads_q, 65535)),
                           dim3(128), 0, stream, x);
}

} // namespace
#endif
