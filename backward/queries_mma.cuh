/* dq on the tensor cores of sm_80: a thread block owns up to 128 queries of one head and walks over
 * the row's key blocks.
 *
 *     s = q k^T    dp = dO v^T    p = exp(scale s - lse)    ds = p (dp - delta)    dq += ds k */
#ifndef HPA_BACKWARD_QUERIES_MMA_CUH
#define HPA_BACKWARD_QUERIES_MMA_CUH

#include "backward/mma.cuh"
#include "core/cuda/key_stream.cuh"
#include "core/cuda/store.cuh"

namespace
{

template <int D> struct queries_shape {
    static constexpr int groups = D <= 128 ? 2 : 1; /* of 16 queries, in a warp */
    static constexpr int keys = 32;
    static constexpr int parts = keys / PART_TOKENS;
    static constexpr int max_warps = 4;
};

template <int D>
using query_scores = float[queries_shape<D>::groups][queries_shape<D>::keys / 8][4];
template <int D> using query_sums = float[queries_shape<D>::groups][D / 8][4];
template <int D> using query_stats = stats_pair[queries_shape<D>::groups][2];

/* Keys with values that are not finite: their share of dq, 0 times NaN included, goes to the rows
 * that see them and to no others. */
template <typename T, int D>
__device__ __forceinline__ void set_apart_keys(query_sums<D> &dq, uint32_t k_tile,
                                               const int32_t *first, const visible_range &range)
{
    using shape = queries_shape<D>;
#pragma unroll 1
    for (int column = 0; column < shape::keys; column++)
        add_not_finite<T, D, shape::groups>(dq, k_tile + column * tile_row_bytes<D>, [&](int row) {
            return token_of(first, column) < visible_of(range, 8 * row);
        });
    __syncthreads();
    make_share_finite<T, D>(k_tile, shape::keys);
    __syncthreads();
}

/* s becomes ds = p (dp - delta), p = exp(scale s - lse) */
template <int D>
__device__ __forceinline__ void differentiate(query_scores<D> &s, const query_scores<D> &dp,
                                              const query_stats<D> &stats, float scale_log2)
{
    using shape = queries_shape<D>;
#pragma unroll
    for (int n = 0; n < shape::groups; n++)
#pragma unroll
        for (int c = 0; c < shape::keys / 8; c++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const stats_pair &row = stats[n][i / 2];
                const float p = exp2_fast(fmaf(s[n][c][i], scale_log2, -row.lse));
                s[n][c][i] = p * (dp[n][c][i] - row.delta);
            }
}

/* dq += ds k */
template <typename T, int D>
__device__ __forceinline__ void add_keys(query_sums<D> &dq, const query_scores<D> &ds,
                                         uint32_t k_lane)
{
    using shape = queries_shape<D>;
#pragma unroll
    for (int part = 0; part < shape::parts; part++) {
        uint32_t left[shape::groups][4];
#pragma unroll
        for (int n = 0; n < shape::groups; n++)
            sums_to_left<T>(left[n], ds[n][2 * part], ds[n][2 * part + 1]);
        multiply_rows<T, D, shape::groups>(dq, left, k_lane, part);
    }
}

template <int D>
__device__ __forceinline__ void load_stats(query_stats<D> &stats, const backward_arguments &x,
                                           const query_tile &tile, int warp_query)
{
    const int64_t lane_query = tile.begin + warp_query + threadIdx.x % 32 / 4;
#pragma unroll
    for (int n = 0; n < 2 * queries_shape<D>::groups; n++) {
        const int64_t query = hpa_min(lane_query + 8 * n, tile.end - 1);
        stats[n / 2][n % 2] = x.stats[slot_of_query(x.geometry, tile.sequence, tile.head, query)];
    }
}

template <typename T, int D>
__device__ __forceinline__ void store_dq(const backward_arguments &x, const query_tile &tile,
                                         const query_sums<D> &dq, uint32_t warp_tile,
                                         int warp_query)
{
    using shape = queries_shape<D>;
    const hpa_sequence &s = tile.sequence;
    float factor[shape::groups][2];
#pragma unroll
    for (int n = 0; n < 2 * shape::groups; n++)
        factor[n / 2][n % 2] = x.scale;
    store_rows<T, D, shape::groups>(
        row_at<T>(x.dq, s.batch, tile.head, s.q_start, tile.begin + warp_query), x.dq.strides.token,
        (int)(tile.end - tile.begin) - warp_query, dq, factor, x.accumulate, warp_tile);
}

template <typename T, int D>
__global__ void __launch_bounds__(32 * queries_shape<D>::max_warps, D <= 128 ? 2 : 1)
    backward_queries_kernel(const __grid_constant__ backward_arguments x)
{
    using shape = queries_shape<D>;
    extern __shared__ __align__(16) unsigned char shared[];
    const hpa_geometry &g = x.geometry;
    __shared__ query_work work;
    if (x.only && !x.only[work_index()])
        return;
    if (!claim_queries(&work, g, x.mask, x.tiles_per_block, x.tile_tokens))
        return;
    const query_tile &tile = work.tile;
    const hpa_sequence &s = tile.sequence;
    const uint32_t tile_bytes = x.tile_tokens * tile_row_bytes<D>;
    const uint32_t q_tile = shared_address(shared), d_out_tile = q_tile + tile_bytes;
    const auto stream = open_stream<T, D, shape::keys>(work, g, x.k, x.v, shared + 2 * tile_bytes);
    begin_stream(stream);
    copy_rows<D>(q_tile, x.tile_tokens, row_at<const T>(x.q, s.batch, tile.head, s.q_start, 0),
                 x.q.strides.token, tile.begin, tile.end);
    copy_rows<D>(d_out_tile, x.tile_tokens,
                 row_at<const T>(x.d_out, s.batch, tile.head, s.q_start, 0), x.d_out.strides.token,
                 tile.begin, tile.end);
    begin_keys(stream);

    const int warp_query = (int)(threadIdx.x / 32) * 16 * shape::groups;
    const uint32_t warp_offset = warp_query * tile_row_bytes<D>;
    const uint32_t lane = warp_offset + lane_offset<D>();
    const query_sight sight = sight_of(g, tile, warp_query, 16 * shape::groups);
    query_stats<D> stats;
    load_stats<D>(stats, x, tile, warp_query);
    query_sums<D> dq = {};
    for (int32_t t = 0; t < stream.tile_count; t++) {
        next_keys(stream, t);
        const int32_t *first = parts_at(stream, t);
        const uint32_t k_tile = keys_at(stream, t);
        const bool masked = any_part_reaches<shape::parts>(first, sight.all_see);
        const bool apart =
            masked && g.causal && __syncthreads_or(share_is_not_finite<T, D>(k_tile, shape::keys));
        if (masked && !apart && !any_part_begins_before<shape::parts>(first, sight.some_see))
            continue;
        query_scores<D> ds, dp;
        multiply_tiles<T, D, shape::groups, shape::keys>(ds, q_tile + lane,
                                                         k_tile + lane_offset_across<D>());
        multiply_tiles<T, D, shape::groups, shape::keys>(
            dp, d_out_tile + lane, values_at(stream, t) + lane_offset_across<D>());
        differentiate<D>(ds, dp, stats, x.scale_log2);
        if (masked)
            hide_keys<shape::groups, shape::keys>(ds, 0, first, sight.range);
        if (apart) {
            __syncthreads(); /* every warp has read the keys as they are */
            set_apart_keys<T, D>(dq, k_tile, first, sight.range);
        }
        add_keys<T, D>(dq, ds, k_tile + lane_offset<D>());
    }
    copy_async_wait();
    __syncthreads();
    store_dq<T, D>(x, tile, dq, q_tile + warp_offset, warp_query);
}

} // namespace
#endif
