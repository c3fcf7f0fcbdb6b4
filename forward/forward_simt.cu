/* The forward pass on the ordinary arithmetic units: any head_dim, and true f32 and f64.
 *
 * One block owns 16 queries of one head and walks over the row's kept keys, 16 at a time, with the
 * online softmax of forward_mma.cuh; a thread has one pair. */
#include "core/cuda/launch.h"
#include "core/cuda/simt.cuh"
#include "core/cuda/tiling.h"
#include "forward/kernels.h"

namespace
{

struct forward_arguments {
    hpa_geometry geometry;
    hpa_mask mask;
    tensor_rows q, k, v, out, lse;
};

template <typename sum> struct softmax_row {
    sum highest, total; /* m and l of one query; its 16 threads have the same */
};

/* weights[row][column] = exp(s - m), with m, l and o brought up to date. s is -inf where the query
 * does not see the key. */
template <typename sum>
__device__ void update_softmax(softmax_row<sum> &row, sum_row<sum> &o, sum *weights, sum s)
{
    const sum before = row.highest;
    row.highest = max(before, lanes_max<SIMT_TOKENS>(s));
    const sum shift = row.highest == -(sum)INFINITY ? 0 : row.highest;
    const sum factor = before == -(sum)INFINITY ? 0 : exp(before - row.highest);
    const sum weight = exp(s - shift);
    weights[simt_row() * simt_pair_pitch<sum> + simt_column()] = weight;
    row.total = row.total * factor + lanes_sum<SIMT_TOKENS>(weight);
#pragma unroll
    for (int i = 0; i < sum_row<sum>::pieces; i++)
#pragma unroll
        for (int e = 0; e < sum_piece<sum>::length; e++)
            o.piece[i].element[e] *= factor;
    __syncwarp();
}

template <typename T>
__global__ void __launch_bounds__(SIMT_THREADS, 1)
    forward_simt_kernel(const __grid_constant__ forward_arguments x)
{
    using sum = sum_of<T>;
    extern __shared__ uint4 shared[];
    const hpa_geometry &g = x.geometry;
    const int head_dim = (int)g.head_dim;
    query_tile tile;
    if (!find_query_tile(g, x.mask, work_index(), (int)g.block_q / SIMT_TOKENS, SIMT_TOKENS, &tile))
        return;
    const hpa_sequence &s = tile.sequence;
    const int64_t kv_head = tile.head / g.group, query = tile.begin + simt_row();
    const T *k = row_at<const T>(x.k, s.batch, kv_head, s.kv_start, 0);
    const T *v = row_at<const T>(x.v, s.batch, kv_head, s.kv_start, 0);
    sum *q_tile = reinterpret_cast<sum *>(shared);
    sum *k_tile = q_tile + SIMT_TOKENS * simt_pitch<sum>(head_dim);
    sum *v_tile = k_tile + SIMT_TOKENS * simt_pitch<sum>(head_dim);
    sum *weights = v_tile + SIMT_TOKENS * simt_pitch<sum>(head_dim);
    simt_load(q_tile, row_at<const T>(x.q, s.batch, tile.head, s.q_start, 0), x.q.strides.token,
              tile.begin, tile.end, head_dim);

    const int64_t visible = visible_keys(g, s, query);
    sum_row<sum> o = {};
    softmax_row<sum> row = {-(sum)INFINITY, 0};
    bool sees_a_key = false;
    const block_list list = row_list(g, x.mask, s, tile.mask_row);
    for (int32_t n = 0; n < list.length; n++) {
        const int64_t block = list.blocks[n];
        if (block < 0 || block >= s.key_blocks)
            continue;
        const int64_t end = hpa_block_end(block, g.block_k, s.kv_length);
        for (int64_t key = block * g.block_k; key < end; key += SIMT_TOKENS) {
            __syncthreads();
            simt_load(k_tile, k, x.k.strides.token, key, end, head_dim);
            simt_load(v_tile, v, x.v.strides.token, key, end, head_dim);
            __syncthreads();
            const int seen = (int)hpa_max(0, hpa_min(SIMT_TOKENS, visible - key));
            sees_a_key |= seen > 0;
            const sum score = (sum)g.scale * simt_dot(q_tile, k_tile, head_dim);
            update_softmax(row, o, weights, simt_column() < seen ? score : -(sum)INFINITY);
            simt_add_rows(o, weights, v_tile, 0, seen, head_dim);
        }
    }
    if (query >= tile.end)
        return;
    /* Scores that are all -inf come of infinities in q or k alone. */
    if (sees_a_key && row.total == 0)
        row.total = NAN;
    simt_store(row_at<T>(x.out, s.batch, tile.head, s.q_start, query), o,
               row.total == 0 ? 0 : 1 / row.total, false, head_dim);
    if (simt_column() == 0)
        *row_at<sum>(x.lse, s.batch, tile.head, s.q_start, query) =
            row.total == 0 ? -(sum)INFINITY : row.highest + log(row.total);
}

size_t scratch_bytes(const hpa_plan *plan)
{
    (void)plan;
    return 0;
}

template <typename T>
hpa_status launch(const hpa_plan *plan, const void *mask, const hpa_inputs *in,
                  const hpa_outputs *out, const hpa_exec *exec)
{
    using sum = sum_of<T>;
    const hpa_geometry *g = &plan->geometry;
    const forward_arguments x = {*g,
                                 hpa_mask_view_const(g, mask),
                                 rows_of(&in->q, g->packed),
                                 rows_of(&in->k, g->packed),
                                 rows_of(&in->v, g->packed),
                                 rows_of(&out->out, g->packed),
                                 rows_of(&out->lse, g->packed)};
    const size_t pairs = SIMT_TOKENS * simt_pair_pitch<sum> * sizeof(sum);
    int32_t before;
    HPA_TRY(hpa_cuda_enter(plan->cuda.id, &before));
    return hpa_cuda_leave(
        before, hpa_cuda_launch("forward_simt", forward_simt_kernel<T>,
                                grid_of(g->heads_q * g->row_slots * (g->block_q / SIMT_TOKENS)),
                                dim3(SIMT_THREADS), 3 * simt_tile_bytes<sum>(g->head_dim) + pairs,
                                hpa_cuda_stream(exec), x));
}

hpa_status forward_simt(const hpa_plan *plan, const void *mask, const hpa_inputs *in,
                        const hpa_outputs *out, const hpa_exec *exec)
{
    switch (plan->desc.dtype) {
    case HPA_F64:
        return launch<double>(plan, mask, in, out, exec);
    case HPA_F32:
        return launch<float>(plan, mask, in, out, exec);
    case HPA_F16:
        return launch<__half>(plan, mask, in, out, exec);
    default:
        return launch<__nv_bfloat16>(plan, mask, in, out, exec);
    }
}

} // namespace

extern "C" const hpa_forward_kernel hpa_forward_simt = {"forward_simt", scratch_bytes,
                                                        forward_simt};
