/* The fast backward pass, the mask held constant.
 *
 * forward:   s_ij = scale * q_i . k_j    p_ij = exp(s_ij - lse_i)    o_i = sum_j p_ij v_j
 * backward:  dp_ij = dO_i . v_j          ds_ij = p_ij (dp_ij - delta_i)
 *            dv_j += p_ij dO_i           dk_j += scale * ds_ij q_i   dq_i += scale * ds_ij k_j
 *
 * One walk over a block of queries makes all five products for a chunk of its kept keys while the
 * two score tiles are in a near cache: 10 head_dim FLOPs a pair. Who may walk where follows from
 * who owns the sums. A lane is one sequence and key/value head.
 *   - Many lanes: each lane is one thread's. It walks the lane's query blocks in order and adds to
 *     dq, dk and dv at once.
 *   - A lane that alone would keep the others waiting is shared by all threads: they first take its
 *     query blocks for dq, each whole, then ranges of its key blocks for dk and dv, each walking
 *     the query blocks in order. s and dp are made twice, 14 head_dim FLOPs a pair. The transpose's
 *     counts cut the key blocks into ranges of equal work.
 * Either way each sum has one owner and takes its terms in the same order, so the bits do not depend
 * on the number of threads. */
#include "backward/kernels.h"
#include "core/cpu/row_chunks.h"
#include "core/cpu/scratch.h"
#include "core/tensor.h"

#include <omp.h>

/* Keys that are copied by one task of a shared lane. */
#define COPY_TOKENS 256

/* Products of a pair in a lane of one thread, and in a shared one. */
#define PRODUCTS_ALONE 5
#define PRODUCTS_SHARED 7

/* Some of the key blocks of a sequence. */
typedef struct block_range {
    int64_t begin, end;
} block_range;

/* The gradients that a walk over a block of queries makes. */
typedef struct wanted {
    bool dq, dk, dv;
} wanted;

static wanted all_wanted(const hpa_gradients *grads)
{
    return (wanted){.dq = grads->dq.data, .dk = grads->dk.data, .dv = grads->dv.data};
}

/* A lane is shared when, on one thread, it would take longer than all the work shared. The work of a
 * lane is in proportion to its queries. */
static bool lane_is_shared(const hpa_plan *plan, const hpa_inputs *in, const hpa_sequence *s)
{
    const hpa_geometry *g = &plan->geometry;
    const int64_t queries = g->packed ? in->cu_seqlens_q[g->batch] : g->batch * g->seq_q;
    return PRODUCTS_ALONE * s->q_length * plan->num_threads >
           PRODUCTS_SHARED * queries * g->heads_kv;
}

/* Lanes that are worked on at a time, each with room of its own. */
static int32_t lane_rooms(const hpa_plan *plan)
{
    return (int32_t)hpa_min(plan->num_threads, plan->geometry.batch * plan->geometry.heads_kv);
}

/* Pairs of blocks that the query heads of a key/value head keep in key blocks before key_block. */
static int64_t work_before(const hpa_geometry *g, const hpa_mask *mask, const hpa_sequence *s,
                           int64_t kv_head, int64_t key_block)
{
    const int64_t mask_heads = g->mask_heads / g->heads_kv;
    int64_t work = 0;
    for (int64_t head = kv_head * mask_heads; head < (kv_head + 1) * mask_heads; head++) {
        const int64_t first = hpa_column_index(g, s, head, 0);
        work += mask->column_start[first + key_block] - mask->column_start[first];
    }
    return work;
}

/* The first key block with part / parts of the lane's work before it. */
static int64_t range_boundary(const hpa_geometry *g, const hpa_mask *mask, const hpa_sequence *s,
                              int64_t kv_head, int64_t part, int64_t parts)
{
    const int64_t all = work_before(g, mask, s, kv_head, s->key_blocks);
    int64_t low = 0, high = s->key_blocks;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (work_before(g, mask, s, kv_head, middle) * parts < all * part)
            low = middle + 1;
        else
            high = middle;
    }
    return part == parts ? s->key_blocks : low;
}

#define HPA_REAL_BITS 32
#include "backward/backward_cpu_rows.h"
#undef HPA_REAL_BITS
#define HPA_REAL_BITS 64
#include "backward/backward_cpu_rows.h"
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

static hpa_status backward_cpu(const hpa_plan *plan, const void *mask, const hpa_inputs *in,
                               const hpa_outputs *out, const hpa_gradients *grads,
                               const hpa_exec *exec)
{
    hpa_arena arena = hpa_cpu_arena(exec);
    if (plan->desc.dtype == HPA_F64)
        backward_f64(plan, mask, in, out, grads, &arena);
    else
        backward_f32(plan, mask, in, out, grads, &arena);
    return HPA_OK;
}

const hpa_backward_kernel hpa_backward_cpu = {"backward_cpu", scratch_bytes, backward_cpu};
