/* The program hpa-gradcheck: exit statuses, the table and the JSON object. */
#define _POSIX_C_SOURCE 200809L

#include <check.h>
#include <jansson.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#define SMALL " --seq 40 --heads 2 --kv-heads 1 --dim 16 --block-q 16"

struct run {
    int status;
    char *text; /* stdout */
    char error[1024];
    size_t size;
};

static void read_all(FILE *file, struct run *run)
{
    char piece[4096];
    size_t n;
    while ((n = fread(piece, 1, sizeof piece, file)) > 0) {
        char *longer = realloc(run->text, run->size + n + 1);
        ck_assert_ptr_nonnull(longer);
        memcpy(longer + run->size, piece, n);
        run->text = longer;
        run->size += n;
        run->text[run->size] = 0;
    }
}

/* stderr goes through a file of its own. */
static struct run run_command(const char *program, const char *arguments)
{
    struct run run = {.text = calloc(1, 1)};
    char command[2048], errors[] = "gradcheck-stderr-XXXXXX";
    int descriptor = mkstemp(errors);
    ck_assert_int_ge(descriptor, 0);
    FILE *file = fdopen(descriptor, "r");
    ck_assert_ptr_nonnull(file);
    snprintf(command, sizeof command, "'%s' %s 2>%s", program, arguments, errors);
    FILE *pipe = popen(command, "r");
    ck_assert_ptr_nonnull(pipe);
    read_all(pipe, &run);
    int status = pclose(pipe);
    ck_assert(WIFEXITED(status));
    run.status = WEXITSTATUS(status);
    run.error[fread(run.error, 1, sizeof run.error - 1, file)] = 0;
    fclose(file);
    remove(errors);
    return run;
}

static struct run run_program(const char *arguments)
{
    return run_command(GRADCHECK_PROGRAM, arguments);
}

static void release(struct run *run)
{
    free(run->text);
}

START_TEST(table_can_be_read)
{
    static const char *const words[] = {"dq",         "dk",       "dv",
                                        "out",        "lse",      "abs error",
                                        "rel error",  "worst at", "zero cotangent",
                                        "second run", "passed"};
    struct run run = run_program(SMALL);
    ck_assert_msg(run.status == 0, "%s%s", run.text, run.error);
    ck_assert_str_eq(run.error, "");
    for (size_t n = 0; n < sizeof words / sizeof *words; n++)
        ck_assert_msg(strstr(run.text, words[n]) != NULL, "no \"%s\" in %s", words[n], run.text);
    release(&run);
}
END_TEST

static json_t *parse(const struct run *run)
{
    json_error_t error;
    json_t *object = json_loads(run->text, JSON_REJECT_DUPLICATES, &error);
    ck_assert_msg(object != NULL, "no JSON: %s: %s%s", error.text, run->text, run->error);
    return object;
}

static double number(const json_t *object, const char *name)
{
    const json_t *item = json_object_get(object, name);
    ck_assert_msg(json_is_number(item), "%s is not a number", name);
    return json_number_value(item);
}

static bool passed(const json_t *object)
{
    const json_t *item = json_object_get(object, "passed");
    ck_assert(json_is_boolean(item));
    return json_is_true(item);
}

static const json_t *result_of(const json_t *object, const char *name)
{
    const json_t *first = json_array_get(json_object_get(object, "cases"), 0);
    const json_t *results = json_object_get(first, "results");
    for (size_t n = 0; n < json_array_size(results); n++) {
        const json_t *result = json_array_get(results, n);
        if (strcmp(json_string_value(json_object_get(result, "name")), name) == 0)
            return result;
    }
    ck_abort_msg("no result %s", name);
    return NULL;
}

START_TEST(json_says_the_same)
{
    struct run run = run_program("--json" SMALL);
    json_t *object = parse(&run);
    ck_assert_int_eq(run.status, 0);
    ck_assert(passed(object));
    ck_assert(number(object, "max_rel_error") < 1e-6);
    ck_assert(number(object, "max_abs_error") > 0);
    /* dq has 2 heads, dk and dv have 1; a direction each besides */
    ck_assert(number(object, "checked") == 4 * 40 * 16 + 3);
    const json_t *dq = result_of(object, "dq");
    ck_assert(passed(dq));
    ck_assert(number(dq, "checked") == 2 * 40 * 16);
    ck_assert(fabs(number(dq, "analytic") - number(dq, "numeric")) <= number(dq, "allowed"));
    json_decref(object);
    release(&run);
}
END_TEST

START_TEST(every_dtype_and_the_plain_loops)
{
    static const char *const arguments[] = {
        "--dtype f64",  "--dtype f32", "--dtype f16",
        "--dtype bf16", "--reference", "--reference --dtype bf16",
    };
    char line[256];
    snprintf(line, sizeof line, "--json %s" SMALL, arguments[_i]);
    struct run run = run_program(line);
    json_t *object = parse(&run);
    ck_assert_msg(run.status == 0 && passed(object), "%s", run.text);
    bool reference = strstr(arguments[_i], "reference") != NULL;
    ck_assert_int_eq(json_is_true(json_object_get(object, "reference")), reference);
    json_decref(object);
    release(&run);
}
END_TEST

START_TEST(shapes_on_the_command_line)
{
    static const char *const arguments[] = {
        "--batch 2 --no-causal --share-heads" SMALL,
        "--seq 33 --seq-kv 70 --block-q 16 --beam 1 --samples 100 --seed 3",
        "--packed 5,0,33,1 --heads 4 --kv-heads 2 --dim 8 --block-q 16",
        "--top-k 0 --sink 0 --window 20" SMALL,
        "--top-k 1000 --block-k 64" SMALL,
    };
    struct run run = run_program(arguments[_i]);
    ck_assert_msg(run.status == 0, "%s%s", run.text, run.error);
    release(&run);
}
END_TEST

