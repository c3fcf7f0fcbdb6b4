/* The checker is tested too: backwards that are wrong in one way each must be rejected, and the
 * same backward without the fault accepted. */
#include "broken_backward.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static hpa_desc description(bool share_heads, bool causal)
{
    hpa_desc desc = hpa_desc_default();
    desc.dtype = HPA_F64;
    desc.batch = 2;
    desc.heads_q = 4;
    desc.heads_kv = 2;
    desc.head_dim = 16;
    desc.seq_q = desc.seq_kv = 97;
    desc.block_q = 16;
    desc.block_k = 16;
    desc.top_k = 16;
    desc.sink = 16;
    desc.window = 16;
    desc.causal = causal;
    desc.share_heads = share_heads;
    return desc;
}

static hpa_gradcheck_report check(const hpa_desc *desc, enum fault fault,
                                  const hpa_gradcheck_options *options)
{
    struct broken_backward context = {desc, fault};
    hpa_gradcheck_backward backward = {broken_backward_run, &context};
    hpa_gradcheck_report report;
    hpa_status status = hpa_gradcheck_attention(desc, NULL, NULL, &backward, options, &report);
    ck_assert_msg(status == HPA_OK, "%s: %s", fault_names[fault], report.message);
    return report;
}

static const hpa_gradcheck_result *result_of(const hpa_gradcheck_report *report, const char *name)
{
    for (int32_t n = 0; n < report->n_results; n++)
        if (strcmp(report->results[n].name, name) == 0)
            return &report->results[n];
    ck_abort_msg("no result %s", name);
    return NULL;
}

static void assert_rejected(const hpa_desc *desc, enum fault fault,
                            const hpa_gradcheck_options *options)
{
    hpa_gradcheck_report report = check(desc, fault, options);
    ck_assert_msg(!report.passed, "%s was accepted", fault_names[fault]);
    ck_assert_str_ne(report.message, "");
}

START_TEST(correct_backward_is_accepted)
{
    hpa_desc desc = description(_i & 1, _i & 2);
    hpa_gradcheck_report report = check(&desc, CORRECT, NULL);
    ck_assert_msg(report.passed, "%s", report.message);
    ck_assert(report.max_rel_error < 1e-6);
    ck_assert(report.density < 0.9);
}
END_TEST

START_TEST(broken_backward_is_rejected)
{
    hpa_desc causal = description(false, true), shared = description(true, false);
    assert_rejected(&causal, (enum fault)_i, NULL);
    assert_rejected(&shared, (enum fault)_i, NULL);
}
END_TEST

/* With so few samples that most faults fall between them, the directions must find them. */
START_TEST(broken_backward_is_rejected_by_few_samples)
{
    hpa_desc desc = description(false, true);
    hpa_gradcheck_options options = hpa_gradcheck_attention_options();
    options.samples = 8;
    options.directions = 2;
    ck_assert(check(&desc, CORRECT, &options).passed);
    assert_rejected(&desc, (enum fault)_i, &options);
}
END_TEST

START_TEST(broken_backward_is_rejected_in_f32)
{
    hpa_desc desc = description(false, true);
    desc.dtype = HPA_F32;
    ck_assert(check(&desc, CORRECT, NULL).passed);
    assert_rejected(&desc, (enum fault)_i, NULL);
}
END_TEST

START_TEST(fault_is_found_in_the_right_gradient)
{
    hpa_desc desc = description(false, true);
    hpa_gradcheck_report report = check(&desc, SKIP_BLOCK_OF_ROW, NULL);
    const hpa_gradcheck_result *dq = result_of(&report, "dq");
    ck_assert(!dq->passed);
    ck_assert_int_eq(dq->ndim, 4);
    ck_assert_int_eq(dq->index[0], 0);  /* the first sequence, */
    ck_assert_int_eq(dq->index[1], 0);  /* its first head, */
    ck_assert_int_ge(dq->index[2], 96); /* the last query block */
    ck_assert(result_of(&report, "dk")->passed && result_of(&report, "dv")->passed);

    report = check(&desc, SHIFT_TRANSPOSE, NULL);
    ck_assert(result_of(&report, "dq")->passed);
    ck_assert(!result_of(&report, "dk")->passed && !result_of(&report, "dv")->passed);
}
END_TEST

/* Backwards that are right, but for one thing around it */

static int runs;
enum { SECOND_RUN = 2 }; /* after the first, and that with zero cotangents */

static double *f64_of(const hpa_tensor *tensor)
{
    return tensor->data;
}

#define WRAPPER(name)                                                             \
    static hpa_status name(void *context, const hpa_plan *plan, const void *mask, \
                           const hpa_inputs *in, const hpa_outputs *out,          \
                           const hpa_gradients *gradients, const hpa_exec *exec)

WRAPPER(one_nan)
{
    hpa_status status = hpa_backward(plan, mask, in, out, gradients, exec);
    (void)context;
    f64_of(&gradients->dv)[1234] = NAN;
    return status;
}

WRAPPER(one_element_unwritten)
{
    double before = f64_of(&gradients->dq)[77];
    hpa_status status = hpa_backward(plan, mask, in, out, gradients, exec);
    (void)context;
    f64_of(&gradients->dq)[77] = before;
    return status;
}

WRAPPER(one_element_off)
{
    hpa_status status = hpa_backward(plan, mask, in, out, gradients, exec);
    (void)context;
    f64_of(&gradients->dk)[500] += 1e-5;
    return status;
}

WRAPPER(wrong_sign)
{
    hpa_status status = hpa_backward(plan, mask, in, out, gradients, exec);
    const hpa_tensor *dk = &gradients->dk;
    (void)context;
    for (int64_t n = 0; n < dk->shape[0] * dk->shape[1] * dk->shape[2] * dk->shape[3]; n++)
        f64_of(dk)[n] *= -1;
    return status;
}

