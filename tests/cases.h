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

extern const hpa_dtype test_dtypes[4];

/* How many of them a case is tried in: f64 and f32, and the 16-bit ones on every third. */
int test_dtype_count(int case_index);

#endif
