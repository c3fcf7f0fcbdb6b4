/* hpa_forward against dense attention with the exported mask, in every shape and dtype. */
#include "cases.h"
#include "oracle.h"
#include "search.h"

#include <inttypes.h>
#include <stdio.h>

START_TEST(equals_dense_attention)
{
    const test_case c = test_case_at(_i);
    for (int n = 0; n < test_dtype_count(_i); n++) {
        test_problem p;
        test_problem_of_case(&p, &c, test_dtypes[n], TEST_NORMAL);
        test_build(&p);
        assert_forward_right(c.name, &p);
        test_problem_free(&p);
    }
}
END_TEST

START_TEST(random_problems_equal_dense_attention)
{
    test_random random = {(uint64_t)_i + 1000};
    for (int n = 0; n < 4; n++) {
        hpa_desc desc = test_random_wide_desc(&random, test_dtypes[n]);
        test_problem p;
        test_problem_built(&p, &desc,
                           (test_layout)test_random_integer(&random, 0, TEST_LAYOUTS - 1));
        assert_forward_right("random", &p);
        test_problem_free(&p);
    }
}
END_TEST

START_TEST(any_imported_mask_is_followed)
{
    test_random random = {(uint64_t)_i};
    for (int n = 0; n < 4; n++) {
        hpa_desc desc = test_medium_desc(test_dtypes[n]);
        desc.top_k = 1000; /* a row may keep everything */
        desc.causal = _i % 2;
        desc.share_heads = _i / 2 % 2;
        test_problem p;
        test_problem_built(&p, &desc, TEST_BSHD);
        test_import_random_mask(&p, &random, 1 + _i % 3, -1);
        assert_forward_right("imported", &p);
        test_problem_free(&p);
    }
}
END_TEST

START_TEST(queries_without_keys_get_zero)
{
    for (int n = 0; n < 4; n++) {
        hpa_desc desc = test_medium_desc(test_dtypes[n]);
        desc.seq_q = 300;
        desc.seq_kv = _i ? 0 : 90;
        test_problem p;
        test_problem_built(&p, &desc, TEST_BHSD);
        test_forward(&p);
        double *out = test_read(&p.out), *lse = test_read(&p.lse);
        for (int64_t h = 0; h < desc.heads_q; h++)
            for (int64_t i = 0; i < desc.seq_q - desc.seq_kv; i++) {
                const int64_t row = test_q_row(&p, 0, h, i);
                assert_that(lse[row] == -(double)INFINITY, "lse of query %" PRId64 " is %g", i,
                            lse[row]);
                for (int64_t d = 0; d < desc.head_dim; d++)
                    assert_that(out[row * desc.head_dim + d] == 0, "out of query %" PRId64, i);
            }
        free(out);
        free(lse);
        test_problem_free(&p);
    }
}
END_TEST

/* Rounding: no worse than twice what naive dense attention makes that stores every step in the
 * dtype. */
START_TEST(errors_are_at_most_twice_those_of_naive_attention)
{
    for (int n = 1; n < 4; n++) {
        hpa_desc desc = test_medium_desc(test_dtypes[n]);
        desc.causal = _i;
        test_problem p;
        test_problem_built(&p, &desc, TEST_BHSD);
        test_forward(&p);
        test_csr csr = test_export(&p);
        test_oracle exact = test_dense_forward(&p, &csr);
        test_oracle naive = test_dense_stored(&p, &csr, desc.dtype);
        double *out = test_read(&p.out);
        const double own = test_distance(out, exact.out, test_count(&p.out));
        const double yardstick = test_distance(naive.out, exact.out, test_count(&p.out));
        assert_that(own <= 2 * yardstick, "dtype %d: out is off by %g, naive attention by %g",
                    (int)desc.dtype, own, yardstick);
        free(out);
        test_oracle_free(&exact);
        test_oracle_free(&naive);
        test_csr_free(&csr);
        test_problem_free(&p);
    }
}
END_TEST

