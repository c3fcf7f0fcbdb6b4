#include "broken_backward.h"

#include <math.h>
#include <stdlib.h>

const char *const fault_names[FAULTS] = {
    "correct",
    "drop delta",
    "drop scale",
    "skip one kept block of a row",
    "skip one kept block of a column",
    "shift the transpose by one",
    "swap dq of two query heads",
    "swap d_out of two query heads",
    "drop d_lse",
    "the last head of a group only",
};

struct lists {
    int64_t *start;   /* [lists + 1] */
    int32_t *members; /* [start[lists]], ascending in each list */
};

struct work {
    const hpa_desc *desc;
    enum fault fault;
    const hpa_inputs *in;
    const hpa_outputs *out;
    const hpa_gradients *gradients;
    double scale;
    int64_t query_blocks;
    int64_t key_blocks;
    int64_t mask_heads;
    struct lists kept;    /* list (b, mask head, query block): key blocks */
    struct lists keepers; /* list (b, mask head, key block): query blocks */
};

static double load(const hpa_tensor *tensor, int64_t b, int64_t head, int64_t token, int64_t d)
{
    int64_t at = b * tensor->stride[0] + head * tensor->stride[1] + token * tensor->stride[2];
    if (tensor->ndim == 4)
        at += d * tensor->stride[3];
    if (tensor->dtype == HPA_F32)
        return ((const float *)tensor->data)[at];
    return ((const double *)tensor->data)[at];
}

static void store(const hpa_tensor *tensor, int64_t b, int64_t head, int64_t token, int64_t d,
                  double value, bool accumulate)
{
    int64_t at = b * tensor->stride[0] + head * tensor->stride[1] + token * tensor->stride[2] +
                 d * tensor->stride[3];
    if (accumulate)
        value += load(tensor, b, head, token, d);
    if (tensor->dtype == HPA_F32)
        ((float *)tensor->data)[at] = (float)value;
    else
        ((double *)tensor->data)[at] = value;
}

static double dot(const hpa_tensor *x, const hpa_tensor *y, int64_t b, int64_t head_x, int64_t i,
                  int64_t head_y, int64_t j)
{
    double sum = 0;
    for (int64_t d = 0; d < x->shape[3]; d++)
        sum += load(x, b, head_x, i, d) * load(y, b, head_y, j, d);
    return sum;
}

static int64_t group_of(const struct work *work)
{
    return work->desc->heads_q / work->desc->heads_kv;
}

static int64_t mask_head_of(const struct work *work, int64_t head)
{
    return head / (work->desc->heads_q / work->mask_heads);
}

/* The first two query heads of each group trade places. */
static int64_t swapped(const struct work *work, int64_t head)
{
    int64_t place = head % group_of(work);
    if (group_of(work) < 2 || place > 1)
        return head;
    return place == 0 ? head + 1 : head - 1;
}

static int64_t at_most(int64_t value, int64_t most)
{
    return value < most ? value : most;
}

/* p and ds of query i and key j. false: the query does not see the key. */
static bool pair(const struct work *work, int64_t b, int64_t head, int64_t head_of_d_out, int64_t i,
                 int64_t j, double *p, double *ds)
{
    const hpa_desc *desc = work->desc;
    int64_t head_kv = head / group_of(work);
    if (desc->causal && j > i + desc->seq_kv - desc->seq_q)
        return false;
    double s = work->scale * dot(&work->in->q, &work->in->k, b, head, i, head_kv, j);
    double dp = dot(&work->gradients->d_out, &work->in->v, b, head_of_d_out, i, head_kv, j);
    double delta =
        dot(&work->out->out, &work->gradients->d_out, b, head_of_d_out, i, head_of_d_out, i);
    if (work->fault != DROP_D_LSE)
        delta -= load(&work->gradients->d_lse, b, head_of_d_out, i, 0);
    *p = exp(s - load(&work->out->lse, b, head, i, 0));
    *ds = *p * (dp - (work->fault == DROP_DELTA ? 0 : delta));
    return true;
}

static double scale_of_gradient(const struct work *work)
{
    return work->fault == DROP_SCALE ? 1 : work->scale;
}

static void run_query(const struct work *work, int64_t b, int64_t head, int64_t i)
{
    const hpa_desc *desc = work->desc;
    const struct lists *kept = &work->kept;
    int64_t I = i / desc->block_q, D = desc->head_dim, head_kv = head / group_of(work);
    int64_t list = (b * work->mask_heads + mask_head_of(work, head)) * work->query_blocks + I;
    int64_t end = kept->start[list + 1];
    double dq[256] = {0}, p, ds;
    if (work->fault == SKIP_BLOCK_OF_ROW && list == work->query_blocks - 1)
        end--;
    for (int64_t n = kept->start[list]; n < end; n++) {
        int64_t first = (int64_t)kept->members[n] * desc->block_k;
        for (int64_t j = first; j < at_most(first + desc->block_k, desc->seq_kv); j++)
            if (pair(work, b, head, head, i, j, &p, &ds))
                for (int64_t d = 0; d < D; d++)
                    dq[d] += scale_of_gradient(work) * ds * load(&work->in->k, b, head_kv, j, d);
    }
    int64_t place = work->fault == SWAP_HEADS_OF_DQ ? swapped(work, head) : head;
    for (int64_t d = 0; d < D; d++)
        store(&work->gradients->dq, b, place, i, d, dq[d], work->gradients->accumulate);
}

