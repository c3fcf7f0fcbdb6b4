/* The specification of the backward pass, the mask held constant.
 *
 *     dp_ij   = dO_i . v_j
 *     delta_i = O_i . dO_i - dLSE_i
 *     ds_ij   = p_ij (dp_ij - delta_i)          p_ij = exp(scale * q_i . k_j - lse_i)
 *     dq_i    = scale * sum_j ds_ij k_j
 *     dk_j    = scale * sum_i ds_ij q_i         over the query heads of the group
 *     dv_j    = sum_i p_ij dO_i                 over the query heads of the group
 *
 * dq gathers over the row's kept blocks, dk and dv gather over the transpose, so every sum has one
 * owner and one order. Plain loops in double precision; speed is backward_cpu.c's concern. */
#include "backward/kernels.h"
#include "core/tensor.h"

#include <math.h>

#define MAX_HEAD_DIM 256

/* What every pair (query, key) needs. */
typedef struct pass {
    const hpa_plan *plan;
    const hpa_inputs *in;
    const hpa_outputs *out;
    const hpa_gradients *grads;
    hpa_mask mask;
    hpa_sequence sequence;
} pass;

static int64_t query_offset(const pass *x, const hpa_tensor *t, int64_t head, int64_t query)
{
    const hpa_strides strides = hpa_strides_of(t, x->plan->geometry.packed);
    return hpa_offset(&strides, x->sequence.batch, head, x->sequence.q_start, query);
}

static int64_t key_offset(const pass *x, const hpa_tensor *t, int64_t kv_head, int64_t key)
{
    const hpa_strides strides = hpa_strides_of(t, x->plan->geometry.packed);
    return hpa_offset(&strides, x->sequence.batch, kv_head, x->sequence.kv_start, key);
}

static double dot_product(const pass *x, const hpa_tensor *a, int64_t a_at, const hpa_tensor *b,
                          int64_t b_at)
{
    double sum = 0;
    for (int64_t d = 0; d < x->plan->geometry.head_dim; d++)
        sum += hpa_load(a->data, a->dtype, a_at + d) * hpa_load(b->data, b->dtype, b_at + d);
    return sum;
}

/* forward: o_i = sum_j p_ij v_j, lse_i = log sum_j exp(s_ij)
 *   =>     delta_i = sum_j p_ij dp_ij - dLSE_i = O_i . dO_i - dLSE_i */
static double delta_of(const pass *x, int64_t head, int64_t query)
{
    const hpa_tensor *o = &x->out->out, *d_o = &x->grads->d_out, *d_lse = &x->grads->d_lse;
    const double sum =
        dot_product(x, o, query_offset(x, o, head, query), d_o, query_offset(x, d_o, head, query));
    if (!d_lse->data)
        return sum;
    return sum - hpa_load(d_lse->data, d_lse->dtype, query_offset(x, d_lse, head, query));
}

/* p_ij and ds_ij of one pair. */
static void pair_gradients(const pass *x, int64_t head, int64_t query, int64_t key, double *p,
                           double *ds)
{
    const hpa_geometry *g = &x->plan->geometry;
    const int64_t kv_head = head / g->group;
    const double s = g->scale * dot_product(x, &x->in->q, query_offset(x, &x->in->q, head, query),
                                            &x->in->k, key_offset(x, &x->in->k, kv_head, key));
    const double dp =
        dot_product(x, &x->grads->d_out, query_offset(x, &x->grads->d_out, head, query), &x->in->v,
                    key_offset(x, &x->in->v, kv_head, key));
    const hpa_tensor *lse = &x->out->lse;
    *p = exp(s - hpa_load(lse->data, lse->dtype, query_offset(x, lse, head, query)));
    *ds = *p * (dp - delta_of(x, head, query));
}

static bool sees(const pass *x, int64_t query, int64_t key)
{
    return !x->plan->geometry.causal || key <= hpa_key_position(&x->sequence, query);
}

/* sum[d] += weight * row[d] */
static void add_row(const pass *x, double *sum, double weight, const hpa_tensor *t, int64_t at)
{
    for (int64_t d = 0; d < x->plan->geometry.head_dim; d++)
        sum[d] += weight * hpa_load(t->data, t->dtype, at + d);
}

static void write_row(const pass *x, const hpa_tensor *t, int64_t at, const double *sum)
{
    for (int64_t d = 0; d < x->plan->geometry.head_dim; d++) {
        const double before = x->grads->accumulate ? hpa_load(t->data, t->dtype, at + d) : 0;
        hpa_store(t->data, t->dtype, at + d, before + sum[d]);
    }
}

