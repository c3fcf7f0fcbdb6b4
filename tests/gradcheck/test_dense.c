/* The numeric side itself: dense attention, its quick differences, and what they are made of. */
#include "../../gradcheck/compare.h"
#include "../../gradcheck/convert.h"
#include "../../gradcheck/dense.h"
#include "../../gradcheck/dense_difference.h"
#include "../../gradcheck/difference.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A problem with a random mask, which need not be one that the search would make. */

static hpa_desc description(bool causal, bool share_heads, int64_t seq_q, int64_t seq_kv)
{
    hpa_desc desc = hpa_desc_default();
    desc.dtype = HPA_F64;
    desc.batch = 2;
    desc.heads_q = 4;
    desc.heads_kv = 2;
    desc.head_dim = 8;
    desc.seq_q = seq_q;
    desc.seq_kv = seq_kv;
    desc.block_q = 16;
    desc.block_k = 16;
    desc.causal = causal;
    desc.share_heads = share_heads;
    return desc;
}

static void keep_at_random(struct problem *problem, struct random *random)
{
    for (int64_t n = 0; n < problem_mask_rows(problem) * problem->key_blocks; n++)
        problem->kept[n] = random_uniform(random) < 0.6;
}

static const struct {
    bool causal, share_heads;
    int64_t seq_q, seq_kv;
} shapes[] = {{true, false, 40, 40}, {false, true, 33, 50}, {true, true, 50, 33}};

static void create(struct problem *problem, int shape)
{
    struct random random = {(uint64_t)shape};
    hpa_desc desc = description(shapes[shape].causal, shapes[shape].share_heads,
                                shapes[shape].seq_q, shapes[shape].seq_kv);
    ck_assert_int_eq(problem_create(problem, &desc, NULL, NULL, &random), HPA_OK);
    keep_at_random(problem, &random);
}

static int64_t query_elements(const struct problem *problem)
{
    return problem->tokens_q * problem->heads_q * problem->head_dim;
}

static int64_t key_elements(const struct problem *problem)
{
    return problem->tokens_kv * problem->heads_kv * problem->head_dim;
}

static double *numbers(int64_t n)
{
    double *values = calloc((size_t)n + 1, sizeof *values);
    ck_assert_ptr_nonnull(values);
    return values;
}

static double loss_of(void *context)
{
    return dense_loss(context);
}

static hpa_gradcheck_input flat_input(const char *name, double *value, double *gradient, int64_t n)
{
    hpa_tensor view = {.dtype = HPA_F64, .ndim = 1, .shape = {n}, .stride = {1}};
    hpa_gradcheck_input input = {name, view, view};
    input.value.data = value;
    input.gradient.data = gradient;
    return input;
}

/* Holds three gradients against differences of the whole loss, every row computed anew. */
static hpa_gradcheck_report against_whole_loss(struct problem *problem, double *dq, double *dk,
                                               double *dv)
{
    int64_t n_q = query_elements(problem), n_kv = key_elements(problem);
    hpa_gradcheck_input inputs[] = {flat_input("q", problem->q, dq, n_q),
                                    flat_input("k", problem->k, dk, n_kv),
                                    flat_input("v", problem->v, dv, n_kv)};
    hpa_gradcheck_options options = hpa_gradcheck_attention_options();
    hpa_gradcheck_report report;
    options.samples = 150;
    ck_assert_int_eq(hpa_gradcheck_loss(loss_of, problem, inputs, 3, &options, &report), HPA_OK);
    return report;
}

