/* hpa_gradcheck_loss: any loss function of tensors. */
#include <hpa/gradcheck.h>

#include "own_attention.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A user's own attention */

static const int64_t q_elements = (int64_t)OWN_HEADS * OWN_QUERIES * OWN_DIM;
static const int64_t k_elements = (int64_t)OWN_KEYS * OWN_DIM;

static hpa_gradcheck_report check_own(enum own_fault fault)
{
    struct own_attention attention;
    hpa_gradcheck_input inputs[3];
    hpa_gradcheck_report report;
    own_attention_fill(&attention);
    own_attention_backward(&attention, fault);
    own_attention_inputs(&attention, inputs);
    ck_assert_int_eq(hpa_gradcheck_loss(own_attention_loss, &attention, inputs, 3, NULL, &report),
                     HPA_OK);
    return report;
}

START_TEST(own_attention_agrees)
{
    hpa_gradcheck_report report = check_own(OWN_CORRECT);
    ck_assert_msg(report.passed, "%s", report.message);
    ck_assert_str_eq(report.message, "");
    ck_assert_int_eq(report.n_results, 3);
    ck_assert_str_eq(report.results[1].name, "k");
    ck_assert_int_eq(report.results[0].checked, q_elements);
    ck_assert_int_eq(report.results[0].directions, 0);
    ck_assert_int_eq(report.checked, q_elements + 2 * k_elements);
    ck_assert(report.max_rel_error < 1e-5);
}
END_TEST

START_TEST(own_attention_with_a_fault_is_rejected)
{
    hpa_gradcheck_report report = check_own((enum own_fault)_i);
    ck_assert(!report.passed);
    ck_assert_str_ne(report.message, "");
}
END_TEST

START_TEST(fault_is_in_the_report)
{
    hpa_gradcheck_report report = check_own(OWN_ONE_ELEMENT);
    const hpa_gradcheck_result *v = &report.results[2];
    ck_assert(report.results[0].passed && report.results[1].passed && !v->passed);
    ck_assert_int_eq(v->ndim, 2);
    ck_assert_int_eq(v->index[0], 3);
    ck_assert_int_eq(v->index[1], 2);
    ck_assert(v->analytic - v->numeric > 1.9e-3);
    ck_assert(fabs(v->analytic - v->numeric) > v->allowed);
    ck_assert_ptr_nonnull(strstr(report.message, "[3, 2]"));
}
END_TEST

START_TEST(nan_stays_in_the_totals)
{
    hpa_gradcheck_report report = check_own(OWN_NAN);
    ck_assert(isnan(report.max_abs_error) && isnan(report.max_rel_error));
    ck_assert(isnan(report.results[1].analytic));
    ck_assert_int_eq(report.results[1].index[0], 6);
}
END_TEST

START_TEST(order_4_is_closer)
{
    struct own_attention attention;
    hpa_gradcheck_input inputs[3];
    hpa_gradcheck_report report;
    hpa_gradcheck_options options = hpa_gradcheck_options_default();
    options.eps = 0x1p-10;
    options.order = 4;
    own_attention_fill(&attention);
    own_attention_backward(&attention, OWN_CORRECT);
    own_attention_inputs(&attention, inputs);
    ck_assert_int_eq(
        hpa_gradcheck_loss(own_attention_loss, &attention, inputs, 3, &options, &report), HPA_OK);
    ck_assert(report.passed);
    ck_assert(report.max_rel_error < 1e-8);
}
END_TEST

START_TEST(inputs_are_put_back_bit_for_bit)
{
    struct own_attention attention, before;
    hpa_gradcheck_input inputs[3];
    hpa_gradcheck_report report;
    hpa_gradcheck_options options = hpa_gradcheck_options_default();
    options.samples = 3; /* and so directions as well */
    own_attention_fill(&attention);
    own_attention_backward(&attention, OWN_CORRECT);
    own_attention_inputs(&attention, inputs);
    memcpy(&before, &attention, sizeof before);
    ck_assert_int_eq(
        hpa_gradcheck_loss(own_attention_loss, &attention, inputs, 3, &options, &report), HPA_OK);
    ck_assert(report.passed);
    ck_assert_int_eq(report.results[0].directions, options.directions);
    ck_assert_mem_eq(&before, &attention, sizeof before);
}
END_TEST

/* Strides: a quarter of a larger array */

enum { WIDE = 6 };

struct strided {
    double x[WIDE][WIDE];
};

static double strided_loss(void *context)
{
    const struct strided *strided = context;
    double loss = 0;
    for (int i = 0; i < WIDE; i++)
        for (int j = 0; j < WIDE; j++)
            loss += (1 + i + 0.1 * j) * strided->x[i][j] * strided->x[i][j];
    return loss;
}