START_TEST(the_scale_is_applied)
{
    static const double scales[] = {1e-3, 0.125, 1, 3};
    hpa_desc desc = test_medium_desc(_i % 2 ? HPA_F32 : HPA_F64);
    desc.scale = scales[_i / 2];
    test_problem p;
    test_problem_built(&p, &desc, TEST_BHSD);
    /* the exponent amplifies f32's error of a score of size scale * 8 * |s| */
    if (desc.dtype == HPA_F64 || desc.scale <= 1)
        assert_forward_right("scale", &p);
    test_forward(&p);
    double *out = test_read(&p.out);
    test_csr csr = test_export(&p);
    test_oracle o = test_dense_forward(&p, &csr);
    assert_close("out, loosely", out, o.out, test_count(&p.out), 1e-4, 1e-4);
    free(out);
    test_oracle_free(&o);
    test_csr_free(&csr);
    test_problem_free(&p);
}
END_TEST

/* Scores of ten thousands: the exponentials of all but the largest vanish, and none overflows. */
START_TEST(large_scores_do_not_overflow)
{
    for (int n = 0; n < 4; n++) {
        hpa_desc desc = test_medium_desc(test_dtypes[n]);
        desc.scale = _i ? 1000 : 50;
        test_problem p;
        test_problem_new(&p, &desc, TEST_BHSD, NULL, NULL);
        test_problem_fill(&p, 5, TEST_INTEGERS); /* exact scores */
        test_build(&p);
        test_forward(&p);
        test_csr csr = test_export(&p);
        test_oracle o = test_dense_forward(&p, &csr);
        const test_tolerance tolerance = test_tolerance_of(desc.dtype);
        /* a score of this size is good to so much, and with it the exponential's relative error */
        const double largest = desc.scale * 9 * (double)desc.head_dim;
        const double error = 2 * largest * (desc.dtype == HPA_F64 ? 0x1p-53 : 0x1p-24);
        assert_tensor_close("out", &p, &p.out, o.out, fmax(tolerance.atol, error), tolerance.rtol);
        assert_tensor_close("lse", &p, &p.lse, o.lse, 1e-6, desc.dtype == HPA_F64 ? 1e-15 : 1e-6);
        test_oracle_free(&o);
        test_csr_free(&csr);
        test_problem_free(&p);
    }
}
END_TEST

/* Non-finite values */

typedef enum spoiled { SPOIL_Q, SPOIL_K, SPOIL_V } spoiled;

/* Writes value at dimension d of key or query `token` of head h of sequence b. */
static void spoil(const test_problem *p, spoiled which, int64_t b, int64_t h, int64_t token,
                  int64_t d, double value)
{
    const test_tensor *t = which == SPOIL_Q ? &p->q : which == SPOIL_K ? &p->k : &p->v;
    double *values = test_read(t);
    const int64_t row = which == SPOIL_Q ? test_q_row(p, b, h, token) : test_kv_row(p, b, h, token);
    values[row * p->desc.head_dim + d] = value;
    test_write(t, values);
    free(values);
}

/* Queries that do not take the spoiled value in have the same bits as before; those that do have NaN
 * (in v: in its one dimension). */