START_TEST(quick_differences_are_those_of_the_whole_loss)
{
    struct problem problem;
    create(&problem, _i);
    int64_t n_q = query_elements(&problem), n_kv = key_elements(&problem);
    double *dq = numbers(n_q), *dk = numbers(n_kv), *dv = numbers(n_kv);
    struct dense_difference *difference = dense_difference_create(&problem, 0x1p-10, 4);
    ck_assert_ptr_nonnull(difference);
    for (int64_t n = 0; n < n_q; n++)
        dq[n] = dense_difference_q(difference, n);
    for (int64_t n = n_kv - 1; n >= 0; n--) { /* any order will do */
        dk[n] = dense_difference_k(difference, n);
        dv[n] = dense_difference_v(difference, n);
    }
    dense_difference_destroy(difference);

    hpa_gradcheck_report report = against_whole_loss(&problem, dq, dk, dv);
    ck_assert_msg(report.passed, "%s", report.message);
    dk[n_kv / 2] += 0.1 + fabs(dk[n_kv / 2]);
    ck_assert(!against_whole_loss(&problem, dq, dk, dv).passed); /* by a direction at least */
    free(dq);
    free(dk);
    free(dv);
    problem_destroy(&problem);
}
END_TEST

START_TEST(dense_backward_is_the_gradient_of_the_loss)
{
    struct problem problem;
    create(&problem, _i);
    int64_t n_q = query_elements(&problem), n_kv = key_elements(&problem);
    double *dq = numbers(n_q), *dk = numbers(n_kv), *dv = numbers(n_kv);
    dense_backward(&problem, dq, dk, dv);
    hpa_gradcheck_report report = against_whole_loss(&problem, dq, dk, dv);
    ck_assert_msg(report.passed, "%s", report.message);
    free(dq);
    free(dk);
    free(dv);
    problem_destroy(&problem);
}
END_TEST

/* By hand: one query at position 1 of three keys, the last hidden by causality. */
START_TEST(dense_forward_by_hand)
{
    struct problem problem;
    struct random random = {1};
    hpa_desc desc = description(true, false, 2, 3);
    desc.batch = desc.heads_q = desc.heads_kv = 1;
    desc.scale = 0.5;
    ck_assert_int_eq(problem_create(&problem, &desc, NULL, NULL, &random), HPA_OK);
    memset(problem.kept, 1, (size_t)(problem_mask_rows(&problem) * problem.key_blocks));
    for (int d = 0; d < 8; d++) {
        problem.q[d] = d == 0 ? 2 : 0;
        problem.k[d] = d == 0 ? 1 : 5;      /* score 1 */
        problem.k[8 + d] = d == 0 ? 2 : -3; /* score 2 */
        problem.v[d] = 10 + d;
        problem.v[8 + d] = 20 + d;
    }
    double out[16], lse[2], e = exp(1);
    dense_forward(&problem, out, lse);
    ck_assert(fabs(lse[0] - log(e + e * e)) < 1e-15);
    for (int d = 0; d < 8; d++)
        ck_assert(fabs(out[d] - (10 + d + 10 * e / (1 + e))) < 1e-14);
    ck_assert(problem_visible(&problem, 0, 0, 0, 1) && !problem_visible(&problem, 0, 0, 0, 2));
    ck_assert(problem_visible(&problem, 0, 0, 1, 2));
    problem_destroy(&problem);
}
END_TEST

START_TEST(nothing_kept_is_zero)
{
    struct problem problem;
    create(&problem, 0);
    memset(problem.kept, 0, (size_t)(problem_mask_rows(&problem) * problem.key_blocks));
    int64_t n_q = query_elements(&problem), n_kv = key_elements(&problem);
    double *out = numbers(n_q), *lse = numbers(n_q), *dq = numbers(n_q);
    double *dk = numbers(n_kv), *dv = numbers(n_kv);
    dense_forward(&problem, out, lse);
    dense_backward(&problem, dq, dk, dv);
    ck_assert(dense_loss(&problem) == 0);
    for (int64_t n = 0; n < n_q; n++)
        ck_assert(out[n] == 0 && dq[n] == 0);
    for (int64_t n = 0; n < n_q / problem.head_dim; n++)
        ck_assert(lse[n] == -INFINITY);
    free(out);
    free(lse);
    free(dq);
    free(dk);
    free(dv);
    problem_destroy(&problem);
}
END_TEST

