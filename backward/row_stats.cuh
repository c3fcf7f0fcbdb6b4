/* What the backward pass needs of every query before it meets a key:
 *
 *     delta_i = sum_d O_id dO_id - dLSE_i        and lse_i
 *
 * side by side in scratch, [heads_q][all queries of the batch]. */
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

/* Where a query counted over the whole batch lies: (batch, token), sequences not mattering. */
__device__ __forceinline__ int64_t row_offset(const hpa_geometry &g, const tensor_rows &rows,
                                              int64_t head, int64_t query)
{
    if (g.packed || g.batch == 1)
        return hpa_offset(&rows.strides, 0, head, query, 0);
    return hpa_offset(&rows.strides, query / g.seq_q, head, 0, query % g.seq_q);
}

/* o . dO, this lane's share: every `lanes`-th piece of `width` elements, read in one access. */
template <typename T, int width>
__device__ __forceinline__ sum_of<T> share_of_product(const row_stats_arguments &x, int64_t head,
                                                      int64_t query, int lanes)
{
    struct alignas(width * sizeof(T)) piece {
        T element[width];
    };
    const hpa_geometry &g = x.geometry;
    const auto *o = reinterpret_cast<const piece *>(static_cast<const T *>(x.out.data) +
                                                    row_offset(g, x.out, head, query));
    const auto *d_o = reinterpret_cast<const piece *>(static_cast<const T *>(x.d_out.data) +
                                                      row_offset(g, x.d_out, head, query));
    sum_of<T> sum = 0;
    for (int d = (int)threadIdx.x % lanes; d < g.head_dim / width; d += lanes) {
        const piece a = o[d], b = d_o[d];
#pragma unroll
        for (int n = 0; n < width; n++)
            sum += to_sum(a.element[n]) * to_sum(b.element[n]);
    }
    return sum;
}

template <typename T>
__device__ __forceinline__ void write_stats(const row_stats_arguments &x, int64_t head,
                                            int64_t query, sum_of<T> delta)
{
    using sum_type = sum_of<T>;
    const hpa_geometry &g = x.geometry;
    if (x.d_lse.data)
        delta -= static_cast<const sum_type *>(x.d_lse.data)[row_offset(g, x.d_lse, head, query)];
    const sum_type lse =
        static_cast<const sum_type *>(x.lse.data)[row_offset(g, x.lse, head, query)];
    static_cast<row_stats<sum_type> *>(x.stats)[head * g.total_q + query] = {
        lse == -(sum_type)INFINITY ? (sum_type)INFINITY : lse * (sum_type)x.lse_factor, delta};
}

/* A group of lanes has ROWS_IN_FLIGHT queries, block_rows apart, so that their loads overlap. */
#define ROWS_IN_FLIGHT 4

template <typename T, int width>
__global__ void __launch_bounds__(128)
    row_stats_kernel(const __grid_constant__ row_stats_arguments x)
{
    const hpa_geometry &g = x.geometry;
    const int lanes = x.lanes, rows = 128 / lanes;
    const int64_t first =
        (int64_t)blockIdx.x * rows * ROWS_IN_FLIGHT + (int64_t)threadIdx.x / lanes;
    const int64_t end = g.packed ? hpa_min(x.mask.cu_seqlens_q[g.batch], g.total_q) : g.total_q;
    for (int64_t head = blockIdx.y; head < g.heads_q; head += gridDim.y) {
        sum_of<T> delta[ROWS_IN_FLIGHT];
#pragma unroll
        for (int n = 0; n < ROWS_IN_FLIGHT; n++) {
            const int64_t query = first + n * rows;
            delta[n] = query < end ? share_of_product<T, width>(x, head, query, lanes) : 0;
        }
#pragma unroll
        for (int n = 0; n < ROWS_IN_FLIGHT; n++) {
            for (int step = lanes / 2; step > 0; step /= 2)
                delta[n] += __shfl_xor_sync(0xffffffffu, delta[n], step);
            const int64_t query = first + n * rows;
            if (query < end && threadIdx.x % lanes == 0)
                write_stats<T>(x, head, query, delta[n]);
        }
    }
}

template <typename T, int width>
hpa_status launch_row_stats(const hpa_geometry &g, const hpa_mask &mask, const hpa_outputs *out,
                            const hpa_gradients *grads, void *stats, double lse_factor,
                            cudaStream_t stream)
{
    int lanes = 32;
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
    const int64_t blocks = hpa_ceil_div(g.total_q, 128 / lanes * ROWS_IN_FLIGHT);
    return hpa_cuda_launch("backward_row_stats", row_stats_kernel<T, width>,
                           dim3((unsigned)blocks, (unsigned)hpa_min(g.heads_q, 65535)), dim3(128),
                           0, stream, x);
}

} // namespace
#endif
