/* One attention problem on the backend under test: plan, tensors, mask, and the calls on them.
 *
 * Every call made through a problem is also checked for what every call owes: it succeeds, stays
 * within its buffers, leaves its inputs alone, and needs no more scratch than it said. */
#ifndef HPA_TESTS_PROBLEM_H
#define HPA_TESTS_PROBLEM_H

#include "support.h"

typedef enum test_layout {
    TEST_BHSD,   /* heads apart */
    TEST_BSHD,   /* tokens apart */
    TEST_QKV,    /* q, k and v interleaved in one buffer (as BSHD when Tq != Tk) */
    TEST_PADDED, /* odd gaps between tokens, heads and sequences, and an odd start */
    TEST_LAYOUTS
} test_layout;

typedef struct test_tensor {
    hpa_tensor view;
    test_buffer *buffer; /* some of the problem's; q, k and v may share one */
    size_t start;        /* byte of the buffer where the view begins */
} test_tensor;

typedef struct test_problem {
    hpa_desc desc;
    test_layout layout;
    hpa_plan *plan;
    hpa_sizes sizes;
    int32_t *cu_q, *cu_kv; /* [batch + 1] on the host, also when not packed */
    test_buffer cu_q_buffer, cu_kv_buffer;
    test_tensor q, k, v, out, lse, d_out, d_lse, dq, dk, dv;
    test_buffer buffers[10];
    int32_t buffer_count;
    test_buffer mask;
    bool without_d_lse;
    bool accumulate;
    int scratch_fill; /* what a call finds in its scratch */
} test_problem;

/* cu_q and cu_kv: lengths when packed, else NULL. */
void test_problem_new(test_problem *p, const hpa_desc *desc, test_layout layout,
                      const int32_t *cu_q, const int32_t *cu_kv);
void test_problem_free(test_problem *p);

/* Same shapes, layout and contents of q, k, v, d_out and d_lse (as far as the new dtype can). */
void test_problem_copy(test_problem *copy, const test_problem *p, const hpa_desc *desc,
                       test_layout layout);

typedef enum test_values {
    TEST_NORMAL,
    TEST_INTEGERS /* small: every sum over them is exact in every dtype */
} test_values;

/* q, k, v, d_out and d_lse */
void test_problem_fill(test_problem *p, uint64_t seed, test_values values);

hpa_inputs test_inputs(const test_problem *p);
hpa_outputs test_outputs(const test_problem *p);
hpa_gradients test_gradients(const test_problem *p);

/* The calls. Outputs are filled with NaN first, but for accumulate's. */
void test_build(test_problem *p);
void test_forward(test_problem *p);
void test_backward(test_problem *p);
/* Only the gradients asked for. */
void test_backward_of(test_problem *p, bool dq, bool dk, bool dv);

/* Of all bytes of out and lse, or of dq, dk and dv. */
uint64_t test_hash_of_outputs(const test_problem *p);
uint64_t test_hash_of_gradients(const test_problem *p);

/* Tensors, in logical order, which is that of the C array of their shape */
int64_t test_count(const test_tensor *t);
double *test_read(const test_tensor *t);
void test_write(const test_tensor *t, const double *values);
/* Nothing but the elements of the view differs from the fill. The view has the buffer to itself. */
void assert_gaps_untouched(const char *name, const test_tensor *t);

/* Shapes */
static inline int64_t test_mask_heads(const test_problem *p)
{
    return p->desc.share_heads ? p->desc.heads_kv : p->desc.heads_q;
}
static inline int64_t test_q_length(const test_problem *p, int64_t b)
{
    return p->cu_q[b + 1] - p->cu_q[b];
}
static inline int64_t test_kv_length(const test_problem *p, int64_t b)
{
    return p->cu_kv[b + 1] - p->cu_kv[b];
}
/* Which row of D values (and which lse) query i of head h of sequence b is, in what test_read gives;
 * so too for a key. */
int64_t test_q_row(const test_problem *p, int64_t b, int64_t h, int64_t i);
int64_t test_kv_row(const test_problem *p, int64_t b, int64_t h, int64_t j);
/* The rows that sequences own: a prefix of all, since packed rows past the last come at the end. */
int64_t test_q_rows_used(const test_problem *p);
int64_t test_kv_rows_used(const test_problem *p);

/* assert_close on the rows that sequences own; the others must still hold the fill. */
void assert_tensor_close(const char *name, const test_problem *p, const test_tensor *t,
                         const double *want, double atol, double rtol);

/* The mask as the interface exports it */

typedef struct test_csr {
    int64_t rows;
    int64_t *row_ptr;
    int32_t *blocks;
} test_csr;

test_csr test_export(const test_problem *p);
void test_import(test_problem *p, const test_csr *csr);
void test_csr_free(test_csr *csr);
void assert_csr_equal(const char *name, const test_csr *got, const test_csr *want);
hpa_mask_stats test_statistics(const test_problem *p);

/* exec with as much scratch as the (sync) calls need; test_scratch_free checks its guards. */
hpa_exec test_scratch_new(test_buffer *scratch, size_t bytes, int fill);
void test_scratch_free(test_buffer *scratch);

#endif
