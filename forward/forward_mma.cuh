/* The forward pass on the tensor cores of sm_80 and later, f16 and bf16.
 *
 * One block owns up to 128 queries of one head and one query block, and walks over the row's kept
 * key blocks in tiles of 64 keys (32 for head_dim above 128):
 *
 *     s = q k^T        m' = max(m, rows of s)        p = exp(scale s - scale m')
 *     l = l exp(scale m - scale m') + rows of p      o = o exp(scale m - scale m') + p v
 *
 * o / l and scale m + log l are the results (online softmax). s, p and o stay in registers; a warp
 * owns 32 queries (16 above head_dim 128), so that every key read from shared memory serves 32.
 *
 * Rows are read 16 bytes at a time. Tensors whose rows do not begin at multiples of that are left to
 * forward_simt. */
#ifndef HPA_FORWARD_MMA_CUH
#define HPA_FORWARD_MMA_CUH

#include "core/cuda/gather.cuh"
#include "core/cuda/launch.h"
#include "core/cuda/key_stream.cuh"
#include "core/cuda/store.cuh"
#include "forward/kernels.h"

namespace
{

struct forward_arguments {
    hpa_geometry geometry;
    hpa_mask mask;
    tensor_rows q, k, v, out, lse;
    int tiles_per_block, queries_per_tile;
    float scale;      /* of the scores, natural logarithm */
    float scale_log2; /* for powers of 2 */
};

template <int D> struct forward_shape {
    static constexpr int groups = D <= 128 ? 2 : 1; /* of 16 queries, in a warp */
    static constexpr int keys = D <= 128 ? 64 : 32;
    static constexpr int parts = keys / PART_TOKENS;
    static constexpr int max_warps = 4;
};

/* Registers of one warp: 16 groups x keys scores, then weights; 16 groups x D sums. */
template <int D>
using forward_scores = float[forward_shape<D>::groups][forward_shape<D>::keys / 8][4];
template <int D> using forward_sums = float[forward_shape<D>::groups][D / 8][4];

/* What a lane knows of its rows: [group][row g or g + 8]. */
template <int D> struct softmax_rows {
    float highest[forward_shape<D>::groups][2]; /* m: within 2^8 of the true maximum */
    float sum[forward_shape<D>::groups][2];     /* l: this lane's share */
};

/* 0 times NaN is NaN, so a weight of 0 does not keep a value that is not finite away from a row that
 * does not see it. Such values are added here to the rows that do, and taken out of the tile. */
template <typename T, int D>
__device__ __forceinline__ void set_apart_values(forward_sums<D> &o, uint32_t v_tile,
                                                 const int32_t *first, const visible_range &range)
{
    using shape = forward_shape<D>;
    if (!__syncthreads_or(share_is_not_finite<T, D>(v_tile, shape::keys)))
        return;
#pragma unroll 1
    for (int column = 0; column < shape::keys; column++)
        add_not_finite<T, D, shape::groups>(o, v_tile + column * tile_row_bytes<D>, [&](int row) {
            return token_of(first, column) < visible_of(range, 8 * row);
        });
    __syncthreads();
    make_share_finite<T, D>(v_tile, shape::keys);
    __syncthreads();
}

/* m' and, where it moved far, o and l brought to it. The results do not depend on m, only their
 * rounding does, so a row follows its maximum in steps of at least 2^8: most tiles move none. */
template <int D>
__device__ __forceinline__ void raise_highest(softmax_rows<D> &rows, forward_sums<D> &o,
                                              const forward_scores<D> &s, float scale_log2)
{
    using shape = forward_shape<D>;
    float highest[shape::groups][2];
    bool far = false;
#pragma unroll
    for (int n = 0; n < shape::groups; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float most = s[n][0][2 * half];
#pragma unroll
            for (int c = 0; c < shape::keys / 8; c++)
                most = fmaxf(most, fmaxf(s[n][c][2 * half], s[n][c][2 * half + 1]));
            highest[n][half] = lanes_max<4>(most);
            far |= (highest[n][half] - rows.highest[n][half]) * scale_log2 > 8;
        }
    if (!__any_sync(0xffffffffu, far))
        return;
#pragma unroll
    for (int n = 0; n < shape::groups; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float before = rows.highest[n][half], after = fmaxf(before, highest[n][half]);
            const float factor = before == -INFINITY ? 0 : exp2_fast((before - after) * scale_log2);
            rows.highest[n][half] = after;
            rows.sum[n][half] *= factor;
#pragma unroll
            for (int c = 0; c < D / 8; c++) {
                o[n][c][2 * half] *= factor;
                o[n][c][2 * half + 1] *= factor;
            }
        }
}

/* s becomes p = exp(scale s - scale m), and l grows by it. */
template <int D>
__device__ __forceinline__ void weigh(forward_scores<D> &s, softmax_rows<D> &rows, float scale_log2)
{
    using shape = forward_shape<D>;
#pragma unroll
    for (int n = 0; n < shape::groups; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float highest = rows.highest[n][half];
            const float shift = highest == -INFINITY ? 0 : highest * scale_log2;
            float sum = 0;
#pragma unroll
            for (int c = 0; c < shape::keys / 8; c++)
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) {
                    s[n][c][i] = exp2_fast(fmaf(s[n][c][i], scale_log2, -shift));
                    sum += s[n][c][i];
                }
            rows.sum[n][half] += sum;
        }
}