/* forward: s_ij = scale * q_i . k_j   =>   dq_i = scale * sum_j ds_ij k_j */
static void query_gradient(const pass *x, int64_t head, int64_t query)
{
    const hpa_geometry *g = &x->plan->geometry;
    const int64_t row = hpa_row_index(g, &x->sequence, head / g->mask_group, query / g->block_q);
    double dq[MAX_HEAD_DIM] = {0};
    for (int64_t n = 0; n < x->mask.row_length[row]; n++) {
        const int64_t block = x->mask.row_blocks[row * g->capacity + n];
        const int64_t end = hpa_block_end(block, g->block_k, x->sequence.kv_length);
        for (int64_t key = hpa_block_begin(block, g->block_k); key < end; key++) {
            if (!sees(x, query, key))
                continue;
            double p, ds;
            pair_gradients(x, head, query, key, &p, &ds);
            add_row(x, dq, g->scale * ds, &x->in->k,
                    key_offset(x, &x->in->k, head / g->group, key));
        }
    }
    write_row(x, &x->grads->dq, query_offset(x, &x->grads->dq, head, query), dq);
}

/* What the queries of one head that keep the key add to its gradients. */
static void add_query_head(const pass *x, int64_t head, int64_t key, double *dk, double *dv)
{
    const hpa_geometry *g = &x->plan->geometry;
    const int64_t column =
        hpa_column_index(g, &x->sequence, head / g->mask_group, key / g->block_k);
    for (int64_t n = x->mask.column_start[column]; n < x->mask.column_start[column + 1]; n++) {
        const int64_t block = x->mask.column_rows[n];
        const int64_t end = hpa_block_end(block, g->block_q, x->sequence.q_length);
        for (int64_t query = hpa_block_begin(block, g->block_q); query < end; query++) {
            if (!sees(x, query, key))
                continue;
            double p, ds;
            pair_gradients(x, head, query, key, &p, &ds);
            add_row(x, dk, g->scale * ds, &x->in->q, query_offset(x, &x->in->q, head, query));
            add_row(x, dv, p, &x->grads->d_out, query_offset(x, &x->grads->d_out, head, query));
        }
    }
}

/* forward: o_i += p_ij v_j            =>   dv_j = sum_i p_ij dO_i
 * forward: s_ij = scale * q_i . k_j   =>   dk_j = scale * sum_i ds_ij q_i */
static void key_gradients(const pass *x, int64_t kv_head, int64_t key)
{
    const hpa_geometry *g = &x->plan->geometry;
    double dk[MAX_HEAD_DIM] = {0}, dv[MAX_HEAD_DIM] = {0};
    for (int64_t head = kv_head * g->group; head < (kv_head + 1) * g->group; head++)
        add_query_head(x, head, key, dk, dv);
    if (x->grads->dk.data)
        write_row(x, &x->grads->dk, key_offset(x, &x->grads->dk, kv_head, key), dk);
    if (x->grads->dv.data)
        write_row(x, &x->grads->dv, key_offset(x, &x->grads->dv, kv_head, key), dv);
}

static size_t scratch_bytes(const hpa_plan *plan)
{
    (void)plan;
    return 0;
}

static hpa_status backward_ref(const hpa_plan *plan, const void *mask, const hpa_inputs *in,
                               const hpa_outputs *out, const hpa_gradients *grads,
                               const hpa_exec *exec)
{
    (void)exec;
    const hpa_geometry *g = &plan->geometry;
    pass x = {.plan = plan, .in = in, .out = out, .grads = grads};
    x.mask = hpa_mask_view_const(g, mask);
    for (int64_t b = 0; b < g->batch; b++) {
        x.sequence = hpa_sequence_at(g, in->cu_seqlens_q, in->cu_seqlens_kv, b);
        for (int64_t head = 0; grads->dq.data && head < g->heads_q; head++)
            for (int64_t query = 0; query < x.sequence.q_length; query++)
                query_gradient(&x, head, query);
        for (int64_t head = 0; (grads->dk.data || grads->dv.data) && head < g->heads_kv; head++)
            for (int64_t key = 0; key < x.sequence.kv_length; key++)
                key_gradients(&x, head, key);
    }
    return HPA_OK;
}

const hpa_backward_kernel hpa_backward_ref = {"backward_ref", scratch_bytes, backward_ref};
