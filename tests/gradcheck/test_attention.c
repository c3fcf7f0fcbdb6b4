/* hpa_gradcheck_attention: the library's attention, and the report on it. */
#include <hpa/gradcheck.h>

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static hpa_desc description(void)
{
    hpa_desc desc = hpa_desc_default();
    desc.dtype = HPA_F64;
    desc.heads_q = 4;
    desc.heads_kv = 2;
    desc.head_dim = 16;
    desc.seq_q = desc.seq_kv = 129;
    desc.block_q = 32;
    desc.block_k = 16;
    desc.top_k = 32;
    desc.sink = 16;
    desc.window = 16;
    return desc;
}

static hpa_gradcheck_report check(const hpa_desc *desc, const int32_t *cu_seqlens_q,
                                  const int32_t *cu_seqlens_kv)
{
    hpa_gradcheck_report report;
    hpa_status status =
        hpa_gradcheck_attention(desc, cu_seqlens_q, cu_seqlens_kv, NULL, NULL, &report);
    ck_assert_msg(status == HPA_OK, "%s", report.message);
    return report;
}

static bool has_result(const hpa_gradcheck_report *report, const char *name)
{
    for (int32_t n = 0; n < report->n_results; n++)
        if (strcmp(report->results[n].name, name) == 0)
            return true;
    return false;
}

static const hpa_dtype dtypes[] = {HPA_F64, HPA_F32, HPA_F16, HPA_BF16};

/* Eight combinations: dtype, and the plain loops or the fast kernels. */
static hpa_desc combination(int n)
{
    hpa_desc desc = description();
    desc.dtype = dtypes[n % 4];
    desc.reference = n >= 4;
    return desc;
}

START_TEST(causal)
{
    hpa_desc desc = combination(_i);
    hpa_gradcheck_report report = check(&desc, NULL, NULL);
    ck_assert_msg(report.passed, "%s", report.message);
    ck_assert_str_eq(report.message, "");
    if (desc.dtype == HPA_F64)
        ck_assert(report.max_rel_error < 1e-6);
    ck_assert(report.fingerprint != 0);
    ck_assert(report.density > 0 && report.density < 0.95);
    const char *const names[] = {"out",        "lse",        "dq",
                                 "dk",         "dv",         "zero cotangent",
                                 "second run", "accumulate", "mask fingerprint"};
    ck_assert_int_eq(report.n_results, (int)(sizeof names / sizeof *names));
    for (int32_t n = 0; n < report.n_results; n++)
        ck_assert_str_eq(report.results[n].name, names[n]);
    ck_assert_int_eq(report.results[0].elements, INT64_C(4) * 129 * 16);
    ck_assert_int_eq(report.results[0].ndim, 4);
}
END_TEST

START_TEST(not_causal_sharing_heads)
{
    hpa_desc desc = combination(_i);
    desc.causal = false;
    desc.share_heads = true;
    desc.batch = 2;
    hpa_gradcheck_report report = check(&desc, NULL, NULL);
    ck_assert_msg(report.passed, "%s", report.message);
}
END_TEST

START_TEST(empty_rows_have_a_line)
{
    hpa_desc desc = combination(_i);
    desc.seq_q = 129;
    desc.seq_kv = 70; /* 59 queries stand before the first key */
    hpa_gradcheck_report report = check(&desc, NULL, NULL);
    ck_assert_msg(report.passed, "%s", report.message);
    ck_assert(has_result(&report, "empty rows"));
    const hpa_gradcheck_result *lse = &report.results[1];
    ck_assert_int_eq(lse->elements, INT64_C(4) * 129);
    ck_assert_int_eq(lse->checked, INT64_C(4) * 70);
    const hpa_gradcheck_result *empty = &report.results[report.n_results - 2];
    ck_assert_int_eq(empty->checked, INT64_C(4) * 59 * (16 + 1 + 16));
}
END_TEST