START_TEST(sweep_passes)
{
    struct run run = run_program("--json --samples 300");
    json_t *object = parse(&run);
    ck_assert_msg(run.status == 0 && passed(object), "%s", run.text);
    ck_assert_uint_ge(json_array_size(json_object_get(object, "cases")), 20);
    ck_assert(number(object, "checked") > 5000);
    ck_assert(number(object, "max_rel_error") < 1e-6);
    json_decref(object);
    release(&run);
}
END_TEST

static void assert_one_line(const char *text, const char *word)
{
    const char *end = strchr(text, '\n');
    ck_assert_msg(end && end[1] == 0, "not one line: \"%s\"", text);
    ck_assert_msg(strstr(text, word) != NULL, "\"%s\" does not say \"%s\"", text, word);
}

static const struct {
    const char *arguments;
    const char *word;
} refused[] = {
    {"--backend cuda" SMALL, "CUDA"},
    {"--backend tpu", "tpu"},
    {"--dtype f8", "f8"},
    {"--seq many", "many"},
    {"--seq 5x", "5x"},
    {"--seq -1", "-1"},
    {"--seq 99999999999999999999", "65536"},
    {"--seq", "no value"},
    {"--colour", "--colour"},
    {"--json=yes", "--json=yes"},
    {"extra", "extra"},
    {"--dim 12", "head_dim"},
    {"--heads 3 --kv-heads 2", "heads_q"},
    {"--block-k 48", "block_k"},
    {"--block-q 24", "block_q"},
    {"--top-k 3000000000", "2147483647"},
    {"--beam 0", "beam"},
    {"--packed ''", "packed"},
    {"--packed 1,,2", "1,,2"},
    {"--packed 1,x", "1,x"},
    {"--packed 4,5 --seq 3", "--packed"},
    {"--samples -4", "-4"},
    {"--seed 1.5", "1.5"},
};

START_TEST(bad_arguments_are_refused)
{
    struct run run = run_program(refused[_i].arguments);
    ck_assert_msg(run.status == 2, "%s gave %d", refused[_i].arguments, run.status);
    ck_assert_str_eq(run.text, "");
    assert_one_line(run.error, refused[_i].word);
    release(&run);
}
END_TEST

START_TEST(report_that_cannot_be_written)
{
    struct run run = run_program(SMALL " >/dev/full");
    ck_assert_int_eq(run.status, 2);
    assert_one_line(run.error, "written");
    release(&run);
}
END_TEST

START_TEST(help)
{
    struct run run = run_program("--help");
    ck_assert_int_eq(run.status, 0);
    ck_assert_ptr_nonnull(strstr(run.text, "--share-heads"));
    ck_assert_ptr_nonnull(strstr(run.text, "Exit status"));
    release(&run);
}
END_TEST

/* The same program over a backward that is wrong in one element of dv. */
START_TEST(disagreement_is_1)
{
    struct run run = run_command(WRONG_GRADCHECK_PROGRAM, SMALL);
    ck_assert_int_eq(run.status, 1);
    ck_assert_ptr_nonnull(strstr(run.text, "FAILED"));
    ck_assert_ptr_nonnull(strstr(run.text, "dv does not agree"));
    release(&run);

    run = run_command(WRONG_GRADCHECK_PROGRAM, "--json" SMALL);
    json_t *object = parse(&run);
    ck_assert_int_eq(run.status, 1);
    ck_assert(!passed(object));
    ck_assert(!passed(result_of(object, "dv")));
    ck_assert(passed(result_of(object, "dk")));
    ck_assert(number(object, "max_rel_error") > 5e-4);
    json_decref(object);
    release(&run);
}
END_TEST

START_TEST(json_of_what_is_no_number)
{
    setenv("HPA_TEST_NAN", "1", 1);
    struct run run = run_command(WRONG_GRADCHECK_PROGRAM, "--json" SMALL);
    json_t *object = parse(&run);
    ck_assert_int_eq(run.status, 1);
    ck_assert(!passed(object));
    ck_assert(json_is_null(json_object_get(object, "max_abs_error")));
    const json_t *dv = result_of(object, "dv");
    ck_assert(!passed(dv));
    ck_assert(json_is_null(json_object_get(dv, "analytic")));
    ck_assert(json_is_real(json_object_get(dv, "numeric")));
    json_decref(object);
    release(&run);
}
END_TEST

START_TEST(sweep_that_disagrees_is_1)
{
    struct run run = run_command(WRONG_GRADCHECK_PROGRAM, "--samples 20");
    ck_assert_int_eq(run.status, 1);
    ck_assert_ptr_nonnull(strstr(run.text, "FAILED"));
    release(&run);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("gradcheck: the program");
    TCase *program = tcase_create("program");
    tcase_set_timeout(program, 120);
    suite_add_tcase(suite, program);
    tcase_add_test(program, table_can_be_read);
    tcase_add_test(program, json_says_the_same);
    tcase_add_loop_test(program, every_dtype_and_the_plain_loops, 0, 6);
    tcase_add_loop_test(program, shapes_on_the_command_line, 0, 5);
    tcase_add_test(program, sweep_passes);
    tcase_add_loop_test(program, bad_arguments_are_refused, 0,
                        (int)(sizeof refused / sizeof *refused));
    tcase_add_test(program, report_that_cannot_be_written);
    tcase_add_test(program, help);
    tcase_add_test(program, disagreement_is_1);
    tcase_add_test(program, json_of_what_is_no_number);
    tcase_add_test(program, sweep_that_disagrees_is_1);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
