/* hpa_backward against the gradients of dense attention with the exported mask, in every shape and
 * dtype. */
#include "cases.h"
#include "oracle.h"
#include "search.h"

#include <inttypes.h>
#include <stdio.h>

START_TEST(equals_the_gradients_of_dense_attention)
{
    const test_case c = test_case_at(_i);
    for (int n = 0; n < test_dtype_count(_i); n++) {
        test_problem p;
        test_problem_of_case(&p, &c, test_dtypes[n], TEST_NORMAL);
        test_build(&p);
        assert_backward_right(c.name, &p);
        test_problem_free(&p);
    }
}
END_TEST

/* The yardstick itself: the dense gradients are the central differences of the dense forward, of the
 * loss sum(out * d_out) + sum(lse * d_lse). */
static double dense_loss(const test_problem *p, const test_csr *csr)
{
    test_oracle o = test_dense_forward(p, csr);
    double *d_out = test_read(&p->d_out), *d_lse = test_read(&p->d_lse);
    double loss = 0;
    for (int64_t n = 0; n < test_count(&p->out); n++)
        loss += o.out[n] * d_out[n];
    for (int64_t n = 0; n < test_count(&p->lse); n++)
        loss += isfinite(o.lse[n]) ? o.lse[n] * d_lse[n] : 0;
    free(d_out);
    free(d_lse);
    test_oracle_free(&o);
    return loss;
}

static void check_differences(const test_problem *p, const test_csr *csr, const char *name,
                              const test_tensor *t, const double *gradient)
{
    const double step = 1e-5;
    double *values = test_read(t);
    for (int64_t n = 0; n < test_count(t); n += 37) {
        const double value = values[n];
        values[n] = value + step;
        test_write(t, values);
        const double above = dense_loss(p, csr);
        values[n] = value - step;
        test_write(t, values);
        const double below = dense_loss(p, csr);
        values[n] = value;
        const double difference = (above - below) / (2 * step);
        assert_close(name, &gradient[n], &difference, 1, 1e-7, 1e-6);
    }
    test_write(t, values);
    free(values);
}

START_TEST(the_dense_gradients_are_finite_differences)
{
    hpa_desc desc = test_medium_desc(HPA_F64);
    desc.head_dim = 8;
    desc.seq_q = 60;
    desc.seq_kv = 50;
    desc.causal = _i;
    test_problem p;
    test_problem_built(&p, &desc, TEST_BHSD);
    test_csr csr = test_export(&p);
    test_oracle o = test_dense(&p, &csr, false);
    check_differences(&p, &csr, "dq", &p.q, o.dq);
    check_differences(&p, &csr, "dk", &p.k, o.dk);
    check_differences(&p, &csr, "dv", &p.v, o.dv);
    test_oracle_free(&o);
    test_csr_free(&csr);
    test_problem_free(&p);
}
END_TEST

START_TEST(random_problems_are_right)
{
    test_random random = {(uint64_t)_i + 2000};
    for (int n = 0; n < 4; n++) {
        hpa_desc desc = test_random_wide_desc(&random, test_dtypes[n]);
        desc.allow_nondeterministic = test_random_integer(&random, 0, 1);
        test_problem p;
        test_problem_built(&p, &desc,
                           (test_layout)test_random_integer(&random, 0, TEST_LAYOUTS - 1));
        p.without_d_lse = test_random_integer(&random, 0, 1);
        assert_backward_right("random", &p);
        test_problem_free(&p);
    }
}
END_TEST

/* Masks of one's own, with rows that keep nothing and key blocks that nobody keeps. */
START_TEST(any_imported_mask_is_followed)
{
    test_random random = {(uint64_t)_i};
    for (int n = 0; n < 4; n++) {
        hpa_desc desc = test_medium_desc(test_dtypes[n]);
        desc.top_k = 1000;
        desc.causal = _i % 2;
        desc.share_heads = _i / 2 % 2;
        test_problem p;
        test_problem_built(&p, &desc, TEST_BSHD);
        test_import_random_mask(&p, &random, 1 + _i % 2, 3);
        assert_backward_right("imported", &p);
        double *dk = test_read(&p.dk);
        for (int64_t d = 0; d < desc.head_dim; d++)
            assert_that(dk[test_kv_row(&p, 0, 1, 3 * desc.block_k) * desc.head_dim + d] == 0,
                        "a key that nobody keeps has a gradient");
        free(dk);
        test_problem_free(&p);
    }
}
END_TEST

