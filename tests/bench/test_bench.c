/* test_bench.c - hpa-bench from outside: its JSON adds up, and bad arguments get one line. */
#include <hpa/hpa.h>

#include <check.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#define MAX_OUTPUT 65536
#define SMALL " --heads 4 --kv-heads 2 --dim 32 --repeat 1 --gemm-size 128 --threads 1"

static char output[MAX_OUTPUT];

/* Runs a program, keeps what it writes in output, and returns its exit status. */
static int run_program(const char *program, const char *arguments)
{
    char command[1024];
    snprintf(command, sizeof command, "%s %s", program, arguments);
    FILE *pipe = popen(command, "r");
    ck_assert_ptr_nonnull(pipe);
    output[fread(output, 1, sizeof output - 1, pipe)] = 0;
    int status = pclose(pipe);
    ck_assert(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static int run_bench(const char *arguments)
{
    return run_program(HPA_BENCH, arguments);
}

/* The report that hpa-bench has just written, and its results; to be given to json_decref. */
static json_t *parse_report(size_t n_results, json_t **results)
{
    json_t *report = json_loads(output, JSON_REJECT_DUPLICATES, NULL);
    ck_assert_ptr_nonnull(report);
    *results = json_object_get(report, "results");
    ck_assert_uint_eq(json_array_size(*results), n_results);
    return report;
}

static double number(const json_t *object, const char *name)
{
    const json_t *item = json_object_get(object, name);
    ck_assert_msg(json_is_number(item), "no number %s", name);
    double value = json_number_value(item);
    ck_assert_msg(isfinite(value), "%s is %g", name, value);
    return value;
}

static double positive(const json_t *object, const char *name)
{
    double value = number(object, name);
    ck_assert_msg(value > 0, "%s is %g", name, value);
    return value;
}

static void assert_near(const char *name, double got, double want)
{
    ck_assert_msg(fabs(got - want) <= 1e-9 * fabs(want), "%s is %.17g, expected %.17g", name, got,
                  want);
}

/* Heads and dim of SMALL. */
static void check_rates(const json_t *result, double seq)
{
    double pairs = positive(result, "density") * seq * (seq + 1) / 2 * 4;
    double gemm = positive(result, "gemm_gflops");
    double forward = 4 * pairs * 32 / positive(result, "forward_ms") * 1e-6;
    double backward = 10 * pairs * 32 / positive(result, "backward_ms") * 1e-6;
    positive(result, "mask_ms");
    assert_near("forward_gflops", number(result, "forward_gflops"), forward);
    assert_near("backward_gflops", number(result, "backward_gflops"), backward);
    assert_near("forward_vs_gemm", number(result, "forward_vs_gemm"), forward / gemm);
    assert_near("backward_vs_gemm", number(result, "backward_vs_gemm"), backward / gemm);
}

static void check_sizes(const json_t *result, int64_t seq)
{
    hpa_desc desc = hpa_desc_default();
    hpa_plan *plan;
    hpa_sizes sizes;
    desc.heads_q = 4;
    desc.heads_kv = 2;
    desc.head_dim = 32;
    desc.seq_q = desc.seq_kv = seq;
    desc.top_k = 512;
    desc.window = 256;
    desc.sink = 64;
    desc.num_threads = 1;
    ck_assert_int_eq(hpa_plan_create(&plan, &desc), HPA_OK);
    ck_assert_int_eq(hpa_plan_sizes(plan, &sizes), HPA_OK);
    hpa_plan_destroy(plan);
    double scratch = fmax((double)sizes.mask_scratch,
                          fmax((double)sizes.forward_scratch, (double)sizes.backward_scratch));
    ck_assert_double_eq(number(result, "mask_bytes"), (double)sizes.mask);
    ck_assert_double_eq(number(result, "scratch_bytes"), scratch);
}

START_TEST(json_adds_up)
{
    const int64_t lengths[] = {300, 2048};
    json_t *results;
    ck_assert_int_eq(run_bench("--json --seq 300,2048" SMALL), 0);
    json_t *report = parse_report(2, &results);
    for (size_t n = 0; n < 2; n++) {
        const json_t *result = json_array_get(results, n);
        ck_assert_double_eq(number(result, "seq"), (double)lengths[n]);
        check_rates(result, (double)lengths[n]);
        check_sizes(result, lengths[n]);
    }
    ck_assert_double_eq(number(json_array_get(results, 0), "density"), 1);
    ck_assert(number(json_array_get(results, 1), "density") < 1);
    json_decref(report);
}
END_TEST

START_TEST(dense_keeps_everything)
{
    json_t *results;
    ck_assert_int_eq(run_bench("--json --dense --seq 2048" SMALL), 0);
    json_t *report = parse_report(1, &results);
    ck_assert_double_eq(number(json_array_get(results, 0), "density"), 1);
    json_decref(report);
}
END_TEST

/* The last call but one of the other program differs from the first of those that are compared. */
START_TEST(repeats_are_compared)
{
    json_t *results;
    ck_assert_int_eq(run_bench("--json --check-repeats 3 --seq 300" SMALL), 0);
    json_t *report = parse_report(1, &results);
    ck_assert_double_eq(number(report, "check_repeats"), 3);
    json_decref(report);
    ck_assert_int_eq(run_bench("--check-repeats 3 --seq 300" SMALL), 0);
    ck_assert_ptr_nonnull(strstr(output, "3 more steps on equal inputs gave equal bits"));

    ck_assert_int_eq(run_program(HPA_UNEVEN_BENCH, "--check-repeats 3 --seq 300" SMALL " 2>&1"), 1);
    ck_assert_str_eq(output, "hpa-bench: 300 tokens: dk of step 2 differs from the first\n");
    ck_assert_int_eq(run_program(HPA_UNEVEN_BENCH, "--check-repeats 1 --seq 300" SMALL), 0);
}
END_TEST

static const char *dtypes[] = {"f64", "f32", "f16", "bf16"};

START_TEST(table_of_every_dtype)
{
    char arguments[256];
    snprintf(arguments, sizeof arguments, "--share-heads --seq 300,1025 --dtype %s" SMALL,
             dtypes[_i]);
    ck_assert_int_eq(run_bench(arguments), 0);
    ck_assert_ptr_nonnull(strstr(output, dtypes[_i]));
    ck_assert_ptr_nonnull(strstr(output, "\n     300 "));
    ck_assert_ptr_nonnull(strstr(output, "\n    1025 "));
}
END_TEST

START_TEST(help_lists_the_options)
{
    ck_assert_int_eq(run_bench("--help"), 0);
    ck_assert_ptr_nonnull(strstr(output, "--share-heads"));
    ck_assert_ptr_nonnull(strstr(output, "--preset"));
}
END_TEST

START_TEST(presets_set_what_was_not_given)
{
    static const struct {
        hpa_preset preset;
        const char *name;
    } presets[] = {{HPA_PRESET_FAST, "fast"},
                   {HPA_PRESET_BALANCED, "balanced"},
                   {HPA_PRESET_FAITHFUL, "faithful"}};
    for (size_t n = 0; n < 3; n++) {
        char arguments[256];
        hpa_desc want = hpa_desc_default();
        ck_assert_int_eq(hpa_desc_set_preset(&want, presets[n].preset), HPA_OK);
        snprintf(arguments, sizeof arguments, "--json --beam 3 --seq 300 --preset %s" SMALL,
                 presets[n].name);
        json_t *results;
        ck_assert_int_eq(run_bench(arguments), 0);
        json_t *report = parse_report(1, &results);
        ck_assert_double_eq(number(report, "block_q"), want.block_q);
        ck_assert_double_eq(number(report, "block_k"), want.block_k);
        ck_assert_double_eq(number(report, "beam"), 3);
        ck_assert_double_eq(number(report, "rep_tokens"), want.rep_tokens);
        ck_assert_double_eq(number(report, "leaf_tokens"), want.leaf_tokens);
        ck_assert_double_eq(number(report, "query_stride"), want.query_stride);
        ck_assert_double_eq(number(report, "search_span"), want.search_span);
        json_decref(report);
    }
}
END_TEST

static const struct {
    const char *arguments;
    const char *names; /* must be in the line */
} bad[] = {
    {"--seq 0", "--seq 0"},
    {"--seq 4096,", "--seq 4096,"},
    {"--seq 12x", "--seq 12x"},
    {"--seq ''", "--seq"},
    {"--heads", "heads"},
    {"--heads -1", "--heads -1"},
    {"--heads 99999999999999999999", "--heads 9999"},
    {"--threads two", "--threads two"},
    {"--dtype f8", "--dtype f8"},
    {"--backend hip", "--backend hip"},
    {"--no-such-option", "no-such-option"},
    {"8192", "8192"},
    {"--heads 3 --kv-heads 2", "heads"},
    {"--dim 7", "head_dim"},
    {"--block-k 48", "block_k"},
    {"--preset best", "--preset best"},
    {"--rep-tokens 0", "--rep-tokens 0"},
    {"--query-stride 1000", "--query-stride 1000"},
    {"--search-span 0", "--search-span 0"},
    {"--check-repeats -1", "--check-repeats -1"},
#ifdef HPA_WITH_CUDA
    {"--backend cuda", "HPA_NO_DEVICE"}, /* the environment hides it */
#else
    {"--backend cuda", "HPA_BACKEND_NOT_BUILT"},
#endif
};

START_TEST(bad_arguments_get_one_line)
{
    char arguments[256];
    snprintf(arguments, sizeof arguments, "%s 2>&1 >/dev/null", bad[_i].arguments);
    ck_assert_int_eq(run_bench(arguments), 2);
    ck_assert_msg(strstr(output, bad[_i].names), "'%s' does not name %s", output, bad[_i].names);
    ck_assert_ptr_nonnull(strchr(output, '\n'));
    ck_assert_msg(!strchr(output, '\n')[1], "more than one line: %s", output);

    snprintf(arguments, sizeof arguments, "%s 2>/dev/null", bad[_i].arguments);
    ck_assert_int_eq(run_bench(arguments), 2);
    ck_assert_str_eq(output, "");
}
END_TEST

START_TEST(full_disk_is_reported)
{
    ck_assert_int_eq(run_bench("--json --seq 64" SMALL " 2>&1 >/dev/full"), 1);
    ck_assert_ptr_nonnull(strstr(output, "could not be written"));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("bench");
    TCase *cases = tcase_create("hpa-bench");
    tcase_set_timeout(cases, 60);
    tcase_add_test(cases, json_adds_up);
    tcase_add_test(cases, dense_keeps_everything);
    tcase_add_test(cases, repeats_are_compared);
    tcase_add_loop_test(cases, table_of_every_dtype, 0, sizeof dtypes / sizeof *dtypes);
    tcase_add_test(cases, presets_set_what_was_not_given);
    tcase_add_test(cases, help_lists_the_options);
    tcase_add_loop_test(cases, bad_arguments_get_one_line, 0, sizeof bad / sizeof *bad);
    tcase_add_test(cases, full_disk_is_reported);
    suite_add_tcase(suite, cases);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
