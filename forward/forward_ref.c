/* The specification of the forward pass: softmax attention of each query over the keys that its
 * block kept.
 *
 *     s_j = scale * q . k_j        lse = log sum_j exp(s_j)
 *     p_j = exp(s_j - lse)         o   = sum_j p_j v_j
 *
 * j runs over the keys of the kept blocks that causality allows. A query with no such key has o = 0
 * and lse = -inf. Plain loops in double precision; speed is forward_cpu.c's concern. */
#include "core/tensor.h"
#include "forward/kernels.h"

#include <math.h>

#define MAX_HEAD_DIM 256

/* One query with its list of kept blocks. */
typedef struct query_view {
    const hpa_plan *plan;
    const hpa_inputs *in;
    const hpa_sequence *sequence;
    int64_t query_head, query;
    const int32_t *blocks; /* ascending */
    int64_t n_blocks;
} query_view;

/* Elements from k's or v's start to a key of the query's key/value head. */
static int64_t key_offset(const query_view *x, const hpa_tensor *t, int64_t key)
{
    const hpa_strides strides = hpa_strides_of(t, x->plan->geometry.packed);
    return hpa_offset(&strides, x->sequence->batch, x->query_head / x->plan->geometry.group,
                      x->sequence->kv_start, key);
}

static int64_t query_offset(const query_view *x, const hpa_tensor *t)
{
    const hpa_strides strides = hpa_strides_of(t, x->plan->geometry.packed);
    return hpa_offset(&strides, x->sequence->batch, x->query_head, x->sequence->q_start, x->query);
}

static double score(const query_view *x, int64_t key)
{
    const hpa_dtype dtype = x->plan->desc.dtype;
    const int64_t q = query_offset(x, &x->in->q), k = key_offset(x, &x->in->k, key);
    double sum = 0;
    for (int64_t d = 0; d < x->plan->geometry.head_dim; d++)
        sum += hpa_load(x->in->q.data, dtype, q + d) * hpa_load(x->in->k.data, dtype, k + d);
    return x->plan->geometry.scale * sum;
}

/* One past the last key of a kept block that the query sees. */
static int64_t visible_end(const query_view *x, int64_t block)
{
    const hpa_geometry *g = &x->plan->geometry;
    const int64_t end = hpa_block_end(block, g->block_k, x->sequence->kv_length);
    return g->causal ? hpa_min(end, hpa_key_position(x->sequence, x->query) + 1) : end;
}

/* max_j s_j, which keeps exp from overflowing; -inf when there is no key. NaN wins, to be seen. */
static double highest_score(const query_view *x)
{
    double highest = -INFINITY;
    for (int64_t n = 0; n < x->n_blocks; n++) {
        const int64_t end = visible_end(x, x->blocks[n]);
        for (int64_t key = x->blocks[n] * x->plan->geometry.block_k; key < end; key++) {
            const double s = score(x, key);
            if (s > highest || isnan(s))
                highest = s;
        }
    }
    return highest;
}

/* o[d] += exp(s_j - highest) v[j][d]; returns the sum of the weights. */
static double weighted_values(const query_view *x, double highest, double *o)
{
    const hpa_geometry *g = &x->plan->geometry;
    double sum = 0;
    for (int64_t n = 0; n < x->n_blocks; n++) {
        const int64_t end = visible_end(x, x->blocks[n]);
        for (int64_t key = x->blocks[n] * g->block_k; key < end; key++) {
            const double weight = exp(score(x, key) - highest);
            const int64_t v = key_offset(x, &x->in->v, key);
            for (int64_t d = 0; d < g->head_dim; d++)
                o[d] += weight * hpa_load(x->in->v.data, x->plan->desc.dtype, v + d);
            sum += weight;
        }
    }
    return sum;
}

static bool sees_a_key(const query_view *x)
{
    for (int64_t n = 0; n < x->n_blocks; n++)
        if (visible_end(x, x->blocks[n]) > x->blocks[n] * x->plan->geometry.block_k)
            return true;
    return false;
}

static void attend(const query_view *x, const hpa_outputs *out)
{
    const hpa_geometry *g = &x->plan->geometry;
    double o[MAX_HEAD_DIM] = {0};
    double lse = -INFINITY, sum = 1;
    if (sees_a_key(x)) {
        const double highest = highest_score(x);
        sum = weighted_values(x, highest, o);
        lse = highest + log(sum);
    }
    const hpa_strides strides = hpa_strides_of(&out->lse, g->packed);
    const int64_t lse_at =
        hpa_offset(&strides, x->sequence->batch, x->query_head, x->sequence->q_start, x->query);
    const int64_t out_at = query_offset(x, &out->out);
    hpa_store(out->lse.data, out->lse.dtype, lse_at, lse);
    for (int64_t d = 0; d < g->head_dim; d++)
        hpa_store(out->out.data, out->out.dtype, out_at + d, o[d] / sum);
}

static size_t scratch_bytes(const hpa_plan *plan)
{
    (void)plan;
    return 0;
}

static hpa_status forward_ref(const hpa_plan *plan, const void *mask, const hpa_inputs *in,
                              const hpa_outputs *out, const hpa_exec *exec)
{
    (void)exec;
    const hpa_geometry *g = &plan->geometry;
    const hpa_mask m = hpa_mask_view_const(g, mask);
    for (int64_t b = 0; b < g->batch; b++) {
        const hpa_sequence s = hpa_sequence_at(g, in->cu_seqlens_q, in->cu_seqlens_kv, b);
        for (int64_t head = 0; head < g->heads_q; head++)
            for (int64_t query = 0; query < s.q_length; query++) {
                const int64_t row = hpa_row_index(g, &s, head / g->mask_group, query / g->block_q);
                const query_view x = {
                    plan, in, &s, head, query, m.row_blocks + row * g->capacity, m.row_length[row]};
                attend(&x, out);
            }
    }
    return HPA_OK;
}

const hpa_forward_kernel hpa_forward_ref = {"forward_ref", scratch_bytes, forward_ref};
