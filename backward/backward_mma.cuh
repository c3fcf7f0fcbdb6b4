/* The backward pass on the tensor cores of sm_80 and later, f16 and bf16, without atomics.
 *
 * Two kernels, dq (queries_mma.cuh) and dk and dv (keys_mma.cuh), each recomputing p from q, k and lse,
 * so that every sum has one owner and one order: seven products instead of the five of a backward that
 * adds dq up with atomics, the price of gradients that are equal bit by bit. s, p, dp and ds never
 * leave registers.
 *
 * Rows are read 16 bytes at a time. Tensors whose rows do not begin at multiples of that are left to
 * backward_simt, which needs the same scratch. */
#ifndef HPA_BACKWARD_MMA_CUH
#define HPA_BACKWARD_MMA_CUH

#include "backward/kernels.h"
#include "backward/keys_mma.cuh"
#include "backward/queries_mma.cuh"

namespace
{

size_t backward_mma_scratch(const hpa_plan *plan)
{
    hpa_arena arena = {};
    take_scratch(&plan->geometry, &arena);
    return arena.used;
}

/* With `only`, tiles are the 64 queries of a Hopper warpgroup. */
template <typename T, int D>
query_tiling queries_tiling(const hpa_plan *plan, bool only)
{
    using shape = queries_shape<D>;
    const hpa_geometry *g = &plan->geometry;
    const size_t query_bytes = 2 * tile_row_bytes<D>;
    const size_t other_bytes = key_stream<T, D, shape::keys>::shared_bytes;
    if (only)
        return {(int)(g->block_q / 64), 64, 64 * query_bytes + other_bytes};
    return query_tiling_of(g, shape::max_warps, 16 * shape::groups, query_bytes, other_bytes,
                           plan->cuda.shared_bytes);
}

template <typename T, int D>
hpa_status launch_queries(const hpa_plan *plan, backward_arguments x, cudaStream_t stream,
                          const char *name)
{
    using shape = queries_shape<D>;
    const hpa_geometry *g = &plan->geometry;
    const query_tiling tiling = queries_tiling<T, D>(plan, x.only);
    x.tiles_per_block = tiling.tiles_per_block;
    x.tile_tokens = tiling.queries;
    return hpa_cuda_launch(name, backward_queries_kernel<T, D>,
                           grid_of(g->heads_q * g->row_slots * tiling.tiles_per_block),
                           dim3((unsigned)(tiling.queries / (16 * shape::groups) * 32)),
                           tiling.shared_bytes, stream, x);
}

template <typename T, int D, int step_parts, bool has_dk, bool has_dv>
hpa_status launch_keys(const hpa_plan *plan, backward_arguments x, cudaStream_t stream,
                       const char *name)
{
    using shape = keys_shape<D, step_parts>;
    const hpa_geometry *g = &plan->geometry;
    const int key_warps = shape::key_warps(g, plan->cuda.shared_bytes);
    x.tile_tokens = 16 * key_warps;
    x.tiles_per_block = (int)(g->block_k / x.tile_tokens);
    return hpa_cuda_launch(name, backward_keys_kernel<T, D, step_parts, has_dk, has_dv>,
                           grid_of((x.plan.most_pieces + x.plan.columns) * x.tiles_per_block),
                           dim3((unsigned)(32 * key_warps * shape::query_warps(key_warps))),
                           shape::shared_bytes(key_warps), stream, x);
}

/* Registers hold dk and dv together up to head_dim 128. */
template <typename T, int D>
hpa_status launch_whole_columns(const hpa_plan *plan, const backward_arguments &x,
                                cudaStream_t stream, const char *name)
{
    if constexpr (D <= 128) {
        if (x.geometry.block_k == 16)
            return launch_keys<T, D, 1, true, true>(plan, x, stream, name);
        return launch_keys<T, D, 2, true, true>(plan, x, stream, name);
    } else {
        if (x.dk.data)
            HPA_TRY((launch_keys<T, D, 1, true, false>(plan, x, stream, name)));
        if (x.dv.data)
            HPA_TRY((launch_keys<T, D, 1, false, true>(plan, x, stream, name)));
        return HPA_OK;
    }
}

/* With `only`, the columns have been split and are joined by the caller. */
template <typename T, int D>
hpa_status launch_all_keys(const hpa_plan *plan, const backward_arguments &x, cudaStream_t stream,
                           const char *name)
{
    if (x.only)
        return launch_whole_columns<T, D>(plan, x, stream, name);
    const column_arguments columns = {x.geometry, x.mask, x.plan, x.dk, x.dv, x.accumulate};
    HPA_TRY(launch_split_columns(columns, stream));
    HPA_TRY((launch_whole_columns<T, D>(plan, x, stream, name)));
    return launch_join_columns<T>(columns, stream);
}

backward_arguments arguments_of(const hpa_plan *plan, const void *mask, const hpa_inputs *in,
                                const hpa_gradients *grads, const hpa_exec *exec,
                                const uint8_t *only)
{
    const hpa_geometry *g = &plan->geometry;
    hpa_arena arena = {(unsigned char *)exec->scratch, 0};
    const backward_scratch scratch = take_scratch(g, &arena);
    return {.geometry = *g,
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
            .only = only,
            .tiles_per_block = 1,
            .tile_tokens = 0,
            .scale = (float)g->scale,
            .scale_log2 = scale_log2_of(g),
            .accumulate = grads->accumulate};
}

template <typename T, int D>
hpa_status run_backward_mma(const hpa_plan *plan, const void *mask, const hpa_inputs *in,
                            const hpa_outputs *out, const hpa_gradients *grads,
                            const hpa_exec *exec, const char *name)
{
    if (!all_rows_are_aligned(in, out, grads))
        return hpa_backward_simt.run(plan, mask, in, out, grads, exec);
    const backward_arguments x = arguments_of(plan, mask, in, grads, exec, nullptr);
    const cudaStream_t stream = hpa_cuda_stream(exec);
    int32_t before;
    HPA_TRY(hpa_cuda_enter(plan->cuda.id, &before));
    hpa_status status = launch_row_stats<T, 8>(x.geometry, x.mask, out, grads, (void *)x.stats,
                                               1.4426950408889634, stream);
    if (status == HPA_OK && x.dq.data)
        status = launch_queries<T, D>(plan, x, stream, name);
    if (status == HPA_OK && (x.dk.data || x.dv.data))
        status = launch_all_keys<T, D>(plan, x, stream, name);
    return hpa_cuda_leave(before, status);
}
} // namespace

