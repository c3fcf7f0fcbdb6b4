/* The fast CPU path with each instruction set that this processor can run, in every shape: the
 * other suites see the best of them alone. Linked with the library's own object files. */
#include "cases.h"
#include "core/cpu/kernels.h"
#include "core/plan.h"
#include "oracle.h"
#include "search.h"

#include <stdio.h>

enum { MAX_SETS = 8 };

static const hpa_cpu_kernels *sets[MAX_SETS];

/* What was built and can run here. */
static int find_sets(void)
{
    char names[128];
    int count = 0;
    snprintf(names, sizeof names, "%s", hpa_cpu_names());
    for (char *name = strtok(names, " "); name && count < MAX_SETS; name = strtok(NULL, " ")) {
        sets[count] = hpa_cpu_select_named(name);
        count += sets[count] != NULL;
    }
    return count;
}

static void use_set(test_problem *p, int set)
{
    ck_assert_int_lt(set, find_sets());
    p->plan->cpu = sets[set];
}

/* Loop index: case * number of sets + set. */
static int set_count;

START_TEST(every_set_computes_attention)
{
    const test_case c = test_case_at(_i / set_count);
    for (int n = 0; n < 2; n++) { /* 16-bit types are widened to f32 before any of this */
        test_problem p;
        test_problem_of_case(&p, &c, test_dtypes[n], TEST_NORMAL);
        use_set(&p, _i % set_count);
        test_build(&p);
        assert_forward_right(c.name, &p);
        assert_backward_right(c.name, &p);
        test_problem_free(&p);
    }
}
END_TEST

START_TEST(every_set_finds_the_mask)
{
    const test_case c = test_case_at(_i / set_count);
    for (int n = 0; n < 2; n++) {
        test_problem p;
        test_problem_of_case(&p, &c, test_dtypes[n], TEST_INTEGERS);
        use_set(&p, _i % set_count);
        test_build(&p);
        double *q = test_read(&p.q), *k = test_read(&p.k);
        test_csr got = test_export(&p), want = test_expected_mask(&p, q, k);
        assert_csr_equal(c.name, &got, &want);
        test_csr_free(&got);
        test_csr_free(&want);
        free(q);
        free(k);
        test_problem_free(&p);
    }
}
END_TEST

START_TEST(there_is_always_one)
{
    ck_assert_ptr_nonnull(hpa_cpu_select());
    ck_assert_ptr_eq(hpa_cpu_select(), sets[0]);
    ck_assert_ptr_nonnull(hpa_cpu_select_named("generic"));
    ck_assert_ptr_null(hpa_cpu_select_named("no such set"));
}
END_TEST

static Suite *instruction_sets_suite(void)
{
    Suite *suite = suite_create("instruction sets");
    set_count = find_sets();
    const int runs = test_case_count() * set_count;
    TCase *t = test_add_case(suite, "every shape", 30);
    tcase_add_loop_test(t, every_set_computes_attention, 0, runs);
    tcase_add_loop_test(t, every_set_finds_the_mask, 0, runs);
    tcase_add_test(t, there_is_always_one);
    return suite;
}

int main(void)
{
    return test_run(instruction_sets_suite());
}