START_TEST(errors_are_at_most_three_times_those_of_naive_attention)
{
    for (int n = 1; n < 4; n++) {
        hpa_desc desc = test_medium_desc(test_dtypes[n]);
        desc.causal = _i % 2;
        test_problem p;
        test_problem_built(&p, &desc, TEST_BHSD);
        p.without_d_lse = _i / 2;
        test_forward(&p);
        test_backward(&p);
        test_csr csr = test_export(&p);
        test_oracle exact = test_dense(&p, &csr, false);
        test_oracle naive = test_dense_stored(&p, &csr, desc.dtype);
        const test_tensor *const tensors[] = {&p.dq, &p.dk, &p.dv};
        const double *const exacts[] = {exact.dq, exact.dk, exact.dv};
        const double *const naives[] = {naive.dq, naive.dk, naive.dv};
        for (int t = 0; t < 3; t++) {
            double *got = test_read(tensors[t]);
            const double own = test_distance(got, exacts[t], test_count(tensors[t]));
            const double yardstick = test_distance(naives[t], exacts[t], test_count(tensors[t]));
            assert_that(own <= 3 * yardstick, "dtype %d: d%c is off by %g, naive attention by %g",
                        (int)desc.dtype, "qkv"[t], own, yardstick);
            free(got);
        }
        test_oracle_free(&exact);
        test_oracle_free(&naive);
        test_csr_free(&csr);
        test_problem_free(&p);
    }
}
END_TEST

/* What the caller may ask for */

START_TEST(no_d_lse_is_a_d_lse_of_zero)
{
    for (int n = 0; n < 4; n++) {
        hpa_desc desc = test_medium_desc(test_dtypes[n]);
        test_problem p;
        test_problem_built(&p, &desc, TEST_PADDED);
        p.without_d_lse = true;
        assert_backward_right("no d_lse", &p);
        double *without_dq = test_read(&p.dq), *without_dk = test_read(&p.dk);
        double *zero = calloc((size_t)test_count(&p.lse), sizeof *zero);
        ck_assert_ptr_nonnull(zero);
        test_write(&p.d_lse, zero);
        p.without_d_lse = false;
        assert_backward_right("d_lse of zero", &p);
        double *dq = test_read(&p.dq), *dk = test_read(&p.dk);
        assert_close("dq", dq, without_dq, test_count(&p.dq), 0, 0);
        assert_close("dk", dk, without_dk, test_count(&p.dk), 0, 0);
        free(zero);
        free(without_dq);
        free(without_dk);
        free(dq);
        free(dk);
        test_problem_free(&p);
    }
}
END_TEST

/* The gradients asked for are those of a call that asks for all, bit for bit. */
START_TEST(unwanted_gradients_change_nothing)
{
    hpa_desc desc = test_medium_desc(test_dtypes[_i % 4]);
    desc.share_heads = _i / 4;
    test_problem p;
    test_problem_built(&p, &desc, TEST_BHSD);
    test_forward(&p);
    test_backward(&p);
    const uint64_t dq = test_buffer_hash(p.dq.buffer), dk = test_buffer_hash(p.dk.buffer),
                   dv = test_buffer_hash(p.dv.buffer);
    for (int wanted = 0; wanted < 8; wanted++) {
        test_backward_of(&p, wanted & 1, wanted & 2, wanted & 4);
        assert_that(!(wanted & 1) || test_buffer_hash(p.dq.buffer) == dq, "dq of %d", wanted);
        assert_that(!(wanted & 2) || test_buffer_hash(p.dk.buffer) == dk, "dk of %d", wanted);
        assert_that(!(wanted & 4) || test_buffer_hash(p.dv.buffer) == dv, "dv of %d", wanted);
    }
    test_problem_free(&p);
}
END_TEST

