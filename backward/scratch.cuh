/* The scratch of the tensor-core kernels of the backward pass, and what they ask of the tensors. */
#ifndef HPA_BACKWARD_SCRATCH_CUH
#define HPA_BACKWARD_SCRATCH_CUH

#include "backward/columns.cuh"
#include "backward/row_stats.cuh"

namespace
{

using stats_pair = row_stats<float>;

struct backward_scratch {
    stats_pair *stats; /* [heads_q][row_slots][block_q] */
    column_plan columns;
};

static inline backward_scratch take_scratch(const hpa_geometry *g, hpa_arena *arena)
{
    backward_scratch scratch;
    scratch.stats = HPA_ARENA_ARRAY(arena, stats_pair, query_slots_of(g));
    scratch.columns = column_plan_of(g, sizeof(float), arena);
    return scratch;
}

static inline bool all_rows_are_aligned(const hpa_inputs *in, const hpa_outputs *out,
                                        const hpa_gradients *grads)
{
    const hpa_tensor *const tensors[] = {&in->q,        &in->k,     &in->v,     &out->out,
                                         &grads->d_out, &grads->dq, &grads->dk, &grads->dv};
    bool aligned = true;
    for (const hpa_tensor *tensor : tensors)
        aligned &= rows_are_aligned(tensor);
    return aligned;
}

} // namespace
#endif
