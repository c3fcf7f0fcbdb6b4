/* What the two kernels of the backward pass on the tensor cores of sm_80 are given. */
#ifndef HPA_BACKWARD_MMA_ARGUMENTS_CUH
#define HPA_BACKWARD_MMA_ARGUMENTS_CUH

#include "backward/scratch.cuh"

namespace
{

struct backward_arguments {
    hpa_geometry geometry;
    hpa_mask mask;
    column_plan plan;
    tensor_rows q, k, v, d_out, dq, dk, dv;
    const stats_pair *stats; /* [heads_q][row_slots][block_q] */
    const uint8_t *only;     /* by work: 0 where there is nothing to do; null: do all of it */
    int tiles_per_block;     /* of a query block, or of a key block */
    int tile_tokens;         /* queries, or keys, of a thread block */
    float scale, scale_log2;
    bool accumulate;
};

} // namespace
#endif