#define HPA_BACKWARD_MMA_INSTANCE(name, type, head_dim)                                         \
    static hpa_status run_##name##_##head_dim(const hpa_plan *plan, const void *mask,           \
                                              const hpa_inputs *in, const hpa_outputs *out,     \
                                              const hpa_gradients *grads, const hpa_exec *exec) \
    {                                                                                           \
        return run_backward_mma<type, head_dim>(plan, mask, in, out, grads, exec,               \
                                                "backward_mma_" #name "_" #head_dim);           \
    }                                                                                           \
    static hpa_status queries_##name##_##head_dim(                                              \
        const hpa_plan *plan, const void *mask, const hpa_inputs *in,                           \
        const hpa_gradients *grads, const hpa_exec *exec, const uint8_t *only)                  \
    {                                                                                           \
        return launch_queries<type, head_dim>(                                                  \
            plan, arguments_of(plan, mask, in, grads, exec, only), hpa_cuda_stream(exec),       \
            "backward_mma_" #name "_" #head_dim);                                               \
    }                                                                                           \
    static hpa_status keys_##name##_##head_dim(                                                 \
        const hpa_plan *plan, const void *mask, const hpa_inputs *in,                           \
        const hpa_gradients *grads, const hpa_exec *exec, const uint8_t *only)                  \
    {                                                                                           \
        return launch_all_keys<type, head_dim>(                                                 \
            plan, arguments_of(plan, mask, in, grads, exec, only), hpa_cuda_stream(exec),       \
            "backward_mma_" #name "_" #head_dim);                                               \
    }                                                                                           \
    extern "C" const hpa_backward_kernel hpa_backward_mma_##name##_##head_dim = {               \
        "backward_mma_" #name "_" #head_dim, backward_mma_scratch, run_##name##_##head_dim};    \
    extern "C" const hpa_backward_parts hpa_backward_mma_parts_##name##_##head_dim = {          \
        queries_##name##_##head_dim, keys_##name##_##head_dim};

#endif
