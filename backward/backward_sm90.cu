/* The backward pass on Hopper: f16 and bf16, head_dim 64 and 128, block_q 128 and 256, without
 * atomics.
 *
 * As in backward_mma, dq has a kernel (queries_sm90.cuh) and dk and dv have one (keys_sm90.cuh), and
 * each recomputes p; here the products are those of whole warpgroups and the copy engine brings the
 * tiles. What takes other ways goes to the kernels of backward_mma: key blocks of 16 and 32, which
 * fill no warpgroup's 64 rows; tensors that the copy engine cannot walk; and tiles in which a value
 * that is not finite meets a pair that does not count, since 0 times it is not 0. */
#include "backward/kernels.h"
#include "backward/keys_sm90.cuh"
#include "backward/queries_sm90.cuh"
#include "core/cuda/tiling.h"
#include "core/cuda/tma_map.h"

/* Compiled for an older architecture the kernels are empty, and their functions have no use. */
#pragma nv_diag_suppress 177

namespace
{

struct sm90_scratch {
    backward_scratch common; /* first, as the other kernels take it */
    uint8_t *queries_left, *keys_left;
    unsigned long long *next_query_tile;
};

int64_t query_tiles_of(const hpa_geometry *g)
{
    return g->heads_q * g->row_slots * (g->block_q / tile_queries);
}

sm90_scratch take_sm90_scratch(const hpa_geometry *g, hpa_arena *arena)
{
    sm90_scratch scratch;
    scratch.common = take_scratch(g, arena);
    scratch.queries_left = HPA_ARENA_ARRAY(arena, uint8_t, 2 * query_tiles_of(g));
    scratch.keys_left = HPA_ARENA_ARRAY(
        arena, uint8_t, scratch.common.columns.most_pieces + scratch.common.columns.columns);
    scratch.next_query_tile = HPA_ARENA_ARRAY(arena, unsigned long long, 1);
    return scratch;
}

size_t backward_sm90_scratch(const hpa_plan *plan)
{
    hpa_arena arena = {};
    take_sm90_scratch(&plan->geometry, &arena);
    return arena.used;
}

/* One call of the pass. */
struct sm90_call {
    const hpa_plan *plan;
    const void *mask;
    const hpa_inputs *in;
    const hpa_outputs *out;
    const hpa_gradients *grads;
    const hpa_exec *exec;
    const hpa_backward_parts *others;
    cudaStream_t stream;
    const char *name;
};

template <typename T, int D>
hpa_status launch_queries_sm90(const sm90_call &call, const sm90_arguments &x)
{
    const hpa_geometry *g = &x.geometry;
    const auto box_tokens = (uint32_t)hpa_min(g->block_k, step_keys);
    const auto map_of = box_tokens == step_keys ? hpa_tma_rows_map_of : hpa_tma_map_of;
    CUtensorMap q_map, out_map, d_out_map, k_map, v_map;
    HPA_TRY(hpa_tma_rows_map_of(&q_map, "in.q", &call.in->q, g->packed, GROUP_ROWS));
    HPA_TRY(hpa_tma_rows_map_of(&out_map, "out.out", &call.out->out, g->packed, GROUP_ROWS));
    HPA_TRY(hpa_tma_rows_map_of(&d_out_map, "grads.d_out", &call.grads->d_out, g->packed,
                                GROUP_ROWS));
    HPA_TRY(map_of(&k_map, "in.k", &call.in->k, g->packed, box_tokens));
    HPA_TRY(map_of(&v_map, "in.v", &call.in->v, g->packed, box_tokens));
    HPA_TRY(hpa_cuda_status(
        cudaMemsetAsync(x.next_query_tile, 0, sizeof(*x.next_query_tile), call.stream), call.name));
    HPA_TRY(hpa_cuda_launch(
        call.name, backward_queries_sm90_kernel<T, D>,
        dim3((unsigned)hpa_min(x.query_tiles, call.plan->cuda.multiprocessors)),
        dim3(queries_threads), sizeof(queries_shared<D>), call.stream, x, q_map, out_map,
        d_out_map, k_map, v_map));
    return call.others->queries(call.plan, call.mask, call.in, call.grads, call.exec,
                                x.queries_left);
}

template <typename T, int D, int halves>
hpa_status launch_key_blocks(const sm90_call &call, const sm90_arguments &x)
{
    const bool packed = x.geometry.packed;
    CUtensorMap q_map, d_out_map, k_map, v_map;
    HPA_TRY(hpa_tma_rows_map_of(&q_map, "in.q", &call.in->q, packed, step_queries<D>));
    HPA_TRY(hpa_tma_rows_map_of(&d_out_map, "grads.d_out", &call.grads->d_out, packed, step_queries<D>));
    HPA_TRY(hpa_tma_rows_map_of(&k_map, "in.k", &call.in->k, packed, GROUP_ROWS));
    HPA_TRY(hpa_tma_rows_map_of(&v_map, "in.v", &call.in->v, packed, GROUP_ROWS));
    return hpa_cuda_launch(call.name, backward_keys_sm90_kernel<T, D, halves>,
                           grid_of(x.plan.most_pieces + x.plan.columns), dim3(keys_threads),
                           sizeof(keys_shared<D, halves>), call.stream, x, q_map, d_out_map,
                           k_map, v_map);
}

template <typename T, int D>
hpa_status launch_keys_sm90(const sm90_call &call, const sm90_arguments &x)
{
    if (x.geometry.block_k < GROUP_ROWS)
        return call.others->keys(call.plan, call.mask, call.in, call.grads, call.exec, nullptr);
    const column_arguments columns = {x.geometry, x.mask, x.plan, x.dk, x.dv, x.accumulate};
    HPA_TRY(launch_split_columns(columns, call.stream));
    if (x.geometry.block_k == GROUP_ROWS)
        HPA_TRY((launch_key_blocks<T, D, 1>(call, x)));
    else
        HPA_TRY((launch_key_blocks<T, D, 2>(call, x)));
    HPA_TRY(
        call.others->keys(call.plan, call.mask, call.in, call.grads, call.exec, x.keys_left));
    return launch_join_columns<T>(columns, call.stream);
}

template <typename T, int D>
hpa_status launch_backward_sm90(const sm90_call &call, const sm90_arguments &x)
{
    if (x.dq.data)
        HPA_TRY((launch_queries_sm90<T, D>(call, x)));
    else
        HPA_TRY((launch_row_stats<T, 8>(x.geometry, x.mask, call.out, call.grads, x.stats,
                                        LSE_FACTOR, call.stream)));
    if (x.dk.data || x.dv.data)
        HPA_TRY((launch_keys_sm90<T, D>(call, x)));
    return HPA_OK;
}

sm90_arguments arguments_of(const sm90_call &call)
{
    const hpa_geometry *g = &call.plan->geometry;
    hpa_arena arena = {(unsigned char *)call.exec->scratch, 0};
    const sm90_scratch scratch = take_sm90_scratch(g, &arena);
    return {.geometry = *g,
            .mask = hpa_mask_view_const(g, call.mask),
            .plan = scratch.common.columns,
            .q = rows_of(&call.in->q, g->packed),
            .k = rows_of(&call.in->k, g->packed),
            .v = rows_of(&call.in->v, g->packed),
            .lse = rows_of(&call.out->lse, g->packed),
            .d_out = rows_of(&call.grads->d_out, g->packed),
            .d_lse = rows_of(&call.grads->d_lse, g->packed),
            .dq = rows_of(&call.grads->dq, g->packed),
            .dk = rows_of(&call.grads->dk, g->packed),
            .dv = rows_of(&call.grads->dv, g->packed),
            .stats = scratch.common.stats,
            .queries_left = scratch.queries_left,
            .keys_left = scratch.keys_left,
            .query_tiles = query_tiles_of(g),
            .next_query_tile = scratch.next_query_tile,
            .tiles_per_block = (int)(g->block_q / tile_queries),
            .scale = (float)g->scale,
            .scale_log2 = scale_log2_of(g),
            .accumulate = call.grads->accumulate};
}

template <typename T, int D>
hpa_status run_backward_sm90(const sm90_call &call, const hpa_backward_kernel *otherwise)
{
    const hpa_geometry *g = &call.plan->geometry;
    const bool can_copy = hpa_tma_can_copy(&call.in->q) && hpa_tma_can_copy(&call.in->k) &&
                          hpa_tma_can_copy(&call.in->v) && hpa_tma_can_copy(&call.out->out) &&
                          hpa_tma_can_copy(&call.grads->d_out);
    if (!can_copy || !all_rows_are_aligned(call.in, call.out, call.grads) || g->total_q == 0 ||
        g->total_kv == 0)
        return otherwise->run(call.plan, call.mask, call.in, call.out, call.grads, call.exec);
    int32_t before;
    HPA_TRY(hpa_cuda_enter(call.plan->cuda.id, &before));
    return hpa_cuda_leave(before,
                          launch_backward_sm90<T, D>(call, arguments_of(call)));
}

} // namespace

#define DEFINE_KERNEL(dtype, name, type, head_dim)                                              \
    static hpa_status run_##name##_##head_dim(const hpa_plan *plan, const void *mask,           \
                                              const hpa_inputs *in, const hpa_outputs *out,     \
                                              const hpa_gradients *grads, const hpa_exec *exec) \
    {                                                                                           \
        const sm90_call call = {plan,                                                           \
                                mask,                                                           \
                                in,                                                             \
                                out,                                                            \
                                grads,                                                          \
                                exec,                                                           \
                                &hpa_backward_mma_parts_##name##_##head_dim,                    \
                                hpa_cuda_stream(exec),                                          \
                                "backward_sm90_" #name "_" #head_dim};                          \
        return run_backward_sm90<type, head_dim>(call,                                          \
                                                 &hpa_backward_mma_##name##_##head_dim);        \
    }                                                                                           \
    extern "C" const hpa_backward_kernel hpa_backward_sm90_##name##_##head_dim = {              \
        "backward_sm90_" #name "_" #head_dim, backward_sm90_scratch, run_##name##_##head_dim};
HPA_SM90_INSTANCES(DEFINE_KERNEL)