/* before + gradient, rounded once in the dtype. */
static void check_sum(const char *name, const test_problem *p, const test_tensor *t,
                      const double *before, const double *gradient)
{
    const int64_t count = test_count(t);
    double *sum = test_allocate(count, sizeof *sum), *got = test_read(t);
    for (int64_t n = 0; n < count; n++)
        sum[n] = before[n] + gradient[n];
    const test_tolerance tolerance = test_gradient_tolerance_of(p->desc.dtype);
    assert_close(name, got, sum, count, tolerance.atol, tolerance.rtol);
    free(sum);
    free(got);
}

START_TEST(accumulate_adds)
{
    for (int n = 0; n < 4; n++) {
        hpa_desc desc = test_medium_desc(test_dtypes[n]);
        desc.seq_q = 260; /* some queries see nothing: 0 is added */
        test_problem p;
        test_problem_built(&p, &desc, (test_layout)(_i % TEST_LAYOUTS));
        test_forward(&p);
        test_csr csr = test_export(&p);
        test_oracle o = test_dense(&p, &csr, true);
        test_tensor *const tensors[] = {&p.dq, &p.dk, &p.dv};
        const double *const gradients[] = {o.dq, o.dk, o.dv};
        double *before[3];
        test_random random = {3};
        for (int t = 0; t < 3; t++) {
            before[t] = test_allocate(test_count(tensors[t]), sizeof(double));
            for (int64_t m = 0; m < test_count(tensors[t]); m++)
                before[t][m] = test_random_normal(&random);
            test_write(tensors[t], before[t]);
            free(before[t]);
            before[t] = test_read(tensors[t]);
        }
        p.accumulate = true;
        test_backward(&p);
        for (int t = 0; t < 3; t++) {
            check_sum("accumulated", &p, tensors[t], before[t], gradients[t]);
            free(before[t]);
        }
        test_oracle_free(&o);
        test_csr_free(&csr);
        test_problem_free(&p);
    }
}
END_TEST

/* With one key and a q of zero every probability is exactly 1, so dv is d_out, and what accumulate
 * leaves is a sum of two numbers, which must be the nearest one, ties to even. */
START_TEST(sums_are_rounded_to_nearest_even)
{
    hpa_desc desc = test_medium_desc(test_dtypes[2 + _i % 2]);
    desc.heads_q = desc.heads_kv = 64;
    desc.seq_q = desc.seq_kv = 1;
    test_problem p;
    test_problem_built(&p, &desc, TEST_BHSD);
    const int64_t count = test_count(&p.dv);
    double *d_out = test_read(&p.d_out), *zero = calloc((size_t)count, sizeof *zero);
    double *before = test_allocate(count, sizeof *before);
    double *sum = test_allocate(count, sizeof *sum);
    test_random random = {(uint64_t)_i};
    const double size = _i < 2 ? 1 : 0x1p-16; /* f16: subnormal */
    for (int64_t n = 0; n < count; n++) {
        d_out[n] = test_rounded(desc.dtype, size * d_out[n]);
        before[n] = test_rounded(desc.dtype, size * 4 * test_random_normal(&random));
        sum[n] = test_rounded(desc.dtype, before[n] + d_out[n]);
    }
    ck_assert_ptr_nonnull(zero);
    test_write(&p.q, zero);
    test_write(&p.d_out, d_out);
    test_write(&p.dv, before);
    test_forward(&p);
    p.accumulate = true;
    test_backward(&p);
    assert_tensor_close("dv", &p, &p.dv, sum, 0, 0);
    free(d_out);
    free(zero);
    free(before);
    free(sum);
    test_problem_free(&p);
}
END_TEST

START_TEST(no_cotangent_gives_exactly_no_gradient)
{
    hpa_desc desc = test_medium_desc(test_dtypes[_i]);
    test_problem p;
    test_problem_built(&p, &desc, TEST_BHSD);
    double *zero = calloc((size_t)test_count(&p.d_out), sizeof *zero);
    ck_assert_ptr_nonnull(zero);
    test_write(&p.d_out, zero);
    test_write(&p.d_lse, zero);
    test_forward(&p);
    test_backward(&p);
    const test_tensor *const tensors[] = {&p.dq, &p.dk, &p.dv};
    for (int t = 0; t < 3; t++) {
        double *got = test_read(tensors[t]);
        assert_close("gradient", got, zero, test_count(tensors[t]), 0, 0);
        free(got);
    }
    free(zero);
    test_problem_free(&p);
}
END_TEST