static hpa_tensor even_places(double *data)
{
    return (hpa_tensor){.data = data,
                        .dtype = HPA_F64,
                        .ndim = 2,
                        .shape = {WIDE / 2, WIDE / 2},
                        .stride = {INT64_C(2) * WIDE, 2}};
}

START_TEST(strided_views)
{
    struct strided strided, gradient;
    hpa_gradcheck_report report;
    for (int i = 0; i < WIDE; i++)
        for (int j = 0; j < WIDE; j++) {
            strided.x[i][j] = 0.3 * i - 0.2 * j + 0.1;
            bool seen = i % 2 == 0 && j % 2 == 0;
            gradient.x[i][j] = seen ? 2 * (1 + i + 0.1 * j) * strided.x[i][j] : NAN;
        }
    hpa_gradcheck_input input = {"x", even_places(&strided.x[0][0]),
                                 even_places(&gradient.x[0][0])};
    ck_assert_int_eq(hpa_gradcheck_loss(strided_loss, &strided, &input, 1, NULL, &report), HPA_OK);
    ck_assert_msg(report.passed, "%s", report.message);
    ck_assert_int_eq(report.results[0].checked, 9);

    gradient.x[4][2] += 0.1;
    ck_assert_int_eq(hpa_gradcheck_loss(strided_loss, &strided, &input, 1, NULL, &report), HPA_OK);
    ck_assert(!report.passed);
    ck_assert_int_eq(report.results[0].index[0], 2);
    ck_assert_int_eq(report.results[0].index[1], 1);
}
END_TEST

/* A large input: sampled, with directions */

enum { MANY = 20000 };

struct many {
    double x[MANY];
    double gradient[MANY];
};

static double many_loss(void *context)
{
    const struct many *many = context;
    double loss = 0;
    for (int i = 0; i < MANY; i++)
        loss += (i % 7 - 3.5) * sin(many->x[i]);
    return loss;
}

static hpa_gradcheck_report check_many(struct many *many, int64_t samples, int32_t directions,
                                       uint64_t seed)
{
    hpa_gradcheck_options options = hpa_gradcheck_options_default();
    hpa_gradcheck_report report;
    hpa_tensor view = {.dtype = HPA_F64, .ndim = 1, .shape = {MANY}, .stride = {1}};
    hpa_gradcheck_input input = {"x", view, view};
    input.value.data = many->x;
    input.gradient.data = many->gradient;
    options.samples = samples;
    options.directions = directions;
    options.seed = seed;
    options.eps = 1e-4;
    ck_assert_int_eq(hpa_gradcheck_loss(many_loss, many, &input, 1, &options, &report), HPA_OK);
    return report;
}

static struct many *new_many(void)
{
    struct many *many = malloc(sizeof *many);
    ck_assert_ptr_nonnull(many);
    for (int i = 0; i < MANY; i++) {
        many->x[i] = sin(1.7 * i);
        many->gradient[i] = (i % 7 - 3.5) * cos(many->x[i]);
    }
    return many;
}

START_TEST(large_inputs_are_sampled)
{
    struct many *many = new_many();
    hpa_gradcheck_report report = check_many(many, 50, 2, 1);
    ck_assert_msg(report.passed, "%s", report.message);
    ck_assert_int_eq(report.results[0].elements, MANY);
    ck_assert_int_eq(report.results[0].checked, 50);
    ck_assert_int_eq(report.results[0].directions, 2);
    ck_assert_int_eq(report.checked, 52);
    free(many);
}
END_TEST

START_TEST(direction_finds_what_samples_miss)
{
    struct many *many = new_many();
    many->gradient[12345] += 5; /* the norm of the whole gradient is about 200 */
    ck_assert(check_many(many, 50, 0, 1).passed);
    hpa_gradcheck_report report = check_many(many, 50, 4, 1);
    ck_assert(!report.passed);
    ck_assert_int_ge(report.results[0].direction, 0);
    ck_assert_int_eq(report.results[0].ndim, 0);
    ck_assert_ptr_nonnull(strstr(report.message, "direction"));
    free(many);
}
END_TEST

START_TEST(direction_finds_nan_that_samples_miss)
{
    struct many *many = new_many();
    many->gradient[777] = NAN;
    ck_assert(!check_many(many, 50, 1, 1).passed);
    free(many);
}
END_TEST

