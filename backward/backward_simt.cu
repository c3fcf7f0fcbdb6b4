/* The backward pass on the ordinary arithmetic units: any head_dim, and true f32 and f64.
 *
 * The same two kernels as in backward_mma.cuh, over tiles of 16 x 16 pairs; a thread has one pair. */
#include "backward/columns.cuh"
#include "backward/kernels.h"
#include "backward/row_stats.cuh"
#include "core/cuda/simt.cuh"
#include "core/cuda/tiling.h"

namespace
{

struct backward_arguments {
    hpa_geometry geometry;
    hpa_mask mask;
    column_plan plan;
    tensor_rows q, k, v, d_out, dq, dk, dv;
    const void *stats; /* row_stats [heads_q][row_slots][block_q] */
    bool accumulate;
};

/* Four tiles of 16 tokens and two of 16 x 16 pairs in shared memory. */
template <typename sum> struct backward_tiles {
    sum *q, *d_out, *k, *v, *p, *ds;
};

template <typename sum> __device__ backward_tiles<sum> tiles_at(void *shared, int head_dim)
{
    const int tile = SIMT_TOKENS * simt_pitch<sum>(head_dim);
    sum *first = static_cast<sum *>(shared);
    sum *pairs = first + 4 * tile;
    return {first,
            first + tile,
            first + 2 * tile,
            first + 3 * tile,
            pairs,
            pairs + SIMT_TOKENS * simt_pair_pitch<sum>};
}

template <typename sum> size_t shared_bytes(int64_t head_dim)
{
    return 4 * simt_tile_bytes<sum>(head_dim) +
           2 * SIMT_TOKENS * simt_pair_pitch<sum> * sizeof(sum);
}

/* dq of 16 queries:   s = q k^T   dp = dO v^T   ds = p (dp - delta)   dq += ds k */
template <typename T>
__global__ void __launch_bounds__(SIMT_THREADS, 1)
    backward_simt_queries_kernel(const __grid_constant__ backward_arguments x)
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
    const backward_tiles<sum> t = tiles_at<sum>(shared, head_dim);
    simt_load(t.q, row_at<const T>(x.q, s.batch, tile.head, s.q_start, 0), x.q.strides.token,
              tile.begin, tile.end, head_dim);
    simt_load(t.d_out, row_at<const T>(x.d_out, s.batch, tile.head, s.q_start, 0),
              x.d_out.strides.token, tile.begin, tile.end, head_dim);
    const row_stats<sum> stats = static_cast<const row_stats<sum> *>(
        x.stats)[slot_of_query(g, s, tile.head, hpa_min(query, tile.end - 1))];

    const int64_t visible = visible_keys(g, s, query);
    sum_row<sum> dq = {};
    const block_list list = row_list(g, x.mask, s, tile.mask_row);
    for (int32_t n = 0; n < list.length; n++) {
        const int64_t block = list.blocks[n];
        if (block < 0 || block >= s.key_blocks)
            continue;
        const int64_t end = hpa_block_end(block, g.block_k, s.kv_length);
        for (int64_t key = block * g.block_k; key < end; key += SIMT_TOKENS) {
            __syncthreads();
            simt_load(t.k, k, x.k.strides.token, key, end, head_dim);
            simt_load(t.v, v, x.v.strides.token, key, end, head_dim);
            __syncthreads();
            const sum p = exp((sum)g.scale * simt_dot(t.q, t.k, head_dim) - stats.lse);
            t.ds[simt_row() * simt_pair_pitch<sum> + simt_column()] =
                p * (simt_dot(t.d_out, t.v, head_dim) - stats.delta);
            __syncwarp();
            const int seen = (int)hpa_max(0, hpa_min(SIMT_TOKENS, visible - key));
            simt_add_rows(dq, t.ds, t.k, 0, seen, head_dim);
        }
    }
    if (query < tile.end)
        simt_store(row_at<T>(x.dq, s.batch, tile.head, s.q_start, query), dq, (sum)g.scale,
                   x.accumulate, head_dim);
}

/* What 16 queries of one head add to dk and dv:
 *     s^T = k q^T   dp^T = v dO^T   dv += p^T dO   dk += ds^T q */