START_TEST(packed_with_empty_sequences)
{
    const int32_t cu_seqlens_q[] = {0, 5, 5, 70, 71, 100};
    const int32_t cu_seqlens_kv[] = {0, 40, 60, 100, 101, 101};
    hpa_desc desc = combination(_i);
    desc.packed = true;
    desc.batch = 5;
    desc.total_q = 100;
    desc.total_kv = 101;
    hpa_gradcheck_report report = check(&desc, cu_seqlens_q, cu_seqlens_kv);
    ck_assert_msg(report.passed, "%s", report.message);
    ck_assert(has_result(&report, "empty rows"));
    ck_assert_int_eq(report.results[0].ndim, 3);
}
END_TEST

START_TEST(no_tokens)
{
    hpa_desc desc = combination(_i);
    desc.seq_q = 0;
    hpa_gradcheck_report report = check(&desc, NULL, NULL);
    ck_assert_msg(report.passed, "%s", report.message);
    ck_assert_int_eq(report.results[2].elements, 0);
}
END_TEST

/* Kept as numbers that a tighter limit could not hold: the limit follows the dtype. */
START_TEST(allowed_error_follows_the_dtype)
{
    double allowed[4];
    for (int n = 1; n < 4; n++) {
        hpa_desc desc = combination(n);
        hpa_gradcheck_report report = check(&desc, NULL, NULL);
        const hpa_gradcheck_result *dk = &report.results[3];
        ck_assert(dk->dense_error > 0);
        ck_assert(dk->allowed >= 3 * dk->dense_error);
        ck_assert_int_eq(dk->checked, dk->elements);
        allowed[n] = dk->allowed;
    }
    ck_assert(allowed[1] < 1e-4);
    ck_assert(allowed[1] < allowed[2] / 100);
    ck_assert(allowed[2] < allowed[3] / 2);
    ck_assert(allowed[3] < 1);
}
END_TEST

START_TEST(equal_seeds_equal_reports)
{
    hpa_desc desc = description();
    hpa_gradcheck_options options = hpa_gradcheck_attention_options();
    hpa_gradcheck_report first, second, other;
    ck_assert_int_eq(hpa_gradcheck_attention(&desc, NULL, NULL, NULL, &options, &first), HPA_OK);
    ck_assert_int_eq(hpa_gradcheck_attention(&desc, NULL, NULL, NULL, &options, &second), HPA_OK);
    options.seed = 1;
    ck_assert_int_eq(hpa_gradcheck_attention(&desc, NULL, NULL, NULL, &options, &other), HPA_OK);
    ck_assert(other.passed);
    ck_assert_uint_eq(first.fingerprint, second.fingerprint);
    ck_assert(first.max_abs_error == second.max_abs_error);
    ck_assert_uint_ne(first.fingerprint, other.fingerprint);
}
END_TEST

START_TEST(training_is_taken_as_true)
{
    hpa_desc desc = description();
    desc.training = false;
    ck_assert(check(&desc, NULL, NULL).passed);
}
END_TEST

/* Arguments that cannot be */

static void assert_refused(const hpa_desc *desc, const int32_t *cu_seqlens_q,
                           const int32_t *cu_seqlens_kv, const hpa_gradcheck_options *options,
                           hpa_status status, const char *word)
{
    hpa_gradcheck_report report = {.passed = true};
    ck_assert_int_eq(
        hpa_gradcheck_attention(desc, cu_seqlens_q, cu_seqlens_kv, NULL, options, &report), status);
    ck_assert(!report.passed);
    ck_assert_msg(strstr(report.message, word) != NULL, "\"%s\" does not say \"%s\"",
                  report.message, word);
}