START_TEST(zero_samples_are_all)
{
    struct many *many = new_many();
    hpa_gradcheck_options options = hpa_gradcheck_options_default();
    hpa_gradcheck_report report;
    hpa_tensor view = {.dtype = HPA_F64, .ndim = 1, .shape = {300}, .stride = {1}};
    hpa_gradcheck_input input = {"x", view, view};
    input.value.data = many->x;
    input.gradient.data = many->gradient;
    options.samples = 0;
    options.eps = 1e-4;
    ck_assert_int_eq(hpa_gradcheck_loss(many_loss, many, &input, 1, &options, &report), HPA_OK);
    ck_assert_int_eq(report.results[0].checked, 300);
    ck_assert_int_eq(report.results[0].directions, 0);
    free(many);
}
END_TEST

START_TEST(equal_seeds_equal_checks)
{
    struct many *many = new_many();
    hpa_gradcheck_report first = check_many(many, 50, 2, 7), second = check_many(many, 50, 2, 7);
    hpa_gradcheck_report other = check_many(many, 50, 2, 8);
    ck_assert(first.results[0].numeric == second.results[0].numeric);
    ck_assert(first.max_abs_error == second.max_abs_error);
    ck_assert(first.max_abs_error != other.max_abs_error);
    free(many);
}
END_TEST

/* Losses that are no numbers, and nothing to check */

static double nan_loss(void *context)
{
    (void)context;
    return NAN;
}

static double constant_loss(void *context)
{
    (void)context;
    return 3;
}

static hpa_gradcheck_input one_number(double *value, double *gradient)
{
    hpa_tensor view = {.dtype = HPA_F64, .ndim = 1, .shape = {1}, .stride = {1}};
    hpa_gradcheck_input input = {"x", view, view};
    input.value.data = value;
    input.gradient.data = gradient;
    return input;
}

START_TEST(nan_loss_is_rejected)
{
    double x = 1, dx = 0;
    hpa_gradcheck_input input = one_number(&x, &dx);
    hpa_gradcheck_report report;
    ck_assert_int_eq(hpa_gradcheck_loss(nan_loss, NULL, &input, 1, NULL, &report), HPA_OK);
    ck_assert(!report.passed);
    dx = NAN;
    ck_assert_int_eq(hpa_gradcheck_loss(nan_loss, NULL, &input, 1, NULL, &report), HPA_OK);
    ck_assert(!report.passed);
}
END_TEST

START_TEST(zero_gradient_of_a_constant)
{
    double x = 1, dx = 0;
    hpa_gradcheck_input input = one_number(&x, &dx);
    hpa_gradcheck_report report;
    ck_assert_int_eq(hpa_gradcheck_loss(constant_loss, NULL, &input, 1, NULL, &report), HPA_OK);
    ck_assert(report.passed);
    ck_assert(report.max_rel_error == 0);
    dx = 1e-3;
    ck_assert_int_eq(hpa_gradcheck_loss(constant_loss, NULL, &input, 1, NULL, &report), HPA_OK);
    ck_assert(!report.passed);
    ck_assert(report.max_rel_error == 1);
}
END_TEST

START_TEST(empty_input)
{
    double x = 1, dx = 0;
    hpa_gradcheck_input inputs[2] = {one_number(&x, &dx), one_number(NULL, NULL)};
    inputs[1].value.shape[0] = inputs[1].gradient.shape[0] = 0;
    hpa_gradcheck_report report;
    ck_assert_int_eq(hpa_gradcheck_loss(constant_loss, NULL, inputs, 2, NULL, &report), HPA_OK);
    ck_assert(report.passed);
    ck_assert_int_eq(report.results[1].elements, 0);
    ck_assert_int_eq(report.checked, 1);
}
END_TEST

/* Arguments that cannot be */

static void assert_refused(hpa_gradcheck_loss_function loss, const hpa_gradcheck_input *inputs,
                           int32_t n, const hpa_gradcheck_options *options, hpa_status status,
                           const char *word)
{
    hpa_gradcheck_report report = {.passed = true};
    ck_assert_int_eq(hpa_gradcheck_loss(loss, NULL, inputs, n, options, &report), status);
    ck_assert(!report.passed);
    ck_assert_msg(strstr(report.message, word) != NULL, "\"%s\" does not say \"%s\"",
                  report.message, word);
}