template <typename T>
__device__ void add_queries(const backward_arguments &x, const backward_tiles<sum_of<T>> &t,
                            const hpa_sequence &s, int64_t head, int64_t first, int64_t end,
                            int64_t key, sum_row<sum_of<T>> &dk, sum_row<sum_of<T>> &dv)
{
    using sum = sum_of<T>;
    const hpa_geometry &g = x.geometry;
    const int head_dim = (int)g.head_dim;
    __syncthreads();
    simt_load(t.q, row_at<const T>(x.q, s.batch, head, s.q_start, 0), x.q.strides.token, first, end,
              head_dim);
    simt_load(t.d_out, row_at<const T>(x.d_out, s.batch, head, s.q_start, 0), x.d_out.strides.token,
              first, end, head_dim);
    const int64_t query = hpa_min(first + simt_column(), end - 1);
    const row_stats<sum> stats =
        static_cast<const row_stats<sum> *>(x.stats)[slot_of_query(g, s, head, query)];
    __syncthreads();
    const sum p = exp((sum)g.scale * simt_dot(t.k, t.q, head_dim) - stats.lse);
    const int at = simt_row() * simt_pair_pitch<sum> + simt_column();
    t.p[at] = p;
    t.ds[at] = p * (simt_dot(t.v, t.d_out, head_dim) - stats.delta);
    __syncwarp();
    /* The queries that see this thread's key. */
    const int64_t sees_from = g.causal ? key - hpa_key_position(&s, first) : 0;
    const int begin = (int)hpa_max(0, hpa_min(SIMT_TOKENS, sees_from));
    const int stop = (int)hpa_min(SIMT_TOKENS, end - first);
    if (x.dk.data)
        simt_add_rows(dk, t.ds, t.q, begin, stop, head_dim);
    if (x.dv.data)
        simt_add_rows(dv, t.p, t.d_out, begin, stop, head_dim);
}

/* All entries of the work: its share of the lists of the group's heads, laid end to end. */
template <typename T>
__device__ void add_lists(const backward_arguments &x, const backward_tiles<sum_of<T>> &t,
                          const column_work &work, int64_t key, sum_row<sum_of<T>> &dk,
                          sum_row<sum_of<T>> &dv)
{
    const hpa_geometry &g = x.geometry;
    const hpa_sequence &s = work.column.sequence;
    int64_t passed = 0;
    for (int64_t head = work.column.kv_head * g.group; head < (work.column.kv_head + 1) * g.group;
         head++) {
        const column_list list = list_of(g, x.mask, work.column, head);
        const int64_t first = hpa_max(0, work.begin - passed);
        const int64_t last = hpa_min(list.end - list.begin, work.end - passed);
        passed += list.end - list.begin;
        for (int64_t n = first; n < last; n++) {
            const int64_t block = x.mask.column_rows[list.begin + n];
            if (block < 0 || block >= s.query_blocks)
                continue;
            const int64_t end = hpa_block_end(block, g.block_q, s.q_length);
            for (int64_t query = block * g.block_q; query < end; query += SIMT_TOKENS)
                add_queries<T>(x, t, s, head, query, end, key, dk, dv);
        }
    }
}

/* dk and dv of 16 keys */
template <typename T>
__global__ void __launch_bounds__(SIMT_THREADS, 1)
    backward_simt_keys_kernel(const __grid_constant__ backward_arguments x)
{
    using sum = sum_of<T>;
    extern __shared__ uint4 shared[];
    const hpa_geometry &g = x.geometry;
    const int head_dim = (int)g.head_dim;
    const int64_t tiles_per_block = g.block_k / SIMT_TOKENS;
    column_work work;
    if (!find_column_work(g, x.mask, x.plan, work_index() / tiles_per_block, &work))
        return;
    const hpa_sequence &s = work.column.sequence;
    const int64_t kv_head = work.column.kv_head;
    const int64_t in_block = work_index() % tiles_per_block * SIMT_TOKENS;
    const int64_t first = work.column.key_block * g.block_k + in_block;
    const int64_t key = first + simt_row();
    const backward_tiles<sum> t = tiles_at<sum>(shared, head_dim);
    simt_load(t.k, row_at<const T>(x.k, s.batch, kv_head, s.kv_start, 0), x.k.strides.token, first,
              s.kv_length, head_dim);
    simt_load(t.v, row_at<const T>(x.v, s.batch, kv_head, s.kv_start, 0), x.v.strides.token, first,
              s.kv_length, head_dim);
    sum_row<sum> dk = {}, dv = {};
    add_lists<T>(x, t, work, key, dk, dv);

    if (work.sums >= 0) {
        sum *sums = static_cast<sum *>(x.plan.sums) + work.sums * x.plan.sums_each +
                    (in_block + simt_row()) * g.head_dim;
        simt_store(sums, dk, (sum)g.scale, false, head_dim);
        simt_store(sums + g.block_k * g.head_dim, dv, (sum)1, false, head_dim);
        return;
    }
    if (key >= s.kv_length)
        return;
    if (x.dk.data)
        simt_store(row_at<T>(x.dk, s.batch, kv_head, s.kv_start, key), dk, (sum)g.scale,
                   x.accumulate, head_dim);
    if (x.dv.data)
        simt_store(row_at<T>(x.dv, s.batch, kv_head, s.kv_start, key), dv, (sum)1, x.accumulate,
                   head_dim);
}

