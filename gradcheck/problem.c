#include "problem.h"

#include "convert.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int64_t problem_queries(const struct problem *problem, int64_t b)
{
    return problem->start_q[b + 1] - problem->start_q[b];
}

int64_t problem_keys(const struct problem *problem, int64_t b)
{
    return problem->start_kv[b + 1] - problem->start_kv[b];
}

int64_t problem_query_row(const struct problem *problem, int64_t b, int64_t head, int64_t i)
{
    return ((problem->start_q[b] + i) * problem->heads_q + head) * problem->head_dim;
}

int64_t problem_key_row(const struct problem *problem, int64_t b, int64_t head_kv, int64_t j)
{
    return ((problem->start_kv[b] + j) * problem->heads_kv + head_kv) * problem->head_dim;
}

int64_t problem_mask_rows(const struct problem *problem)
{
    return problem->first_row[problem->batch];
}

static int64_t query_blocks(const struct problem *problem, int64_t b)
{
    return (problem_queries(problem, b) + problem->block_q - 1) / problem->block_q;
}

struct sight problem_sight(const struct problem *problem, int64_t b, int64_t head, int64_t i)
{
    int64_t keys = problem_keys(problem, b);
    int64_t position = i + keys - problem_queries(problem, b);
    int64_t mask_head = head / (problem->heads_q / problem->mask_heads);
    int64_t row =
        problem->first_row[b] + mask_head * query_blocks(problem, b) + i / problem->block_q;
    return (struct sight){.keys = problem->causal ? position + 1 : keys,
                          .kept = problem->kept + row * problem->key_blocks};
}

bool problem_visible(const struct problem *problem, int64_t b, int64_t head, int64_t i, int64_t j)
{
    struct sight sight = problem_sight(problem, b, head, i);
    return j < sight.keys && sight.kept[j / problem->block_k];
}

void problem_set_mask(struct problem *problem, const int64_t *row_ptr, const int32_t *blocks)
{
    int64_t rows = problem_mask_rows(problem);
    memset(problem->kept, 0, (size_t)(rows * problem->key_blocks));
    for (int64_t row = 0; row < rows; row++)
        for (int64_t n = row_ptr[row]; n < row_ptr[row + 1]; n++)
            problem->kept[row * problem->key_blocks + blocks[n]] = 1;
}

static void set_sequences(struct problem *problem, const hpa_desc *desc,
                          const int32_t *cu_seqlens_q, const int32_t *cu_seqlens_kv)
{
    int64_t most_keys = 0;
    for (int64_t b = 0; b <= problem->batch; b++) {
        problem->start_q[b] = desc->packed ? cu_seqlens_q[b] : b * desc->seq_q;
        problem->start_kv[b] = desc->packed ? cu_seqlens_kv[b] : b * desc->seq_kv;
    }
    for (int64_t b = 0; b < problem->batch; b++) {
        if (problem_keys(problem, b) > most_keys)
            most_keys = problem_keys(problem, b);
        problem->first_row[b + 1] =
            problem->first_row[b] + problem->mask_heads * query_blocks(problem, b);
    }
    problem->tokens_q = problem->start_q[problem->batch];
    problem->tokens_kv = problem->start_kv[problem->batch];
    problem->key_blocks = (most_keys + problem->block_k - 1) / problem->block_k;
}

static hpa_status allocate(double **values, int64_t n)
{
    *values = calloc((size_t)n + 1, sizeof(double)); /* + 1: of an empty tensor too */
    return *values ? HPA_OK : HPA_OUT_OF_MEMORY;
}

/* Normal random numbers as dtype can hold them. stored is room for n of them. */
static hpa_status draw(double **values, int64_t n, hpa_dtype dtype, struct random *random)
{
    hpa_status status = allocate(values, n);
    void *stored = malloc((size_t)n * dtype_size(dtype) + 1);
    if (status == HPA_OK && stored) {
        random_fill_normal(random, *values, n);
        dtype_encode(dtype, *values, stored, n);
        dtype_decode(dtype, stored, *values, n);
    }
    free(stored);
    return stored ? status : HPA_OUT_OF_MEMORY;
}

static hpa_status draw_tensors(struct problem *problem, hpa_dtype dtype, struct random *random)
{
    int64_t n_q = problem->tokens_q * problem->heads_q * problem->head_dim;
    int64_t n_kv = problem->tokens_kv * problem->heads_kv * problem->head_dim;
    hpa_dtype lse_dtype = dtype == HPA_F64 ? HPA_F64 : HPA_F32;
    hpa_status status = draw(&problem->q, n_q, dtype, random);
    if (status == HPA_OK)
        status = draw(&problem->k, n_kv, dtype, random);
    if (status == HPA_OK)
        status = draw(&problem->v, n_kv, dtype, random);
    if (status == HPA_OK)
        status = draw(&problem->d_out, n_q, dtype, random);
    if (status == HPA_OK)
        status = draw(&problem->d_lse, problem->tokens_q * problem->heads_q, lse_dtype, random);
    return status;
}

hpa_status problem_create(struct problem *problem, const hpa_desc *desc,
                          const int32_t *cu_seqlens_q, const int32_t *cu_seqlens_kv,
                          struct random *random)
{
    *problem = (struct problem){
        .batch = desc->batch,
        .heads_q = desc->heads_q,
        .heads_kv = desc->heads_kv,
        .head_dim = desc->head_dim,
        .causal = desc->causal,
        .scale = desc->scale > 0 ? desc->scale : 1 / sqrt((double)desc->head_dim),
        .block_q = desc->block_q,
        .block_k = desc->block_k,
        .mask_heads = desc->share_heads ? desc->heads_kv : desc->heads_q,
    };
    size_t starts = (size_t)desc->batch + 1;
    problem->start_q = calloc(starts, sizeof(int64_t));
    problem->start_kv = calloc(starts, sizeof(int64_t));
    problem->first_row = calloc(starts, sizeof(int64_t));
    hpa_status status = HPA_OUT_OF_MEMORY;
    if (problem->start_q && problem->start_kv && problem->first_row) {
        set_sequences(problem, desc, cu_seqlens_q, cu_seqlens_kv);
        problem->kept = calloc((size_t)(problem_mask_rows(problem) * problem->key_blocks) + 1, 1);
        status = problem->kept ? HPA_OK : HPA_OUT_OF_MEMORY;
    }
    if (status == HPA_OK)
        status = allocate(&problem->workspace,
                          problem->key_blocks * problem->block_k + problem->head_dim);
    if (status == HPA_OK)
        status = draw_tensors(problem, desc->dtype, random);
    if (status != HPA_OK)
        problem_destroy(problem);
    return status;
}

void problem_destroy(struct problem *problem)
{
    free(problem->start_q);
    free(problem->start_kv);
    free(problem->first_row);
    free(problem->kept);
    free(problem->workspace);
    free(problem->q);
    free(problem->k);
    free(problem->v);
    free(problem->d_out);
    free(problem->d_lse);
    *problem = (struct problem){0};
}
