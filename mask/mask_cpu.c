/* The fast mask: the search that mask_ref.c spells out, one mask row a task.
 *
 * A row's sampled queries are turned once into a panel. At each level the representative keys of all
 * children are gathered, some tens at a time, and one product scores them against all the queries;
 * the best score of each child is folded out of the tile while it is in a near cache. A row costs
 * 2 head_dim FLOPs for each pair of sampled query and representative key.
 *
 * The best children are told by the lowest score among them, found without sorting; passing over
 * the children in order then keeps them ascending and settles ties by index. */
#include "core/cpu/scratch.h"
#include "core/tensor.h"
#include "mask/kernels.h"
#include "mask/rules.h"

#include <math.h>
#include <omp.h>

/* Representative keys that are scored by one product. */
#define BATCH_KEYS 64

/* Queries of one mask row that take part in the search, over all heads that share the row. */
static int64_t most_sampled_queries(const hpa_geometry *g)
{
    return g->mask_group * hpa_ceil_div(g->block_q, g->query_stride);
}

#define HPA_REAL_BITS 32
#include "mask/mask_cpu_rows.h"
#undef HPA_REAL_BITS
#define HPA_REAL_BITS 64
#include "mask/mask_cpu_rows.h"
#undef HPA_REAL_BITS

static size_t scratch_bytes(const hpa_plan *plan)
{
    hpa_arena arena = {0};
    if (plan->desc.dtype == HPA_F64)
        take_scratch_f64(plan, &arena);
    else
        take_scratch_f32(plan, &arena);
    return hpa_cpu_scratch_bytes(&arena);
}

static hpa_status mask_build_cpu(const hpa_plan *plan, const hpa_inputs *in, void *mask,
                                 const hpa_exec *exec)
{
    const hpa_geometry *g = &plan->geometry;
    hpa_mask m = hpa_mask_at(g, mask);
    hpa_arena arena = hpa_cpu_arena(exec);
    hpa_mask_begin(g, in, &m);
    if (plan->desc.dtype == HPA_F64)
        build_rows_f64(plan, in, &m, &arena);
    else
        build_rows_f32(plan, in, &m, &arena);
    if (g->training)
        hpa_mask_transpose_cpu(g, &m, plan->num_threads);
    return HPA_OK;
}

const hpa_mask_kernel hpa_mask_cpu = {"mask_cpu", scratch_bytes, mask_build_cpu};