START_TEST(bad_inputs_are_refused)
{
    double x = 1, dx = 0;
    hpa_gradcheck_input good = one_number(&x, &dx), bad;
    assert_refused(NULL, &good, 1, NULL, HPA_INVALID_ARGUMENT, "loss");
    assert_refused(constant_loss, NULL, 1, NULL, HPA_INVALID_ARGUMENT, "inputs");
    assert_refused(constant_loss, &good, 0, NULL, HPA_INVALID_ARGUMENT, "n_inputs is 0");
    assert_refused(constant_loss, &good, 17, NULL, HPA_INVALID_ARGUMENT, "n_inputs is 17");
    ck_assert_int_eq(hpa_gradcheck_loss(constant_loss, NULL, &good, 1, NULL, NULL),
                     HPA_INVALID_ARGUMENT);
    bad = good, bad.name = NULL;
    assert_refused(constant_loss, &bad, 1, NULL, HPA_INVALID_ARGUMENT, "name");
    bad = good, bad.value.data = NULL;
    assert_refused(constant_loss, &bad, 1, NULL, HPA_INVALID_ARGUMENT, "value of input x");
    bad = good, bad.gradient.dtype = HPA_F32;
    assert_refused(constant_loss, &bad, 1, NULL, HPA_INVALID_DTYPE, "gradient of input x");
    bad = good, bad.value.ndim = 5;
    assert_refused(constant_loss, &bad, 1, NULL, HPA_INVALID_SHAPE, "ndim 5");
    bad = good, bad.value.shape[0] = -1;
    assert_refused(constant_loss, &bad, 1, NULL, HPA_INVALID_SHAPE, "shape[0] -1");
    bad = good, bad.value.shape[0] = 2;
    assert_refused(constant_loss, &bad, 1, NULL, HPA_INVALID_SHAPE, "shape[0] 2");
    bad = good, bad.value.shape[0] = bad.gradient.shape[0] = 2, bad.value.stride[0] = 0;
    assert_refused(constant_loss, &bad, 1, NULL, HPA_INVALID_STRIDE, "stride[0] 0");
}
END_TEST

START_TEST(bad_options_are_refused)
{
    double x = 1, dx = 0;
    hpa_gradcheck_input input = one_number(&x, &dx);
    const hpa_gradcheck_options good = hpa_gradcheck_options_default();
    hpa_gradcheck_options bad = good;
    bad.eps = 0;
    assert_refused(constant_loss, &input, 1, &bad, HPA_INVALID_ARGUMENT, "eps");
    bad = good, bad.eps = NAN;
    assert_refused(constant_loss, &input, 1, &bad, HPA_INVALID_ARGUMENT, "eps");
    bad = good, bad.order = 3;
    assert_refused(constant_loss, &input, 1, &bad, HPA_INVALID_ARGUMENT, "order is 3");
    bad = good, bad.atol = -1;
    assert_refused(constant_loss, &input, 1, &bad, HPA_INVALID_ARGUMENT, "atol is -1");
    bad = good, bad.rtol = INFINITY;
    assert_refused(constant_loss, &input, 1, &bad, HPA_INVALID_ARGUMENT, "rtol is inf");
    bad = good, bad.samples = -2;
    assert_refused(constant_loss, &input, 1, &bad, HPA_INVALID_ARGUMENT, "samples is -2");
    bad = good, bad.directions = -3;
    assert_refused(constant_loss, &input, 1, &bad, HPA_INVALID_ARGUMENT, "directions is -3");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("gradcheck: any loss");
    TCase *own = tcase_create("own attention"), *views = tcase_create("views and samples");
    TCase *edges = tcase_create("edges");
    tcase_set_timeout(own, 60);
    tcase_set_timeout(views, 60);
    suite_add_tcase(suite, own);
    suite_add_tcase(suite, views);
    suite_add_tcase(suite, edges);
    tcase_add_test(own, own_attention_agrees);
    tcase_add_loop_test(own, own_attention_with_a_fault_is_rejected, OWN_WRONG_SIGN, OWN_FAULTS);
    tcase_add_test(own, fault_is_in_the_report);
    tcase_add_test(own, nan_stays_in_the_totals);
    tcase_add_test(own, order_4_is_closer);
    tcase_add_test(own, inputs_are_put_back_bit_for_bit);
    tcase_add_test(views, strided_views);
    tcase_add_test(views, large_inputs_are_sampled);
    tcase_add_test(views, direction_finds_what_samples_miss);
    tcase_add_test(views, direction_finds_nan_that_samples_miss);
    tcase_add_test(views, zero_samples_are_all);
    tcase_add_test(views, equal_seeds_equal_checks);
    tcase_add_test(edges, nan_loss_is_rejected);
    tcase_add_test(edges, zero_gradient_of_a_constant);
    tcase_add_test(edges, empty_input);
    tcase_add_test(edges, bad_inputs_are_refused);
    tcase_add_test(edges, bad_options_are_refused);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
