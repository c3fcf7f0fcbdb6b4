/* Dense attention as it comes out when every tensor in it is stored in a narrow dtype: the yardstick
 * for kernels of that dtype. */
#include "dense.h"

#include "convert.h"

#include <math.h>
#include <stdlib.h>

/* float copies of the problem's tensors, which hold nothing finer, and the float sums. */
struct narrow {
    const struct problem *problem;
    hpa_dtype dtype;
    float *q, *k, *v, *d_out, *d_lse;
    float *dq, *dk, *dv;
    float *probability; /* [keys], in dtype */
    float *ds;          /* [keys], in dtype */
};

static float *copy_as_float(const double *values, int64_t n)
{
    float *copy = malloc((size_t)(n + 1) * sizeof(float));
    for (int64_t i = 0; copy && i < n; i++)
        copy[i] = (float)values[i];
    return copy;
}

static float *zeros(int64_t n)
{
    return calloc((size_t)n + 1, sizeof(float));
}

static int64_t query_elements(const struct problem *problem)
{
    return problem->tokens_q * problem->heads_q * problem->head_dim;
}

static int64_t key_elements(const struct problem *problem)
{
    return problem->tokens_kv * problem->heads_kv * problem->head_dim;
}

static bool narrow_create(struct narrow *narrow, const struct problem *problem, hpa_dtype dtype)
{
    int64_t n_q = query_elements(problem), n_kv = key_elements(problem);
    int64_t keys = problem->key_blocks * problem->block_k;
    *narrow = (struct narrow){
        .problem = problem,
        .dtype = dtype,
        .q = copy_as_float(problem->q, n_q),
        .k = copy_as_float(problem->k, n_kv),
        .v = copy_as_float(problem->v, n_kv),
        .d_out = copy_as_float(problem->d_out, n_q),
        .d_lse = copy_as_float(problem->d_lse, problem->tokens_q * problem->heads_q),
        .dq = zeros(n_q),
        .dk = zeros(n_kv),
        .dv = zeros(n_kv),
        .probability = zeros(keys),
        .ds = zeros(keys),
    };
    return narrow->q && narrow->k && narrow->v && narrow->d_out && narrow->d_lse && narrow->dq &&
           narrow->dk && narrow->dv && narrow->probability && narrow->ds;
}

static void narrow_destroy(struct narrow *narrow)
{
    free(narrow->q);
    free(narrow->k);
    free(narrow->v);
    free(narrow->d_out);
    free(narrow->d_lse);
    free(narrow->dq);
    free(narrow->dk);
    free(narrow->dv);
    free(narrow->probability);
    free(narrow->ds);
}

static float dot(const float *a, const float *b, int64_t n)
{
    float sum = 0;
    for (int64_t d = 0; d < n; d++)
        sum += a[d] * b[d];
    return sum;
}

/* probability[j] of every key, rounded; returns lse. */
static float attend(struct narrow *narrow, int64_t b, int64_t head, int64_t i)
{
    const struct problem *problem = narrow->problem;
    int64_t keys = problem_keys(problem, b), D = problem->head_dim;
    int64_t head_kv = head / (problem->heads_q / problem->heads_kv);
    const float *q = narrow->q + problem_query_row(problem, b, head, i);
    struct sight sight = problem_sight(problem, b, head, i);
    float *probability = narrow->probability, largest = -INFINITY, sum = 0;

    for (int64_t j = 0; j < keys; j++) {
        const float *k = narrow->k + problem_key_row(problem, b, head_kv, j);
        float score = (float)problem->scale * dot(q, k, D);
        bool visible = j < sight.keys && sight.kept[j / problem->block_k];
        probability[j] = visible ? dtype_round_float(narrow->dtype, score) : -INFINITY;
        largest = fmaxf(largest, probability[j]);
    }
    for (int64_t j = 0; j < keys; j++) {
        probability[j] = largest == -INFINITY ? 0 : expf(probability[j] - largest);
        sum += probability[j];
    }
    for (int64_t j = 0; j < keys && sum > 0; j++)
        probability[j] = dtype_round_float(narrow->dtype, probability[j] / sum);
    return sum > 0 ? largest + logf(sum) : -INFINITY;
}

