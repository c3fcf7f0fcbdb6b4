/* Dense attention with the exported mask applied as -inf, forwards and backwards, written apart
 * from the library: every query against every key, in double precision. */
#ifndef HPA_TESTS_ORACLE_H
#define HPA_TESTS_ORACLE_H

#include "problem.h"

/* Arrays in the order that test_read gives the tensors of these names. */
typedef struct test_oracle {
    double *out, *lse, *dq, *dk, *dv;
} test_oracle;

/* attended(i, j) for every query of every head, [query row][Tk of its sequence]. */
bool test_attends(const test_problem *p, const test_csr *csr, int64_t b, int64_t h, int64_t i,
                  int64_t j);

/* The gradients' delta comes from out as the problem holds it when stored_out is true (what
 * hpa_backward is given), else from this computation's own. */
test_oracle test_dense(const test_problem *p, const test_csr *csr, bool stored_out);

/* out and lse alone; the gradients mean nothing. */
test_oracle test_dense_forward(const test_problem *p, const test_csr *csr);

/* What naive dense attention makes in a dtype: every intermediate is stored in it, and sums run in
 * f32. The yardstick for the library's own rounding errors. */
test_oracle test_dense_stored(const test_problem *p, const test_csr *csr, hpa_dtype storage);

void test_oracle_free(test_oracle *oracle);

/* max |a - b|; NaN where any is. */
double test_distance(const double *a, const double *b, int64_t n);

/* Tolerances for comparisons with the oracle, given what the backend may round. */
typedef struct test_tolerance {
    double atol, rtol;
} test_tolerance;

test_tolerance test_tolerance_of(hpa_dtype dtype);
test_tolerance test_gradient_tolerance_of(hpa_dtype dtype);

/* Builds the oracle from the problem's own mask and compares all that forward (and backward) wrote,
 * after running them. */
void assert_forward_right(const char *name, test_problem *p);
void assert_backward_right(const char *name, test_problem *p);

#endif