START_TEST(queries_without_keys_get_and_give_nothing)
{
    for (int n = 0; n < 4; n++) {
        hpa_desc desc = test_medium_desc(test_dtypes[n]);
        desc.seq_q = 300;
        desc.seq_kv = _i ? 0 : 90;
        test_problem p;
        test_problem_built(&p, &desc, TEST_BHSD);
        assert_backward_right("few keys", &p);
        double *dq = test_read(&p.dq);
        for (int64_t i = 0; i < desc.seq_q - desc.seq_kv; i++)
            for (int64_t d = 0; d < desc.head_dim; d++)
                assert_that(dq[test_q_row(&p, 0, 2, i) * desc.head_dim + d] == 0,
                            "dq of query %" PRId64, i);
        free(dq);
        test_problem_free(&p);
    }
}
END_TEST

/* A faster backward may add in any order, but must add the same. */
START_TEST(nondeterministic_gradients_are_right)
{
    for (int n = 0; n < 4; n++) {
        hpa_desc desc = test_medium_desc(test_dtypes[n]);
        desc.allow_nondeterministic = true;
        desc.causal = _i;
        test_problem p;
        test_problem_built(&p, &desc, TEST_BHSD);
        assert_backward_right("any order", &p);
        test_problem_free(&p);
    }
}
END_TEST

/* Non-finite values */

/* A NaN in d_out of one query reaches its dq and the key blocks of its row, and nothing else. */
START_TEST(a_nan_reaches_its_row_and_its_blocks)
{
    static const int64_t queries[] = {0, 31, 32, 77, 150, 199};
    for (int n = 0; n < 4; n++) {
        hpa_desc desc = test_medium_desc(test_dtypes[n]);
        desc.causal = _i % 2;
        const int64_t query = queries[_i / 2], head = 1, D = desc.head_dim;
        test_problem p;
        test_problem_built(&p, &desc, TEST_BHSD);
        test_forward(&p);
        test_backward(&p);
        test_csr csr = test_export(&p);
        const test_tensor *const tensors[] = {&p.dq, &p.dk, &p.dv};
        double *before[3], *after[3];
        for (int t = 0; t < 3; t++)
            before[t] = test_read(tensors[t]);
        double *d_out = test_read(&p.d_out);
        d_out[test_q_row(&p, 0, head, query) * D + 5] = (double)NAN;
        test_write(&p.d_out, d_out);
        test_backward(&p);
        for (int t = 0; t < 3; t++)
            after[t] = test_read(tensors[t]);
        for (int64_t h = 0; h < desc.heads_q; h++)
            for (int64_t i = 0; i < desc.seq_q; i++)
                for (int64_t d = 0; d < D; d++) {
                    const int64_t at = test_q_row(&p, 0, h, i) * D + d;
                    const bool reached = h == head && i == query;
                    assert_that(reached
                                    ? isnan(after[0][at])
                                    : test_is_unchanged(desc.dtype, after[0][at], before[0][at]),
                                "dq of query %" PRId64 " of head %" PRId64 " is %g, was %g", i, h,
                                after[0][at], before[0][at]);
                }
        for (int64_t h = 0; h < desc.heads_kv; h++)
            for (int64_t j = 0; j < desc.seq_kv; j++)
                for (int64_t d = 0; d < D; d++) {
                    const int64_t at = test_kv_row(&p, 0, h, j) * D + d;
                    const bool reached = h == 0 && test_attends(&p, &csr, 0, head, query, j);
                    assert_that(
                        reached ? isnan(after[1][at])
                                : test_is_unchanged(desc.dtype, after[1][at], before[1][at]),
                        "dk of key %" PRId64 " is %g, was %g", j, after[1][at], before[1][at]);
                    assert_that(
                        reached && d == 5
                            ? isnan(after[2][at])
                            : reached || test_is_unchanged(desc.dtype, after[2][at], before[2][at]),
                        "dv of key %" PRId64 " is %g, was %g", j, after[2][at], before[2][at]);
                }
        for (int t = 0; t < 3; t++) {
            free(before[t]);
            free(after[t]);
        }
        free(d_out);
        test_csr_free(&csr);
        test_problem_free(&p);
    }
}
END_TEST