/* out[d] = sum_j p[j] v[j][d], rounded */
static void weigh_values(struct narrow *narrow, int64_t b, int64_t head, double *out)
{
    const struct problem *problem = narrow->problem;
    int64_t head_kv = head / (problem->heads_q / problem->heads_kv);
    for (int64_t d = 0; d < problem->head_dim; d++) {
        float sum = 0;
        for (int64_t j = 0; j < problem_keys(problem, b); j++)
            sum += narrow->probability[j] * narrow->v[problem_key_row(problem, b, head_kv, j) + d];
        out[d] = dtype_round_float(narrow->dtype, sum);
    }
}

/* ds of every key, rounded. */
static void differentiate_softmax(struct narrow *narrow, int64_t b, int64_t head, int64_t i,
                                  const double *out)
{
    const struct problem *problem = narrow->problem;
    int64_t D = problem->head_dim, row = problem_query_row(problem, b, head, i);
    int64_t head_kv = head / (problem->heads_q / problem->heads_kv);
    const float *d_out = narrow->d_out + row;
    float delta = -narrow->d_lse[row / D];
    for (int64_t d = 0; d < D; d++)
        delta += (float)out[d] * d_out[d];
    for (int64_t j = 0; j < problem_keys(problem, b); j++) {
        const float *v = narrow->v + problem_key_row(problem, b, head_kv, j);
        float dp = dtype_round_float(narrow->dtype, dot(d_out, v, D));
        narrow->ds[j] = dtype_round_float(narrow->dtype, narrow->probability[j] * (dp - delta));
    }
}

static void add_products(struct narrow *narrow, int64_t b, int64_t head, int64_t i)
{
    const struct problem *problem = narrow->problem;
    int64_t D = problem->head_dim, row = problem_query_row(problem, b, head, i);
    int64_t head_kv = head / (problem->heads_q / problem->heads_kv);
    for (int64_t j = 0; j < problem_keys(problem, b); j++) {
        int64_t key = problem_key_row(problem, b, head_kv, j);
        for (int64_t d = 0; d < D; d++) {
            narrow->dq[row + d] += narrow->ds[j] * narrow->k[key + d];
            narrow->dk[key + d] += narrow->ds[j] * narrow->q[row + d];
            narrow->dv[key + d] += narrow->probability[j] * narrow->d_out[row + d];
        }
    }
}

static void store(const struct narrow *narrow, const float *sums, float factor, double *values,
                  int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        values[i] = dtype_round_float(narrow->dtype, factor * sums[i]);
}

hpa_status dense_rounded(const struct problem *problem, hpa_dtype dtype,
                         const struct rounded_attention *result)
{
    struct narrow narrow;
    bool created = narrow_create(&narrow, problem, dtype);
    for (int64_t b = 0; created && b < problem->batch; b++)
        for (int64_t i = 0; i < problem_queries(problem, b); i++)
            for (int64_t head = 0; head < problem->heads_q; head++) {
                int64_t row = problem_query_row(problem, b, head, i);
                result->lse[row / problem->head_dim] = attend(&narrow, b, head, i);
                weigh_values(&narrow, b, head, result->out + row);
                differentiate_softmax(&narrow, b, head, i, result->out + row);
                add_products(&narrow, b, head, i);
            }
    if (created) {
        float scale = (float)problem->scale;
        store(&narrow, narrow.dq, scale, result->dq, query_elements(problem));
        store(&narrow, narrow.dk, scale, result->dk, key_elements(problem));
        store(&narrow, narrow.dv, 1, result->dv, key_elements(problem));
    }
    narrow_destroy(&narrow);
    return created ? HPA_OK : HPA_OUT_OF_MEMORY;
}