struct backward_scratch {
    void *stats;
    column_plan columns;
};

backward_scratch take_scratch(const hpa_geometry *g, size_t sum_size, hpa_arena *arena)
{
    backward_scratch scratch;
    scratch.stats = hpa_arena_take(arena, query_slots_of(g), 2 * sum_size);
    scratch.columns = column_plan_of(g, sum_size, arena);
    return scratch;
}

size_t scratch_bytes(const hpa_plan *plan)
{
    hpa_arena arena = {};
    take_scratch(&plan->geometry, plan->desc.dtype == HPA_F64 ? 8 : 4, &arena);
    return arena.used;
}

template <typename T>
hpa_status launch_all(const backward_arguments &x, void *stats, const hpa_outputs *out,
                      const hpa_gradients *grads, cudaStream_t stream)
{
    using sum = sum_of<T>;
    const hpa_geometry &g = x.geometry;
    HPA_TRY((launch_row_stats<T, 1>(g, x.mask, out, grads, stats, 1, stream)));
    if (x.dq.data)
        HPA_TRY(hpa_cuda_launch("backward_simt_queries", backward_simt_queries_kernel<T>,
                                grid_of(g.heads_q * g.row_slots * (g.block_q / SIMT_TOKENS)),
                                dim3(SIMT_THREADS), shared_bytes<sum>(g.head_dim), stream, x));
    if (!x.dk.data && !x.dv.data)
        return HPA_OK;
    const column_arguments columns = {g, x.mask, x.plan, x.dk, x.dv, x.accumulate};
    HPA_TRY(launch_split_columns(columns, stream));
    HPA_TRY(
        hpa_cuda_launch("backward_simt_keys", backward_simt_keys_kernel<T>,
                        grid_of((x.plan.most_pieces + x.plan.columns) * (g.block_k / SIMT_TOKENS)),
                        dim3(SIMT_THREADS), shared_bytes<sum>(g.head_dim), stream, x));
    return launch_join_columns<T>(columns, stream);
}

template <typename T>
hpa_status run(const hpa_plan *plan, const void *mask, const hpa_inputs *in, const hpa_outputs *out,
               const hpa_gradients *grads, const hpa_exec *exec)
{
    const hpa_geometry *g = &plan->geometry;
    hpa_arena arena = {(unsigned char *)exec->scratch, 0};
    const backward_scratch scratch = take_scratch(g, sizeof(sum_of<T>), &arena);
    const backward_arguments x = {.geometry = *g,
                                  .mask = hpa_mask_view_const(g, mask),
                                  .plan = scratch.columns,
                                  .q = rows_of(&in->q, g->packed),
                                  .k = rows_of(&in->k, g->packed),
                                  .v = rows_of(&in->v, g->packed),
                                  .d_out = rows_of(&grads->d_out, g->packed),
                                  .dq = rows_of(&grads->dq, g->packed),
                                  .dk = rows_of(&grads->dk, g->packed),
                                  .dv = rows_of(&grads->dv, g->packed),
                                  .stats = scratch.stats,
                                  .accumulate = grads->accumulate};
    int32_t before;
    HPA_TRY(hpa_cuda_enter(plan->cuda.id, &before));
    return hpa_cuda_leave(before,
                          launch_all<T>(x, scratch.stats, out, grads, hpa_cuda_stream(exec)));
}

hpa_status backward_simt(const hpa_plan *plan, const void *mask, const hpa_inputs *in,
                         const hpa_outputs *out, const hpa_gradients *grads, const hpa_exec *exec)
{
    switch (plan->desc.dtype) {
    case HPA_F64:
        return run<double>(plan, mask, in, out, grads, exec);
    case HPA_F32:
        return run<float>(plan, mask, in, out, grads, exec);
    case HPA_F16:
        return run<__half>(plan, mask, in, out, grads, exec);
    default:
        return run<__nv_bfloat16>(plan, mask, in, out, grads, exec);
    }
}

} // namespace

extern "C" int64_t hpa_backward_simt_shared_bytes(const hpa_desc *desc)
{
    return (int64_t)(desc->dtype == HPA_F64 ? shared_bytes<double>(desc->head_dim)
                                            : shared_bytes<float>(desc->head_dim));
}

extern "C" const hpa_backward_kernel hpa_backward_simt = {"backward_simt", scratch_bytes,
                                                          backward_simt};
