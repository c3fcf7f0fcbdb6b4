/* The shapes that break things, each a problem to be made in any dtype. */
#ifndef HPA_TESTS_CASES_H
#define HPA_TESTS_CASES_H

#include "problem.h"

typedef struct test_case {
    char name[96];
    hpa_desc desc;
    test_layout layout;
    const int32_t *cu_q, *cu_kv; /* packed only */
} test_case;

int test_case_count(void);
test_case test_case_at(int index);

/* Every fourth case, of changing kinds, for what would take too long on all of them. */
int test_few_case_count(void);
test_case test_few_case_at(int index);

/* Filled with values. */
void test_problem_of_case(test_problem *p, const test_case *c, hpa_dtype dtype, test_values values);

/* A random problem of up to longest tokens, over every knob. */
hpa_desc test_random_desc(test_random *random, int64_t longest);

/* One of up to longest tokens, with blocks and beam so small that neighbouring query blocks mostly
 * share levels of the search where it is of more than 500. */
hpa_desc test_random_span_desc(test_random *random, int64_t longest);

/* One of up to 300 tokens, with heads of any size and 0 (all) to 4 threads. */
hpa_desc test_random_wide_desc(test_random *random, hpa_dtype dtype);

/* A problem with some of everything: what suites start from that are about something else. */
hpa_desc test_medium_desc(hpa_dtype dtype);

/* Not packed. Filled with normal values, its mask built. */
void test_problem_built(test_problem *p, const hpa_desc *desc, test_layout layout);

/* What is to stay the same, and the calls that make it. */
typedef void (*test_run_problem)(test_problem *p);
typedef uint64_t (*test_hash_problem)(const test_problem *p);

/* A hundred runs, each over other rubbish in the scratch, give the same bits. */
void assert_repeatable(test_problem *p, test_run_problem run, test_hash_problem hash);

/* The case in f32 and bf16 gives the same bits with 1, 2, 3 and all threads. */
void assert_threads_do_not_matter(const test_case *c, test_run_problem run, test_hash_problem hash);

extern const hpa_dtype test_dtypes[4];

/* How many of them a case is tried in: f64 and f32, and the 16-bit ones on every third case and, on
 * CUDA, on every one with wide blocks, which kernels of their own serve. */
int test_dtype_count(int case_index);

#endif
