#include "dense.h"

#include "difference.h"

#include <math.h>
#include <string.h>

static double dot(const double *a, const double *b, int64_t n)
{
    double sum = 0;
    for (int64_t d = 0; d < n; d++)
        sum += a[d] * b[d];
    return sum;
}

bool dense_query_sees_a_key(const struct problem *problem, int64_t b, int64_t head, int64_t i)
{
    for (int64_t j = 0; j < problem_keys(problem, b); j++)
        if (problem_visible(problem, b, head, i, j))
            return true;
    return false;
}

double dense_probabilities(const struct problem *problem, int64_t b, int64_t head, int64_t i,
                           double *probability)
{
    int64_t keys = problem_keys(problem, b), D = problem->head_dim;
    int64_t head_kv = head / (problem->heads_q / problem->heads_kv);
    const double *q = problem->q + problem_query_row(problem, b, head, i);

    struct sight sight = problem_sight(problem, b, head, i);

    double largest = -INFINITY;
    for (int64_t j = 0; j < keys; j++) {
        const double *k = problem->k + problem_key_row(problem, b, head_kv, j);
        bool visible = j < sight.keys && sight.kept[j / problem->block_k];
        probability[j] = visible ? problem->scale * dot(q, k, D) : -INFINITY;
        largest = fmax(largest, probability[j]);
    }
    if (largest == -INFINITY) {
        memset(probability, 0, (size_t)keys * sizeof(double));
        return -INFINITY;
    }
    double sum = 0;
    for (int64_t j = 0; j < keys; j++) {
        probability[j] = probability[j] == -INFINITY ? 0 : exp(probability[j] - largest);
        sum += probability[j];
    }
    for (int64_t j = 0; j < keys; j++)
        probability[j] /= sum;
    return largest + log(sum);
}

/* out[d] = sum_j p[j] v[j][d] */
static void weigh_values(const struct problem *problem, int64_t b, int64_t head,
                         const double *probability, double *out)
{
    int64_t D = problem->head_dim;
    int64_t head_kv = head / (problem->heads_q / problem->heads_kv);
    memset(out, 0, (size_t)D * sizeof(double));
    for (int64_t j = 0; j < problem_keys(problem, b); j++) {
        const double *v = problem->v + problem_key_row(problem, b, head_kv, j);
        for (int64_t d = 0; d < D && probability[j] != 0; d++)
            out[d] += probability[j] * v[d];
    }
}

void dense_forward(const struct problem *problem, double *out, double *lse)
{
    double *row_out = problem->workspace, *probability = row_out + problem->head_dim;
    for (int64_t b = 0; b < problem->batch; b++)
        for (int64_t i = 0; i < problem_queries(problem, b); i++)
            for (int64_t head = 0; head < problem->heads_q; head++) {
                int64_t row = problem_query_row(problem, b, head, i);
                double row_lse = dense_probabilities(problem, b, head, i, probability);
                weigh_values(problem, b, head, probability, row_out);
                if (out)
                    memcpy(out + row, row_out, (size_t)problem->head_dim * sizeof(double));
                if (lse)
                    lse[row / problem->head_dim] = row_lse;
            }
}

double dense_loss(const struct problem *problem)
{
    double *row_out = problem->workspace, *probability = row_out + problem->head_dim;
    struct exact_sum loss = {0};
    for (int64_t b = 0; b < problem->batch; b++)
        for (int64_t i = 0; i < problem_queries(problem, b); i++)
            for (int64_t head = 0; head < problem->heads_q; head++) {
                int64_t row = problem_query_row(problem, b, head, i);
                double lse = dense_probabilities(problem, b, head, i, probability);
                if (lse == -INFINITY)
                    continue;
                weigh_values(problem, b, head, probability, row_out);
                exact_sum_add(&loss, dot(problem->d_out + row, row_out, problem->head_dim));
                exact_sum_add(&loss, problem->d_lse[row / problem->head_dim] * lse);
            }
    return exact_sum_value(&loss);
}

/* Adds what one query row passes back. */
static void backward_row(const struct problem *problem, int64_t b, int64_t head, int64_t i,
                         double *dq, double *dk, double *dv)
{
    int64_t D = problem->head_dim, row = problem_query_row(problem, b, head, i);
    int64_t head_kv = head / (problem->heads_q / problem->heads_kv);
    const double *q = problem->q + row, *d_out = problem->d_out + row;
    double *out = problem->workspace, *probability = out + D;

    if (dense_probabilities(problem, b, head, i, probability) == -INFINITY)
        return;
    weigh_values(problem, b, head, probability, out);
    double delta = dot(out, d_out, D) - problem->d_lse[row / D];
    for (int64_t j = 0; j < problem_keys(problem, b); j++) {
        int64_t key = problem_key_row(problem, b, head_kv, j);
        const double *k = problem->k + key, *v = problem->v + key;
        double p = probability[j];
        if (p == 0)
            continue;
        /* forward: out += p * v           =>   dv += p * d_out,  dp = d_out . v */
        /* forward: p = softmax(scores)    =>   ds = p * (dp - delta)            */
        /* forward: scores = scale * q . k =>   dq += scale * ds * k,  dk += scale * ds * q */
        double ds = p * (dot(d_out, v, D) - delta);
        for (int64_t d = 0; d < D; d++) {
            dv[key + d] += p * d_out[d];
            dq[row + d] += problem->scale * ds * k[d];
            dk[key + d] += problem->scale * ds * q[d];
        }
    }
}

void dense_backward(const struct problem *problem, double *dq, double *dk, double *dv)
{
    size_t query_rows = (size_t)(problem->tokens_q * problem->heads_q * problem->head_dim);
    size_t key_rows = (size_t)(problem->tokens_kv * problem->heads_kv * problem->head_dim);
    memset(dq, 0, query_rows * sizeof(double));
    memset(dk, 0, key_rows * sizeof(double));
    memset(dv, 0, key_rows * sizeof(double));
    for (int64_t b = 0; b < problem->batch; b++)
        for (int64_t i = 0; i < problem_queries(problem, b); i++)
            for (int64_t head = 0; head < problem->heads_q; head++)
                backward_row(problem, b, head, i, dq, dk, dv);
}