static void check_reach(const test_problem *p, const test_csr *csr, spoiled which, int64_t b,
                        int64_t h, int64_t token, int64_t d, const double *out, const double *lse)
{
    const int64_t group = p->desc.heads_q / p->desc.heads_kv, D = p->desc.head_dim;
    double *now = test_read(&p->out), *lse_now = test_read(&p->lse);
    for (int64_t batch = 0; batch < p->desc.batch; batch++)
        for (int64_t head = 0; head < p->desc.heads_q; head++)
            for (int64_t i = 0; i < test_q_length(p, batch); i++) {
                const int64_t row = test_q_row(p, batch, head, i);
                const bool reached =
                    batch == b && (which == SPOIL_Q ? head == h && i == token
                                                    : head / group == h &&
                                                          test_attends(p, csr, b, head, i, token));
                for (int64_t n = 0; n < D; n++) {
                    const double before = out[row * D + n], after = now[row * D + n];
                    const bool must = reached && (which != SPOIL_V || n == d);
                    assert_that(must ? isnan(after)
                                     : reached || test_is_unchanged(p->desc.dtype, after, before),
                                "dtype %d: out of query %" PRId64 " of head %" PRId64
                                ", dimension %" PRId64 ", is %g, was %g; %s %" PRId64 " is NaN",
                                (int)p->desc.dtype, i, head, n, after, before,
                                which == SPOIL_Q ? "query" : "key", token);
                }
                const bool lse_must = reached && which != SPOIL_V;
                assert_that(lse_must ? isnan(lse_now[row])
                                     : test_is_unchanged(p->desc.dtype, lse_now[row], lse[row]),
                            "dtype %d: lse of query %" PRId64 " is %g, was %g", (int)p->desc.dtype,
                            i, lse_now[row], lse[row]);
            }
    free(now);
    free(lse_now);
}

static void check_nan_at(const hpa_desc *desc, spoiled which, int64_t h, int64_t token)
{
    test_problem p;
    test_problem_built(&p, desc, TEST_BHSD);
    test_csr csr = test_export(&p);
    test_forward(&p);
    double *out = test_read(&p.out), *lse = test_read(&p.lse);
    const int64_t b = desc->batch - 1, d = (token * 7 + 3) % desc->head_dim;
    spoil(&p, which, b, h, token, d, (double)NAN);
    test_forward(&p);
    check_reach(&p, &csr, which, b, h, token, d, out, lse);
    free(out);
    free(lse);
    test_csr_free(&csr);
    test_problem_free(&p);
}

START_TEST(a_nan_reaches_those_that_take_it_in)
{
    static const int64_t tokens[] = {0, 1, 15, 16, 40, 97, 150, 180, 199};
    for (int n = 0; n < 4; n++)
        for (int which = SPOIL_Q; which <= SPOIL_V; which++) {
            hpa_desc desc = test_medium_desc(test_dtypes[n]);
            desc.batch = 2;
            desc.head_dim = n % 2 ? 40 : 64;
            desc.causal = _i % 2;
            check_nan_at(&desc, (spoiled)which, n % 2, tokens[_i / 2]);
        }
}
END_TEST

/* An infinite v reaches as infinity: every probability is positive. */
START_TEST(an_infinite_value_reaches_its_dimension)
{
    for (int n = 0; n < 4; n++) {
        hpa_desc desc = test_medium_desc(test_dtypes[n]);
        test_problem p;
        test_problem_built(&p, &desc, TEST_BHSD);
        test_csr csr = test_export(&p);
        const int64_t token = 90, d = 11;
        spoil(&p, SPOIL_V, 0, 1, token, d, -(double)INFINITY);
        test_forward(&p);
        double *out = test_read(&p.out);
        for (int64_t i = 0; i < desc.seq_q; i++) {
            const double value = out[test_q_row(&p, 0, 3, i) * desc.head_dim + d];
            const bool reached = test_attends(&p, &csr, 0, 3, i, token);
            assert_that(reached ? value == -(double)INFINITY : isfinite(value),
                        "query %" PRId64 ": %g", i, value);
        }
        free(out);
        test_csr_free(&csr);
        test_problem_free(&p);
    }
}
END_TEST