WRAPPER(never_accumulates)
{
    hpa_gradients overwriting = *gradients;
    (void)context;
    overwriting.accumulate = false;
    return hpa_backward(plan, mask, in, out, &overwriting, exec);
}

WRAPPER(other_bits_each_time)
{
    hpa_status status = hpa_backward(plan, mask, in, out, gradients, exec);
    double *first = f64_of(&gradients->dv);
    (void)context;
    if (runs++ == SECOND_RUN && *first != 0)
        *first = nextafter(*first, 10);
    return status;
}

WRAPPER(never_quite_zero)
{
    hpa_status status = hpa_backward(plan, mask, in, out, gradients, exec);
    (void)context;
    f64_of(&gradients->dq)[3] += 1e-300; /* lost in anything but a zero */
    return status;
}

/* Replaces the mask by one that keeps the first block of each row alone. */
WRAPPER(changes_the_mask)
{
    hpa_status status = hpa_backward(plan, mask, in, out, gradients, exec);
    hpa_mask_stats stats;
    (void)context;
    if (status != HPA_OK || hpa_mask_statistics(plan, mask, &stats, exec) != HPA_OK)
        return HPA_INTERNAL_ERROR;
    int64_t *row_ptr = calloc((size_t)stats.rows + 1, sizeof *row_ptr);
    int32_t *blocks = calloc((size_t)stats.rows + 1, sizeof *blocks);
    for (int64_t row = 0; row <= stats.rows; row++)
        row_ptr[row] = row;
    status = hpa_mask_import_csr(plan, in, (void *)(uintptr_t)mask, row_ptr, blocks, exec);
    free(row_ptr);
    free(blocks);
    return status;
}

WRAPPER(damages_the_mask)
{
    hpa_status status = hpa_backward(plan, mask, in, out, gradients, exec);
    (void)context;
    memset((void *)(uintptr_t)mask, 0xa5, 64);
    return status;
}

WRAPPER(fails)
{
    (void)context, (void)plan, (void)mask, (void)in, (void)out, (void)gradients, (void)exec;
    return HPA_INTERNAL_ERROR;
}

static hpa_gradcheck_report check_wrapper(const hpa_gradcheck_backward *backward)
{
    hpa_desc desc = description(false, true);
    hpa_gradcheck_report report;
    hpa_gradcheck_options options = hpa_gradcheck_attention_options();
    options.samples = 0; /* one element is enough */
    runs = 0;
    ck_assert_int_eq(hpa_gradcheck_attention(&desc, NULL, NULL, backward, &options, &report),
                     HPA_OK);
    return report;
}

static const struct {
    hpa_status (*run)(void *, const hpa_plan *, const void *, const hpa_inputs *,
                      const hpa_outputs *, const hpa_gradients *, const hpa_exec *);
    const char *name; /* of the result that fails */
} wrapped[] = {
    {one_nan, "dv"},
    {one_element_unwritten, "dq"},
    {one_element_off, "dk"},
    {wrong_sign, "dk"},
    {never_accumulates, "accumulate: dq"},
    {other_bits_each_time, "second run: dv"},
    {never_quite_zero, "zero cotangent: dq"},
    {changes_the_mask, "mask fingerprint"},
    {damages_the_mask, "mask fingerprint"},
};

START_TEST(one_thing_wrong_is_rejected)
{
    hpa_gradcheck_backward backward = {wrapped[_i].run, NULL};
    hpa_gradcheck_report report = check_wrapper(&backward);
    ck_assert_msg(!report.passed, "%s passed", wrapped[_i].name);
    ck_assert(!result_of(&report, wrapped[_i].name)->passed);
    ck_assert_str_ne(report.message, "");
}
END_TEST

START_TEST(nothing_wrong_is_accepted)
{
    hpa_gradcheck_report report = check_wrapper(NULL);
    ck_assert_msg(report.passed, "%s", report.message);
    ck_assert_str_eq(report.message, "");
}
END_TEST

START_TEST(failing_backward_is_an_error)
{
    hpa_desc desc = description(false, true);
    hpa_gradcheck_backward backward = {fails, NULL};
    hpa_gradcheck_report report;
    ck_assert_int_eq(hpa_gradcheck_attention(&desc, NULL, NULL, &backward, NULL, &report),
                     HPA_INTERNAL_ERROR);
    ck_assert(!report.passed);
    ck_assert_ptr_nonnull(strstr(report.message, "HPA_INTERNAL_ERROR"));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("gradcheck: broken backwards");
    TCase *faults = tcase_create("faults"), *wrappers = tcase_create("one thing wrong");
    tcase_set_timeout(faults, 120);
    tcase_set_timeout(wrappers, 120);
    suite_add_tcase(suite, faults);
    suite_add_tcase(suite, wrappers);
    tcase_add_loop_test(faults, correct_backward_is_accepted, 0, 4);
    tcase_add_loop_test(faults, broken_backward_is_rejected, CORRECT + 1, FAULTS);
    tcase_add_loop_test(faults, broken_backward_is_rejected_by_few_samples, CORRECT + 1, FAULTS);
    tcase_add_loop_test(faults, broken_backward_is_rejected_in_f32, CORRECT + 1, FAULTS);
    tcase_add_test(faults, fault_is_found_in_the_right_gradient);
    tcase_add_loop_test(wrappers, one_thing_wrong_is_rejected, 0,
                        (int)(sizeof wrapped / sizeof *wrapped));
    tcase_add_test(wrappers, nothing_wrong_is_accepted);
    tcase_add_test(wrappers, failing_backward_is_an_error);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