/* o += p v */
template <typename T, int D>
__device__ __forceinline__ void add_values(forward_sums<D> &o, const forward_scores<D> &p,
                                           uint32_t v_lane)
{
    using shape = forward_shape<D>;
#pragma unroll
    for (int part = 0; part < shape::parts; part++) {
        uint32_t left[shape::groups][4];
#pragma unroll
        for (int n = 0; n < shape::groups; n++)
            sums_to_left<T>(left[n], p[n][2 * part], p[n][2 * part + 1]);
        multiply_rows<T, D, shape::groups>(o, left, v_lane, part);
    }
}

/* lse = scale m + log l, and 1 / l. A row that sees no key has l = 0: o = 0, lse = -inf. One whose
 * scores are all -inf has that only by infinities in q or k, and is NaN. */
template <typename T, int D>
__device__ __forceinline__ void finish(const forward_arguments &x, const query_tile &tile,
                                       const softmax_rows<D> &rows, const forward_sums<D> &o,
                                       const visible_range &range, int32_t first_key,
                                       uint32_t warp_tile, int warp_query)
{
    using shape = forward_shape<D>;
    const hpa_sequence &s = tile.sequence;
    float factor[shape::groups][2];
#pragma unroll
    for (int n = 0; n < shape::groups; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = 16 * n + 8 * half;
            float sum = lanes_sum<4>(rows.sum[n][half]);
            if (sum == 0 && first_key < visible_of(range, row))
                sum = NAN;
            factor[n][half] = sum == 0 ? 0 : 1 / sum;
            const int64_t query = tile.begin + warp_query + row + threadIdx.x % 32 / 4;
            if (threadIdx.x % 4 == 0 && query < tile.end)
                *row_at<float>(x.lse, s.batch, tile.head, s.q_start, query) =
                    sum == 0 ? -INFINITY : rows.highest[n][half] * x.scale + logf(sum);
        }
    store_rows<T, D, shape::groups>(
        row_at<T>(x.out, s.batch, tile.head, s.q_start, tile.begin + warp_query),
        x.out.strides.token, (int)(tile.end - tile.begin) - warp_query, o, factor, false,
        warp_tile);
}

template <int D> __device__ __forceinline__ void start_rows(softmax_rows<D> &rows)
{
#pragma unroll
    for (int n = 0; n < 2 * forward_shape<D>::groups; n++) {
        rows.highest[n / 2][n % 2] = -INFINITY;
        rows.sum[n / 2][n % 2] = 0;
    }
}