static double error_of_rounded(struct problem *problem, hpa_dtype dtype)
{
    int64_t n_q = query_elements(problem), n_kv = key_elements(problem);
    double *exact = numbers(n_q), *out = numbers(n_q), *lse = numbers(n_q), *dq = numbers(n_q);
    double *dk = numbers(n_kv), *dv = numbers(n_kv), error = 0;
    struct rounded_attention rounded = {out, lse, dq, dk, dv};
    ck_assert_int_eq(dense_rounded(problem, dtype, &rounded), HPA_OK);
    dense_forward(problem, exact, NULL);
    for (int64_t n = 0; n < n_q; n++)
        error = fmax(error, fabs(exact[n] - out[n]));
    dense_backward(problem, exact, dk, dv);
    for (int64_t n = 0; n < n_q; n++)
        error = fmax(error, fabs(exact[n] - dq[n]));
    free(exact);
    free(out);
    free(lse);
    free(dq);
    free(dk);
    free(dv);
    return error;
}

/* Dense attention in a narrow dtype is close to the exact one, and the closer the wider. */
START_TEST(rounded_attention_errs_as_its_dtype_does)
{
    struct problem problem;
    create(&problem, 1);
    double f32 = error_of_rounded(&problem, HPA_F32), f16 = error_of_rounded(&problem, HPA_F16);
    double bf16 = error_of_rounded(&problem, HPA_BF16);
    ck_assert_msg(f32 > 1e-9 && f32 < 5e-6, "f32 errs by %g", f32);
    ck_assert_msg(f16 > 1e-5 && f16 < 2e-2, "f16 errs by %g", f16);
    ck_assert_msg(bf16 > 3 * f16 && bf16 < 2e-1, "bf16 errs by %g", bf16);
    problem_destroy(&problem);
}
END_TEST

/* Pieces */

static double cubic(void *context, double step)
{
    double x = *(double *)context + step;
    return x * x * x;
}

static double quintic(void *context, double step)
{
    double x = *(double *)context + step;
    return x * x * x * x * x;
}

START_TEST(quotients_err_as_their_order_says)
{
    double x = 1.5;
    /* e^2 f''' / 6 = e^2, and e^4 f''''' / 30 = 4 e^4, both exact for these powers */
    ck_assert(fabs(difference_quotient(cubic, &x, 0.125, 2) - 6.75 - 0.015625) < 1e-13);
    ck_assert(fabs(difference_quotient(cubic, &x, 0.125, 4) - 6.75) < 1e-13);
    ck_assert(fabs(difference_quotient(quintic, &x, 0.125, 4) - 25.3125 + 4 * 0x1p-12) < 1e-12);
}
END_TEST

START_TEST(exact_sum_keeps_what_a_sum_loses)
{
    struct exact_sum sum = {0};
    exact_sum_add(&sum, 1);
    exact_sum_add(&sum, 1e100);
    exact_sum_add(&sum, 1);
    exact_sum_add(&sum, -1e100);
    ck_assert(exact_sum_value(&sum) == 2);
}
END_TEST

START_TEST(samples_are_ascending_and_in_range)
{
    struct random random = {3};
    hpa_gradcheck_options options = hpa_gradcheck_options_default();
    const int64_t sizes[] = {0, 1, 9, 10, 11, 1000003};
    options.samples = 10;
    for (size_t n = 0; n < sizeof sizes / sizeof *sizes; n++) {
        struct pairs pairs;
        ck_assert_int_eq(pairs_create(&pairs, sizes[n], &options, false, &random), HPA_OK);
        ck_assert_int_eq(pairs.n_elements, sizes[n] < 10 ? sizes[n] : 10);
        ck_assert_int_eq(pairs.n_directions, sizes[n] > 10 ? options.directions : 0);
        for (int64_t i = 0; i < pairs.n_elements; i++) {
            ck_assert_int_ge(pairs.element[i], i == 0 ? 0 : pairs.element[i - 1] + 1);
            ck_assert_int_lt(pairs.element[i], sizes[n]);
        }
        pairs_destroy(&pairs);
    }
}
END_TEST