/* Adds what the query blocks that keep key j's block pass back through one query head. */
static void run_key_of_head(const struct work *work, int64_t b, int64_t head, int64_t j, double *dk,
                            double *dv)
{
    const hpa_desc *desc = work->desc;
    const struct lists *keepers = &work->keepers;
    int64_t J = j / desc->block_k;
    int64_t list = (b * work->mask_heads + mask_head_of(work, head)) * work->key_blocks + J;
    if (work->fault == SHIFT_TRANSPOSE && J > 0)
        list--;
    int64_t begin = keepers->start[list], end = keepers->start[list + 1];
    if (work->fault == SKIP_BLOCK_OF_COLUMN && list == 0)
        begin++;
    int64_t d_out_head = work->fault == SWAP_HEADS_OF_D_OUT ? swapped(work, head) : head;
    double p, ds;
    for (int64_t n = begin; n < end; n++) {
        int64_t first = (int64_t)keepers->members[n] * desc->block_q;
        for (int64_t i = first; i < at_most(first + desc->block_q, desc->seq_q); i++) {
            if (!pair(work, b, head, d_out_head, i, j, &p, &ds))
                continue;
            for (int64_t d = 0; d < desc->head_dim; d++) {
                dk[d] += scale_of_gradient(work) * ds * load(&work->in->q, b, head, i, d);
                dv[d] += p * load(&work->gradients->d_out, b, d_out_head, i, d);
            }
        }
    }
}

static void run_key(const struct work *work, int64_t b, int64_t head_kv, int64_t j)
{
    double dk[256] = {0}, dv[256] = {0};
    int64_t group = group_of(work), first = head_kv * group;
    if (work->fault == LAST_HEAD_ONLY)
        first += group - 1;
    for (int64_t head = first; head < (head_kv + 1) * group; head++)
        run_key_of_head(work, b, head, j, dk, dv);
    for (int64_t d = 0; d < work->desc->head_dim; d++) {
        store(&work->gradients->dk, b, head_kv, j, d, dk[d], work->gradients->accumulate);
        store(&work->gradients->dv, b, head_kv, j, d, dv[d], work->gradients->accumulate);
    }
}

static void run_all(const struct work *work)
{
    const hpa_desc *desc = work->desc;
    for (int64_t b = 0; b < desc->batch; b++) {
        for (int64_t head = 0; head < desc->heads_q; head++)
            for (int64_t i = 0; i < desc->seq_q; i++)
                run_query(work, b, head, i);
        for (int64_t head_kv = 0; head_kv < desc->heads_kv; head_kv++)
            for (int64_t j = 0; j < desc->seq_kv; j++)
                run_key(work, b, head_kv, j);
    }
}

/* The kept blocks turned round: for each key block, the query blocks that keep it. */
static hpa_status transpose(struct work *work)
{
    int64_t heads = work->desc->batch * work->mask_heads, place = 0;
    const struct lists *kept = &work->kept;
    int64_t rows = heads * work->query_blocks, columns = heads * work->key_blocks;
    work->keepers.start = calloc((size_t)columns + 1, sizeof(int64_t));
    work->keepers.members = calloc((size_t)kept->start[rows] + 1, sizeof(int32_t));
    if (!work->keepers.start || !work->keepers.members)
        return HPA_OUT_OF_MEMORY;
    for (int64_t column = 0; column < columns; column++) {
        int64_t head = column / work->key_blocks, J = column % work->key_blocks;
        for (int64_t I = 0; I < work->query_blocks; I++) {
            int64_t row = head * work->query_blocks + I;
            for (int64_t n = kept->start[row]; n < kept->start[row + 1]; n++)
                if (kept->members[n] == J)
                    work->keepers.members[place++] = (int32_t)I;
        }
        work->keepers.start[column + 1] = place;
    }
    return HPA_OK;
}

static hpa_status read_mask(struct work *work, const hpa_plan *plan, const void *mask,
                            const hpa_exec *exec)
{
    int64_t rows = work->desc->batch * work->mask_heads * work->query_blocks, n = 0;
    hpa_status status = hpa_mask_export_csr(plan, mask, NULL, NULL, &n, exec);
    if (status != HPA_OK)
        return status;
    work->kept.start = calloc((size_t)rows + 1, sizeof(int64_t));
    work->kept.members = calloc((size_t)n + 1, sizeof(int32_t));
    if (!work->kept.start || !work->kept.members)
        return HPA_OUT_OF_MEMORY;
    return hpa_mask_export_csr(plan, mask, work->kept.start, work->kept.members, &n, exec);
}

hpa_status broken_backward_run(void *context, const hpa_plan *plan, const void *mask,
                               const hpa_inputs *in, const hpa_outputs *out,
                               const hpa_gradients *gradients, const hpa_exec *exec)
{
    const struct broken_backward *broken = context;
    const hpa_desc *desc = broken->desc;
    struct work work = {
        .desc = desc,
        .fault = broken->fault,
        .in = in,
        .out = out,
        .gradients = gradients,
        .scale = desc->scale > 0 ? desc->scale : 1 / sqrt((double)desc->head_dim),
        .query_blocks = (desc->seq_q + desc->block_q - 1) / desc->block_q,
        .key_blocks = (desc->seq_kv + desc->block_k - 1) / desc->block_k,
        .mask_heads = desc->share_heads ? desc->heads_kv : desc->heads_q,
    };
    hpa_status status = read_mask(&work, plan, mask, exec);
    if (status == HPA_OK)
        status = transpose(&work);
    if (status == HPA_OK)
        run_all(&work);
    free(work.kept.start);
    free(work.kept.members);
    free(work.keepers.start);
    free(work.keepers.members);
    return status;
}
