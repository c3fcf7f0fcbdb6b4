/* One random attention problem in host memory, all in double: what the library is given, rounded to
 * the dtype under test and read back, so that both sides compute with the same numbers.
 *
 * Sequence b has queries start_q[b] ... start_q[b + 1] - 1 and keys start_kv[b] ..., whether the
 * batch is packed or not. A row of q is (token, head), a row of k and v likewise:
 *   q, d_out   [tokens_q, heads_q, head_dim]        d_lse   [tokens_q, heads_q]
 *   k, v       [tokens_kv, heads_kv, head_dim]
 */
#ifndef HPA_GRADCHECK_PROBLEM_H
#define HPA_GRADCHECK_PROBLEM_H

#include <hpa/hpa.h>

#include "random.h"

struct problem {
    int64_t batch;
    int64_t heads_q;
    int64_t heads_kv;
    int64_t head_dim;
    int64_t tokens_q;
    int64_t tokens_kv;
    int64_t *start_q;  /* [batch + 1] */
    int64_t *start_kv; /* [batch + 1] */
    bool causal;
    double scale;

    double *q;
    double *k;
    double *v;
    double *d_out; /* the weights of out and lse in the loss, and so its gradients there */
    double *d_lse;

    /* The mask, one byte for each mask row (sequence, mask head, query block) and key block. */
    int64_t block_q;
    int64_t block_k;
    int64_t mask_heads;
    int64_t key_blocks; /* of the longest sequence */
    int64_t *first_row; /* [batch + 1] mask rows before each sequence */
    unsigned char *kept;

    double *workspace; /* [keys of the longest sequence + head_dim] for the plain loops */
};

/* Draws q, k, v, d_out and d_lse for a description that the library has accepted. cu_seqlens are
 * read when it is packed. Nothing is kept yet. */
hpa_status problem_create(struct problem *problem, const hpa_desc *desc,
                          const int32_t *cu_seqlens_q, const int32_t *cu_seqlens_kv,
                          struct random *random);
void problem_destroy(struct problem *problem);

/* Takes over the mask from compressed sparse rows, as hpa_mask_export_csr writes them. */
void problem_set_mask(struct problem *problem, const int64_t *row_ptr, const int32_t *blocks);

int64_t problem_mask_rows(const struct problem *problem);

/* Queries and keys of sequence b. */
int64_t problem_queries(const struct problem *problem, int64_t b);
int64_t problem_keys(const struct problem *problem, int64_t b);

/* First element of the row of query i or key j of sequence b. */
int64_t problem_query_row(const struct problem *problem, int64_t b, int64_t head, int64_t i);
int64_t problem_key_row(const struct problem *problem, int64_t b, int64_t head_kv, int64_t j);

/* Whether query i of sequence b and query head head attends to key j. */
bool problem_visible(const struct problem *problem, int64_t b, int64_t head, int64_t i, int64_t j);

/* The same, for loops over j: it does where j < keys and kept[j / block_k]. */
struct sight {
    int64_t keys; /* not hidden by causality are 0 ... keys - 1 */
    const unsigned char *kept;
};

struct sight problem_sight(const struct problem *problem, int64_t b, int64_t head, int64_t i);

#endif