/* A query all of whose scores are NaN is not one that sees no key. */
START_TEST(nan_alone_does_not_look_like_no_key)
{
    for (int n = 0; n < 4; n++) {
        hpa_desc desc = test_medium_desc(test_dtypes[n]);
        desc.seq_q = desc.seq_kv = 1 + 100 * _i;
        test_problem p;
        test_problem_new(&p, &desc, TEST_BHSD, NULL, NULL);
        test_problem_fill(&p, 2, TEST_NORMAL);
        for (int64_t j = 0; j < desc.seq_kv; j++)
            spoil(&p, SPOIL_K, 0, 0, j, 0, (double)NAN);
        test_build(&p);
        test_forward(&p);
        double *out = test_read(&p.out), *lse = test_read(&p.lse);
        for (int64_t i = 0; i < desc.seq_q; i++) {
            const int64_t row = test_q_row(&p, 0, 1, i);
            assert_that(isnan(lse[row]), "lse of query %" PRId64 " is %g", i, lse[row]);
            for (int64_t d = 0; d < desc.head_dim; d++)
                assert_that(isnan(out[row * desc.head_dim + d]), "out of query %" PRId64, i);
        }
        free(out);
        free(lse);
        test_problem_free(&p);
    }
}
END_TEST

/* Repeatable */

START_TEST(a_hundred_runs_are_identical)
{
    hpa_desc desc = test_medium_desc(test_dtypes[_i]);
    test_problem p;
    test_problem_built(&p, &desc, TEST_BSHD);
    test_forward(&p);
    assert_repeatable(&p, test_forward, test_hash_of_outputs);
    test_problem_free(&p);
}
END_TEST

static void run_all(test_problem *p)
{
    test_build(p);
    test_forward(p);
}

START_TEST(threads_do_not_matter)
{
    const test_case c = test_few_case_at(_i);
    assert_threads_do_not_matter(&c, run_all, test_hash_of_outputs);
}
END_TEST

/* The dense setting is dense attention: the mask drops nothing that is visible. */
START_TEST(top_k_of_the_whole_sequence_is_dense_attention)
{
    hpa_desc desc = test_medium_desc(test_dtypes[_i / 2]);
    desc.top_k = 230;
    desc.causal = _i % 2;
    test_problem p;
    test_problem_built(&p, &desc, TEST_BHSD);
    test_csr all = test_export(&p);
    for (int64_t i = 0; i < desc.seq_q; i++)
        for (int64_t j = 0; j < desc.seq_kv; j++)
            assert_that(test_attends(&p, &all, 0, 0, i, j) ==
                            (!desc.causal || j <= i + desc.seq_kv - desc.seq_q),
                        "query %" PRId64 ", key %" PRId64, i, j);
    assert_forward_right("dense", &p);
    test_csr_free(&all);
    test_problem_free(&p);
}
END_TEST

static Suite *forward_suite(void)
{
    Suite *suite = suite_create("forward");
    const int cases = test_case_count();
    TCase *t = test_add_case(suite, "every shape", 30);
    tcase_add_loop_test(t, equals_dense_attention, 0, cases);
    tcase_add_loop_test(t, threads_do_not_matter, 0, test_few_case_count());
    t = test_add_case(suite, "masks", 30);
    tcase_add_loop_test(t, random_problems_equal_dense_attention, 0, 30);
    tcase_add_loop_test(t, any_imported_mask_is_followed, 0, 12);
    tcase_add_loop_test(t, queries_without_keys_get_zero, 0, 2);
    tcase_add_loop_test(t, top_k_of_the_whole_sequence_is_dense_attention, 0, 8);
    t = test_add_case(suite, "numbers", 30);
    tcase_add_loop_test(t, errors_are_at_most_twice_those_of_naive_attention, 0, 2);
    tcase_add_loop_test(t, the_scale_is_applied, 0, 8);
    tcase_add_loop_test(t, large_scores_do_not_overflow, 0, 2);
    tcase_add_loop_test(t, a_nan_reaches_those_that_take_it_in, 0, 18);
    tcase_add_test(t, an_infinite_value_reaches_its_dimension);
    tcase_add_loop_test(t, nan_alone_does_not_look_like_no_key, 0, 2);
    tcase_add_loop_test(t, a_hundred_runs_are_identical, 0, 4);
    return suite;
}

int main(void)
{
    return test_run(forward_suite());
}