/* A key that nobody keeps may hold anything. */
START_TEST(garbage_that_nobody_keeps_reaches_nothing)
{
    for (int n = 0; n < 4; n++) {
        hpa_desc desc = test_medium_desc(test_dtypes[n]);
        desc.sink = 0;
        desc.top_k = 0;
        desc.causal = false;
        desc.window = 0; /* nothing is kept... */
        test_problem p;
        test_problem_built(&p, &desc, TEST_BHSD);
        desc.top_k = 1000;
        test_problem q;
        test_problem_copy(&q, &p, &desc, TEST_BHSD);
        test_build(&q);
        test_csr csr = test_export(&q);
        for (int64_t r = 0; r <= csr.rows; r++) { /* ...or block 2 alone */
            csr.row_ptr[r] = r;
            csr.blocks[r] = 2;
        }
        test_import(&q, &csr);
        double *k = test_read(&q.k), *v = test_read(&q.v);
        for (int64_t m = 0; m < test_count(&q.k); m++)
            if (m / desc.head_dim % desc.seq_kv / desc.block_k != 2)
                k[m] = v[m] = m % 2 ? (double)NAN : (double)INFINITY;
        test_write(&q.k, k);
        test_write(&q.v, v);
        assert_forward_right("block 2", &q);
        assert_backward_right("block 2", &q);
        for (int64_t m = 0; m < test_count(&p.k); m++)
            k[m] = v[m] = (double)NAN;
        test_write(&p.k, k);
        test_write(&p.v, v);
        assert_forward_right("nothing", &p);
        assert_backward_right("nothing", &p);
        free(k);
        free(v);
        test_csr_free(&csr);
        test_problem_free(&q);
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
    assert_repeatable(&p, test_backward, test_hash_of_gradients);
    test_problem_free(&p);
}
END_TEST

static void run_all(test_problem *p)
{
    test_build(p);
    test_forward(p);
    test_backward(p);
}

START_TEST(threads_do_not_matter)
{
    const test_case c = test_few_case_at(_i);
    assert_threads_do_not_matter(&c, run_all, test_hash_of_gradients);
}
END_TEST

static Suite *backward_suite(void)
{
    Suite *suite = suite_create("backward");
    const int cases = test_case_count();
    TCase *t = test_add_case(suite, "every shape", 30);
    tcase_add_loop_test(t, equals_the_gradients_of_dense_attention, 0, cases);
    tcase_add_loop_test(t, threads_do_not_matter, 0, test_few_case_count());
    t = test_add_case(suite, "masks", 30);
    tcase_add_loop_test(t, the_dense_gradients_are_finite_differences, 0, 2);
    tcase_add_loop_test(t, random_problems_are_right, 0, 30);
    tcase_add_loop_test(t, any_imported_mask_is_followed, 0, 8);
    tcase_add_loop_test(t, queries_without_keys_get_and_give_nothing, 0, 2);
    tcase_add_loop_test(t, errors_are_at_most_three_times_those_of_naive_attention, 0, 4);
    t = test_add_case(suite, "requests", 30);
    tcase_add_test(t, no_d_lse_is_a_d_lse_of_zero);
    tcase_add_loop_test(t, unwanted_gradients_change_nothing, 0, 8);
    tcase_add_loop_test(t, accumulate_adds, 0, TEST_LAYOUTS);
    tcase_add_loop_test(t, sums_are_rounded_to_nearest_even, 0, 4);
    tcase_add_loop_test(t, no_cotangent_gives_exactly_no_gradient, 0, 4);
    tcase_add_loop_test(t, nondeterministic_gradients_are_right, 0, 2);
    t = test_add_case(suite, "numbers", 30);
    tcase_add_loop_test(t, a_nan_reaches_its_row_and_its_blocks, 0, 12);
    tcase_add_test(t, garbage_that_nobody_keeps_reaches_nothing);
    tcase_add_loop_test(t, a_hundred_runs_are_identical, 0, 4);
    return suite;
}

int main(void)
{
    return test_run(backward_suite());
}
