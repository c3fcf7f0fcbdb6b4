/* With t the rounding of a score, g that of d_out . v, and h what delta = d_out . out - d_lse moves by
 * where out has been stored in the dtype:
 *
 *   lse    moves by p t                    out    by p t (v - out)
 *   dv     by p t d_out                    ds     by p (t |dp - delta| + g + h)
 *   dq     by scale * ds's * k             dk     by scale * ds's * q
 *
 * for each key or query. Over the keys of one query they add up, as a rounding of its q is in all of
 * them; over queries their squares do.
 */
#include "dense.h"

#include "convert.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The standard deviation of a rounding, as a part of the largest: 1 / sqrt(3), as errors are spread
 * evenly, times 0.7, as most numbers are larger than the power of two below them. */
#define USUAL_ROUNDING 0.4

struct noises {
    const struct problem *problem;
    double coarseness;   /* roundings of float in the usual one of the dtype */
    double *probability; /* [keys] */
    double *mean;        /* [head_dim] out of one row */
    double *out;         /* [head_dim] of one row */
    double *dq;          /* [head_dim] of one row */
    double *dk;          /* as k, squares */
    double *dv;          /* as v, squares */
    struct dense_noise largest;
};

static double dot(const double *a, const double *b, int64_t n)
{
    double sum = 0;
    for (int64_t d = 0; d < n; d++)
        sum += a[d] * b[d];
    return sum;
}

static double sum_of_magnitudes(const double *a, const double *b, int64_t n)
{
    double sum = 0;
    for (int64_t d = 0; d < n; d++)
        sum += fabs(a[d] * b[d]);
    return sum;
}

static double square(double x)
{
    return x * x;
}

static double largest(const double *values, int64_t n)
{
    double most = 0;
    for (int64_t i = 0; i < n; i++)
        most = fmax(most, values[i]);
    return most;
}

static void set_mean(struct noises *noises, int64_t b, int64_t head_kv)
{
    const struct problem *problem = noises->problem;
    memset(noises->mean, 0, (size_t)problem->head_dim * sizeof(double));
    for (int64_t j = 0; j < problem_keys(problem, b); j++) {
        const double *v = problem->v + problem_key_row(problem, b, head_kv, j);
        for (int64_t d = 0; d < problem->head_dim; d++)
            noises->mean[d] += noises->probability[j] * v[d];
    }
}

static double norm_of_products(const double *a, const double *b, int64_t n)
{
    double sum = 0;
    for (int64_t d = 0; d < n; d++)
        sum += square(a[d] * b[d]);
    return sqrt(sum);
}

/* One query row and one key that it attends to; returns what it moves lse by. */
static double add_pair(struct noises *noises, int64_t row, int64_t key, double p)
{
    const struct problem *problem = noises->problem;
    int64_t D = problem->head_dim;
    const double *q = problem->q + row, *d_out = problem->d_out + row;
    const double *k = problem->k + key, *v = problem->v + key;
    double t = problem->scale * sum_of_magnitudes(q, k, D);
    double delta = dot(noises->mean, d_out, D) - problem->d_lse[row / D];
    double g = sum_of_magnitudes(d_out, v, D);
    double h = noises->coarseness * norm_of_products(d_out, noises->mean, D);
    double ds = p * (t * fabs(dot(d_out, v, D) - delta) + g + h);
    for (int64_t d = 0; d < D; d++) {
        noises->out[d] += p * t * fabs(v[d] - noises->mean[d]);
        noises->dv[key + d] += square(p * t * d_out[d]);
        noises->dq[d] += problem->scale * ds * fabs(k[d]);
        noises->dk[key + d] += square(problem->scale * ds * q[d]);
    }
    return p * t;
}

static void add_row(struct noises *noises, int64_t b, int64_t head, int64_t i)
{
    const struct problem *problem = noises->problem;
    int64_t D = problem->head_dim, head_kv = head / (problem->heads_q / problem->heads_kv);
    int64_t row = problem_query_row(problem, b, head, i);
    double lse = 0;
    dense_probabilities(problem, b, head, i, noises->probability);
    set_mean(noises, b, head_kv);
    memset(noises->out, 0, (size_t)D * sizeof(double));
    memset(noises->dq, 0, (size_t)D * sizeof(double));
    for (int64_t j = 0; j < problem_keys(problem, b); j++)
        if (noises->probability[j] > 0)
            lse += add_pair(noises, row, problem_key_row(problem, b, head_kv, j),
                            noises->probability[j]);
    noises->largest.lse = fmax(noises->largest.lse, lse);
    noises->largest.out = fmax(noises->largest.out, largest(noises->out, D));
    noises->largest.dq = fmax(noises->largest.dq, largest(noises->dq, D));
}

static double *zeros(int64_t n)
{
    return calloc((size_t)n + 1, sizeof(double));
}

hpa_status dense_noise(const struct problem *problem, hpa_dtype dtype, struct dense_noise *noise)
{
    int64_t D = problem->head_dim, n_kv = problem->tokens_kv * problem->heads_kv * D;
    double unit = dtype_rounding_unit(HPA_F32);
    struct noises noises = {.problem = problem,
                            .coarseness = USUAL_ROUNDING * dtype_rounding_unit(dtype) / unit,
                            .probability = zeros(problem->key_blocks * problem->block_k),
                            .mean = zeros(D),
                            .out = zeros(D),
                            .dq = zeros(D),
                            .dk = zeros(n_kv),
                            .dv = zeros(n_kv)};
    bool room =
        noises.probability && noises.mean && noises.out && noises.dq && noises.dk && noises.dv;
    for (int64_t b = 0; room && b < problem->batch; b++)
        for (int64_t i = 0; i < problem_queries(problem, b); i++)
            for (int64_t head = 0; head < problem->heads_q; head++)
                add_row(&noises, b, head, i);
    if (room)
        *noise = (struct dense_noise){.out = unit * noises.largest.out,
                                      .lse = unit * noises.largest.lse,
                                      .dq = unit * noises.largest.dq,
                                      .dk = unit * sqrt(largest(noises.dk, n_kv)),
                                      .dv = unit * sqrt(largest(noises.dv, n_kv))};
    free(noises.probability);
    free(noises.mean);
    free(noises.out);
    free(noises.dq);
    free(noises.dk);
    free(noises.dv);
    return room ? HPA_OK : HPA_OUT_OF_MEMORY;
}