template <typename T, int D>
__global__ void __launch_bounds__(32 * forward_shape<D>::max_warps, D <= 128 ? 2 : 1)
    forward_mma_kernel(const __grid_constant__ forward_arguments x)
{
    using shape = forward_shape<D>;
    extern __shared__ __align__(16) unsigned char shared[];
    const hpa_geometry &g = x.geometry;
    __shared__ query_work work;
    if (!claim_queries(&work, g, x.mask, x.tiles_per_block, x.queries_per_tile))
        return;
    const query_tile &tile = work.tile;
    const hpa_sequence &s = tile.sequence;
    const uint32_t q_tile = shared_address(shared);
    const auto stream = open_stream<T, D, shape::keys>(
        work, g, x.k, x.v, shared + x.queries_per_tile * tile_row_bytes<D>);
    begin_stream(stream);
    copy_rows<D>(q_tile, x.queries_per_tile, row_at<const T>(x.q, s.batch, tile.head, s.q_start, 0),
                 x.q.strides.token, tile.begin, tile.end);
    begin_keys(stream);

    const int warp_query = (int)(threadIdx.x / 32) * 16 * shape::groups;
    const uint32_t warp_tile = q_tile + warp_query * tile_row_bytes<D>;
    const query_sight sight = sight_of(g, tile, warp_query, 16 * shape::groups);
    forward_sums<D> o = {};
    softmax_rows<D> rows;
    start_rows(rows);
    for (int32_t t = 0; t < stream.tile_count; t++) {
        next_keys(stream, t);
        const int32_t *first = parts_at(stream, t);
        const bool masked = any_part_reaches<shape::parts>(first, sight.all_see);
        if (masked && g.causal)
            set_apart_values<T, D>(o, values_at(stream, t), first, sight.range);
        if (masked && !any_part_begins_before<shape::parts>(first, sight.some_see))
            continue;
        forward_scores<D> p;
        multiply_tiles<T, D, shape::groups, shape::keys>(
            p, warp_tile + lane_offset<D>(), keys_at(stream, t) + lane_offset_across<D>());
        if (masked)
            hide_keys<shape::groups, shape::keys>(p, -INFINITY, first, sight.range);
        raise_highest<D>(rows, o, p, x.scale_log2);
        weigh<D>(p, rows, x.scale_log2);
        add_values<T, D>(o, p, values_at(stream, t) + lane_offset<D>());
    }
    copy_async_wait();
    __syncthreads(); /* the query tile is there even when no key tile was waited for */
    finish<T, D>(x, tile, rows, o, sight.range,
                 stream.tile_count > 0 ? first_key_of(work.list) : NO_TOKEN, warp_tile, warp_query);
}

size_t forward_mma_scratch(const hpa_plan *plan)
{
    (void)plan;
    return 0;
}

template <typename T, int D>
hpa_status launch_forward_mma(const hpa_plan *plan, const void *mask, const hpa_inputs *in,
                              const hpa_outputs *out, const hpa_exec *exec, const char *name)
{
    using shape = forward_shape<D>;
    if (!rows_are_aligned(&in->q) || !rows_are_aligned(&in->k) || !rows_are_aligned(&in->v) ||
        !rows_are_aligned(&out->out))
        return hpa_forward_simt.run(plan, mask, in, out, exec);
    const hpa_geometry *g = &plan->geometry;
    const query_tiling tiling =
        query_tiling_of(g, shape::max_warps, 16 * shape::groups, tile_row_bytes<D>,
                        key_stream<T, D, shape::keys>::shared_bytes, plan->cuda.shared_bytes);
    forward_arguments x = {*g,
                           hpa_mask_view_const(g, mask),
                           rows_of(&in->q, g->packed),
                           rows_of(&in->k, g->packed),
                           rows_of(&in->v, g->packed),
                           rows_of(&out->out, g->packed),
                           rows_of(&out->lse, g->packed),
                           tiling.tiles_per_block,
                           tiling.queries,
                           (float)g->scale,
                           scale_log2_of(g)};
    int32_t before;
    HPA_TRY(hpa_cuda_enter(plan->cuda.id, &before));
    return hpa_cuda_leave(
        before, hpa_cuda_launch(name, forward_mma_kernel<T, D>,
                                grid_of(g->heads_q * g->row_slots * tiling.tiles_per_block),
                                dim3((unsigned)(tiling.queries / (16 * shape::groups) * 32)),
                                tiling.shared_bytes, hpa_cuda_stream(exec), x));
}

} // namespace

#define HPA_FORWARD_MMA_INSTANCE(name, type, head_dim)                                      \
    static hpa_status run_##name##_##head_dim(const hpa_plan *plan, const void *mask,       \
                                              const hpa_inputs *in, const hpa_outputs *out, \
                                              const hpa_exec *exec)                         \
    {                                                                                       \
        return launch_forward_mma<type, head_dim>(plan, mask, in, out, exec,                \
                                                  "forward_mma_" #name "_" #head_dim);      \
    }                                                                                       \
    extern "C" const hpa_forward_kernel hpa_forward_mma_##name##_##head_dim = {             \
        "forward_mma_" #name "_" #head_dim, forward_mma_scratch, run_##name##_##head_dim};

#endif
