/* The fast forward pass.
 *
 * A task is one query head's block of queries. It takes the kept keys of its mask row in chunks:
 * scores by one product, weights by one step of an online softmax, and a second product that adds
 * the weighted values. Scores are laid [key][query], so both products read k and v as they lie and
 * neither needs a transposed copy; only the block's own q is turned, once for all its chunks.
 *
 * The key/value heads are taken in waves. A wave's k and v are first copied to scratch as reals of a
 * padded width, then its tasks run in any order: each owns its rows of out and lse, so the bits do
 * not depend on the number of threads.
 *
 * Per pair of query and key: 4 head_dim FLOPs in products. Per row of 128 queries and chunk of 128
 * keys in f32 at head_dim 64, the scores are 64 KB, the keys and values read 64 KB, the sums 32 KB:
 * a near cache holds them. */
#include "core/cpu/row_chunks.h"
#include "core/cpu/scratch.h"
#include "core/tensor.h"
#include "forward/kernels.h"

#include <math.h>
#include <omp.h>

/* Keys that are copied by one task. */
#define COPY_TOKENS 256

/* Key/value heads that are worked on at a time: enough for four tasks a thread. */
static int64_t heads_of_wave(const hpa_plan *plan)
{
    const hpa_geometry *g = &plan->geometry;
    const int64_t tasks_of_head = hpa_max(1, g->group * g->row_slots);
    return hpa_min(g->heads_kv, hpa_ceil_div(4 * (int64_t)plan->num_threads, tasks_of_head));
}

#define HPA_REAL_BITS 32
#include "forward/forward_cpu_rows.h"
#undef HPA_REAL_BITS
#define HPA_REAL_BITS 64
#include "forward/forward_cpu_rows.h"
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

static hpa_status forward_cpu(const hpa_plan *plan, const void *mask, const hpa_inputs *in,
                              const hpa_outputs *out, const hpa_exec *exec)
{
    hpa_arena arena = hpa_cpu_arena(exec);
    if (plan->desc.dtype == HPA_F64)
        forward_f64(plan, mask, in, out, &arena);
    else
        forward_f32(plan, mask, in, out, &arena);
    return HPA_OK;
}

const hpa_forward_kernel hpa_forward_cpu = {"forward_cpu", scratch_bytes, forward_cpu};