START_TEST(bad_descriptions_are_refused)
{
    hpa_desc desc = description();
    assert_refused(NULL, NULL, NULL, NULL, HPA_INVALID_ARGUMENT, "desc");
    ck_assert_int_eq(hpa_gradcheck_attention(&desc, NULL, NULL, NULL, NULL, NULL),
                     HPA_INVALID_ARGUMENT);
    desc.head_dim = 12;
    assert_refused(&desc, NULL, NULL, NULL, HPA_INVALID_ARGUMENT, "head_dim");
    desc = description();
    desc.dtype = HPA_I32;
    assert_refused(&desc, NULL, NULL, NULL, HPA_INVALID_DTYPE, "dtype");
    desc = description();
    desc.struct_size = 1;
    assert_refused(&desc, NULL, NULL, NULL, HPA_INVALID_STRUCT_SIZE, "struct_size");
}
END_TEST

START_TEST(bad_offsets_are_refused)
{
    const int32_t good[] = {0, 5, 9}, late[] = {1, 5, 9}, falling[] = {0, 9, 5};
    const int32_t short_by_one[] = {0, 5, 8}, too_long[] = {0, 9, 9};
    hpa_desc desc = description();
    desc.packed = true;
    desc.batch = 2;
    desc.seq_q = desc.seq_kv = 8;
    desc.total_q = desc.total_kv = 9;
    ck_assert(check(&desc, good, good).passed);
    assert_refused(&desc, NULL, good, NULL, HPA_INVALID_ARGUMENT, "cu_seqlens_q is NULL");
    assert_refused(&desc, good, NULL, NULL, HPA_INVALID_ARGUMENT, "cu_seqlens_kv is NULL");
    assert_refused(&desc, late, good, NULL, HPA_INVALID_ARGUMENT, "cu_seqlens_q[0] is 1");
    assert_refused(&desc, good, falling, NULL, HPA_INVALID_ARGUMENT, "cu_seqlens_kv");
    assert_refused(&desc, good, short_by_one, NULL, HPA_INVALID_ARGUMENT, "ends at 8");
    assert_refused(&desc, too_long, good, NULL, HPA_INVALID_ARGUMENT, "length of 9");
}
END_TEST

START_TEST(bad_options_are_refused)
{
    hpa_desc desc = description();
    hpa_gradcheck_options options = hpa_gradcheck_attention_options();
    options.order = 1;
    assert_refused(&desc, NULL, NULL, &options, HPA_INVALID_ARGUMENT, "order");
}
END_TEST

/* A tolerance that no difference can meet must fail: the comparison is a real one. */
START_TEST(tolerance_of_zero_fails)
{
    hpa_desc desc = description();
    hpa_gradcheck_options options = hpa_gradcheck_attention_options();
    hpa_gradcheck_report report;
    options.atol = options.rtol = 0;
    ck_assert_int_eq(hpa_gradcheck_attention(&desc, NULL, NULL, NULL, &options, &report), HPA_OK);
    ck_assert(!report.passed);
    ck_assert(report.results[0].passed && !report.results[2].passed);
    ck_assert(report.max_abs_error > 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("gradcheck: attention");
    TCase *shapes = tcase_create("shapes"), *arguments = tcase_create("arguments");
    tcase_set_timeout(shapes, 120);
    tcase_set_timeout(arguments, 60);
    suite_add_tcase(suite, shapes);
    suite_add_tcase(suite, arguments);
    tcase_add_loop_test(shapes, causal, 0, 8);
    tcase_add_loop_test(shapes, not_causal_sharing_heads, 0, 8);
    tcase_add_loop_test(shapes, empty_rows_have_a_line, 0, 8);
    tcase_add_loop_test(shapes, packed_with_empty_sequences, 0, 8);
    tcase_add_loop_test(shapes, no_tokens, 0, 8);
    tcase_add_test(shapes, allowed_error_follows_the_dtype);
    tcase_add_test(shapes, equal_seeds_equal_reports);
    tcase_add_test(shapes, training_is_taken_as_true);
    tcase_add_test(shapes, tolerance_of_zero_fails);
    tcase_add_test(arguments, bad_descriptions_are_refused);
    tcase_add_test(arguments, bad_offsets_are_refused);
    tcase_add_test(arguments, bad_options_are_refused);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
