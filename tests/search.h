/* Which key blocks a mask row keeps, stated a second time: sink, window and visibility by their
 * definitions over tokens, and the tree search. Written from the description of the algorithm, apart
 * from the library, slow and plain. */
#ifndef HPA_TESTS_SEARCH_H
#define HPA_TESTS_SEARCH_H

#include "problem.h"

/* What one mask row may keep. */
typedef struct test_row {
    int64_t batch, mask_head, query_block;
    int64_t first, last; /* queries */
    int64_t key_blocks;
    bool *visible, *sink, *window; /* [key_blocks]; the two latter only where visible */
    int64_t *candidates;           /* [candidate_count] visible and in neither, ascending */
    int64_t candidate_count;
} test_row;

/* Row r in the order of the CSR form. */
test_row test_row_at(const test_problem *p, int64_t r);
void test_row_free(test_row *row);

int64_t test_tree_blocks(const hpa_desc *desc); /* M */

/* How many levels of the search the first row of r's span does for r and its neighbours; 0: none. */
int64_t test_shared_levels(const test_problem *p, int64_t r);

/* The whole mask. q and k as test_read gives them. */
test_csr test_expected_mask(const test_problem *p, const double *q, const double *k);

/* Gives the problem a mask of visible blocks drawn by lot, of_four of four of them; every fifth row
 * keeps nothing, and no row keeps block spared. The plan must have room for whole rows. */
void test_import_random_mask(test_problem *p, test_random *random, int64_t of_four, int64_t spared);

/* max of q_i . k_t over the row's sampled queries, over its query heads; NaN counts as -inf. */
double test_token_score(const test_problem *p, const test_row *row, const double *q,
                        const double *k, int64_t token);

/* Does every node on the way to the token's candidate have the token among its representatives, where
 * the row shares no levels? false for a token of no candidate, or where there is nothing to search. */
bool test_always_representative(const test_problem *p, const test_row *row, int64_t token);

#endif
