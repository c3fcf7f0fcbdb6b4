/* What the backward pass needs of every query before it meets a key:
 *
 *     delta_i = sum_d O_id dO_id - dLSE_i        and lse_i
 *
 * side by side in scratch, [heads_q][all queries of the batch]. */
#ifndef HPA_BACKWARD_ROW_STATS_CUH
#define HPA_BACKWARD_ROW_STATS_CUH

#include "core/cuda/launch.h"
#include "core/cuda/reduce.cuh"
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
};

/* Where a query counted over the whole batch lies: (batch, token), sequences not mattering. */
__device__ __forceinline__ int64_t row_offset(const hpa_geometry &g, const tensor_rows &rows,
                                              int64_t head, int64_t query)
{
    if (g.packed)
        return hpa_offset(&rows.strides, 0, head, query, 0);
    return hpa_offset(&rows.strides, query / g.seq_q, head, 0, query % g.seq_q);
}

/* width elements in one access; a warp has one query. */
template <typename T, int width>
__global__ void __launch_bounds__(128)
    row_stats_kernel(const __grid_constant__ row_stats_arguments x)
{
    using sum_type = sum_of<T>;
    struct alignas(width * sizeof(T)) piece {
        T element[width];
    };
    const hpa_geometry &g = x.geometry;
    const int64_t row = work_index() * 4 + threadIdx.x / 32;
    const int64_t head = row / g.total_q, query = row % g.total_q;
    if (head >= g.heads_q || (g.packed && query >= x.mask.cu_seqlens_q[g.batch]))
        return;
    const T *o = static_cast<const T *>(x.out.data) + row_offset(g, x.out, head, query);
    const T *d_o = static_cast<const T *>(x.d_out.data) + row_offset(g, x.d_out, head, query);
    sum_type sum = 0;
    for (int64_t d = threadIdx.x % 32; d < g.head_dim / width; d += 32) {
        const piece a = reinterpret_cast<const piece *>(o)[d];
        const piece b = reinterpret_cast<const piece *>(d_o)[d];
#pragma unroll
        for (int n = 0; n < width; n++)
            sum += to_sum(a.element[n]) * to_sum(b.element[n]);
    }
    sum = lanes_sum<32>(sum);
    if (threadIdx.x % 32 != 0)
        return;
    if (x.d_lse.data)
        sum -= static_cast<const sum_type *>(x.d_lse.data)[row_offset(g, x.d_lse, head, query)];
    const sum_type lse =
        static_cast<const sum_type *>(x.lse.data)[row_offset(g, x.lse, head, query)];
    static_cast<row_stats<sum_type> *>(x.stats)[row] = {
        lse == -(sum_type)INFINITY ? (sum_type)INFINITY : lse * (sum_type)x.lse_factor, sum};
}

template <typename T, int width>
hpa_status launch_row_stats(const hpa_geometry &g, const hpa_mask &mask, const hpa_outputs *out,
                            const hpa_gradients *grads, void *stats, double lse_factor,
                            cudaStream_t stream)
{
    const row_stats_arguments x = {g,
                                   mask,
                                   rows_of(&out->out, g.packed),
                                   rows_of(&out->lse, g.packed),
                                   rows_of(&grads->d_out, g.packed),
                                   rows_of(&grads->d_lse, g.packed),
                                   stats,
                                   lse_factor};
    return hpa_cuda_launch("backward_row_stats", row_stats_kernel<T, width>,
                           grid_of(hpa_ceil_div(g.heads_q * g.total_q, 4)), dim3(128), 0, stream,
                           x);
}

} // namespace
#endif