/* Every 16-bit pattern comes back from a double as it was; NaN as some NaN. */
START_TEST(narrow_dtypes_round_trip)
{
    hpa_dtype dtype = _i ? HPA_BF16 : HPA_F16;
    for (uint32_t bits = 0; bits < 65536; bits++) {
        uint16_t stored = (uint16_t)bits, again;
        double value;
        dtype_decode(dtype, &stored, &value, 1);
        dtype_encode(dtype, &value, &again, 1);
        if (isnan(value)) {
            dtype_decode(dtype, &again, &value, 1);
            ck_assert(isnan(value));
        } else {
            ck_assert_uint_eq(again, stored);
        }
    }
}
END_TEST

static uint16_t encoded(hpa_dtype dtype, double value)
{
    uint16_t stored;
    dtype_encode(dtype, &value, &stored, 1);
    return stored;
}

START_TEST(narrow_dtypes_round_to_nearest_even)
{
    ck_assert_uint_eq(encoded(HPA_F16, 1), 0x3c00);
    ck_assert_uint_eq(encoded(HPA_F16, -2), 0xc000);
    ck_assert_uint_eq(encoded(HPA_F16, 65504), 0x7bff);
    ck_assert_uint_eq(encoded(HPA_F16, 65519), 0x7bff);
    ck_assert_uint_eq(encoded(HPA_F16, 65520), 0x7c00);
    ck_assert_uint_eq(encoded(HPA_F16, 1e9), 0x7c00);
    ck_assert_uint_eq(encoded(HPA_F16, 1 + 0x1p-11), 0x3c00);     /* a tie, down to even */
    ck_assert_uint_eq(encoded(HPA_F16, 1 + 3 * 0x1p-11), 0x3c02); /* a tie, up to even */
    ck_assert_uint_eq(encoded(HPA_F16, 0x1p-24), 0x0001);
    ck_assert_uint_eq(encoded(HPA_F16, 0x1p-25), 0x0000);
    ck_assert_uint_eq(encoded(HPA_F16, 3 * 0x1p-25), 0x0002);
    ck_assert_uint_eq(encoded(HPA_BF16, 1), 0x3f80);
    ck_assert_uint_eq(encoded(HPA_BF16, 1 + 0x1p-8), 0x3f80);
    ck_assert_uint_eq(encoded(HPA_BF16, 1 + 3 * 0x1p-8), 0x3f82);
    ck_assert_uint_eq(encoded(HPA_BF16, -INFINITY), 0xff80);
    ck_assert_uint_eq(encoded(HPA_BF16, 3.4e38), 0x7f80);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("gradcheck: the numeric side");
    TCase *dense = tcase_create("dense attention"), *pieces = tcase_create("pieces");
    const int n_shapes = (int)(sizeof shapes / sizeof *shapes);
    tcase_set_timeout(dense, 120);
    tcase_set_timeout(pieces, 60);
    suite_add_tcase(suite, dense);
    suite_add_tcase(suite, pieces);
    tcase_add_loop_test(dense, quick_differences_are_those_of_the_whole_loss, 0, n_shapes);
    tcase_add_loop_test(dense, dense_backward_is_the_gradient_of_the_loss, 0, n_shapes);
    tcase_add_test(dense, dense_forward_by_hand);
    tcase_add_test(dense, nothing_kept_is_zero);
    tcase_add_test(dense, rounded_attention_errs_as_its_dtype_does);
    tcase_add_test(pieces, quotients_err_as_their_order_says);
    tcase_add_test(pieces, exact_sum_keeps_what_a_sum_loses);
    tcase_add_test(pieces, samples_are_ascending_and_in_range);
    tcase_add_loop_test(pieces, narrow_dtypes_round_trip, 0, 2);
    tcase_add_test(pieces, narrow_dtypes_round_to_nearest_even);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
