/* What hpa-gradcheck prints: tables for people, an object for programs. */
#include "program.h"

#include "compare.h"
#include "convert.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define DESCRIPTION_SIZE 320

/* "f64, causal, batch 1, heads 2/1, 160 x 160 tokens, ..." */
static void describe(char text[DESCRIPTION_SIZE], const hpa_desc *desc)
{
    char lengths[96];
    if (desc->packed)
        snprintf(lengths, sizeof lengths, "%" PRId64 " tokens packed into %" PRId64 " sequences",
                 desc->total_q, desc->batch);
    else
        snprintf(lengths, sizeof lengths, "batch %" PRId64 ", %" PRId64 " x %" PRId64 " tokens",
                 desc->batch, desc->seq_q, desc->seq_kv);
    snprintf(text, DESCRIPTION_SIZE,
             "%s, %s, heads %" PRId64 "/%" PRId64 "%s, %s, head_dim %" PRId64 ", blocks %" PRId32
             " x %" PRId32 ", top_k %" PRId32 ", sink %" PRId32 ", window %" PRId32
             ", beam %" PRId32,
             dtype_name(desc->dtype), desc->causal ? "causal" : "not causal", desc->heads_q,
             desc->heads_kv, desc->share_heads ? " sharing masks" : "", lengths, desc->head_dim,
             desc->block_q, desc->block_k, desc->top_k, desc->sink, desc->window, desc->beam);
}

static const char *verdict(bool passed)
{
    return passed ? "ok" : "FAILED";
}

static const char *verdict_in_words(bool passed)
{
    return passed ? "passed" : "FAILED";
}

static void print_table_head(bool narrow, const char *first)
{
    printf("%-18s %8s %8s %9s %9s  %-18s %14s %14s", first, "checked", "of", "abs error",
           "rel error", "worst at", "library", "checker");
    printf(narrow ? " %9s %9s\n" : "\n", "allowed", "dense's");
}

static void print_result(const hpa_gradcheck_result *result, bool narrow, const char *first)
{
    char place[PLACE_SIZE];
    place_print(place, result);
    printf("%-18s %8" PRId64 " %8" PRId64 " %9.2e %9.2e  %-18s %14.7g %14.7g", first,
           result->checked + result->directions, result->elements, result->max_abs_error,
           result->max_rel_error, place, result->analytic, result->numeric);
    if (narrow)
        printf(" %9.2e %9.2e", result->allowed, result->dense_error);
    printf("  %s\n", verdict(result->passed));
}

static void print_results(const struct gradcheck_case *checked)
{
    bool narrow = checked->desc.dtype != HPA_F64;
    print_table_head(narrow, "");
    for (int32_t n = 0; n < checked->report.n_results; n++)
        print_result(&checked->report.results[n], narrow, checked->report.results[n].name);
    if (!checked->report.passed)
        printf("%s\n", checked->report.message);
}

static bool written(void)
{
    return fflush(stdout) == 0 && !ferror(stdout);
}

bool print_single(const struct gradcheck_case *checked)
{
    char description[DESCRIPTION_SIZE];
    describe(description, &checked->desc);
    printf("%s\n%.1f%% of the pairs kept, mask %016" PRIx64 "\n\n", description,
           100 * checked->report.density, checked->report.fingerprint);
    print_results(checked);
    printf("\n%s: %" PRId64 " values of dq, dk and dv compared in %.2f s\n",
           verdict_in_words(checked->report.passed), checked->report.checked, checked->seconds);
    return written();
}

bool print_sweep_line(const struct gradcheck_case *checked, int number, int n)
{
    if (number == 1)
        printf("%5s  %-38s %6s %9s %10s %10s %8s\n", "", "dq, dk and dv", "kept", "checked",
               "abs error", "rel error", "seconds");
    printf("%2d/%d  %-38s %5.1f%% %9" PRId64 " %10.2e %10.2e %8.2f  %s\n", number, n, checked->name,
           100 * checked->report.density, checked->report.checked, checked->report.max_abs_error,
           checked->report.max_rel_error, checked->seconds, verdict(checked->report.passed));
    if (!checked->report.passed) {
        char description[DESCRIPTION_SIZE];
        describe(description, &checked->desc);
        printf("\n%s\n", description);
        print_results(checked);
        printf("\n");
    }
    return written();
}

/* How large a part of what is allowed the worst error is. Failed and not finite: infinite. */
static double share_of_allowed(const hpa_gradcheck_result *result)
{
    double share = fabs(result->analytic - result->numeric) / result->allowed;
    if (result->passed)
        return isfinite(share) ? share : 0;
    return share > 1 ? share : INFINITY;
}

/* Of the results of one name, that of the case with the worst comparison; checked and elements are
 * of all cases. */
static hpa_gradcheck_result worst_of(const struct gradcheck_case *cases, int n, const char *name,
                                     const struct gradcheck_case **where)
{
    hpa_gradcheck_result worst = {.passed = true, .direction = -1};
    *where = NULL;
    for (int i = 0; i < n; i++)
        for (int32_t r = 0; r < cases[i].report.n_results; r++) {
            const hpa_gradcheck_result *result = &cases[i].report.results[r];
            if (strcmp(result->name, name) != 0)
                continue;
            hpa_gradcheck_result before = worst;
            if (!*where || share_of_allowed(result) > share_of_allowed(&before)) {
                worst = *result;
                *where = &cases[i];
            }
            worst.elements = before.elements + result->elements;
            worst.checked = before.checked + result->checked;
            worst.directions = before.directions + result->directions;
        }
    return worst;
}

static double total_seconds(const struct gradcheck_case *cases, int n)
{
    double seconds = 0;
    for (int i = 0; i < n; i++)
        seconds += cases[i].seconds;
    return seconds;
}

static hpa_gradcheck_report totals(const struct gradcheck_case *cases, int n)
{
    hpa_gradcheck_report total = {.passed = true};
    for (int i = 0; i < n; i++) {
        const hpa_gradcheck_report *report = &cases[i].report;
        total.passed = total.passed && report->passed;
        total.checked += report->checked;
        total.max_abs_error = keep_maximum(total.max_abs_error, report->max_abs_error);
        total.max_rel_error = keep_maximum(total.max_rel_error, report->max_rel_error);
    }
    return total;
}

bool print_sweep_end(const struct gradcheck_case *cases, int n)
{
    static const char *const names[] = {"out", "lse", "dq", "dk", "dv"};
    bool narrow = cases[0].desc.dtype != HPA_F64;
    hpa_gradcheck_report total = totals(cases, n);
    printf("\n");
    print_table_head(narrow, "");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const struct gradcheck_case *where;
        hpa_gradcheck_result worst = worst_of(cases, n, names[i], &where);
        print_result(&worst, narrow, names[i]);
        if (where)
            printf("%-18s in \"%s\"\n", "", where->name);
    }
    printf("\n%s: %d cases, %" PRId64 " values of dq, dk and dv compared, largest absolute error "
           "%.2e, largest relative error %.2e, %.2f s\n",
           verdict_in_words(total.passed), n, total.checked, total.max_abs_error,
           total.max_rel_error, total_seconds(cases, n));
    return written();
}

/* JSON. A number that is not finite becomes null, and the case that has one has failed. What there
 * is no memory for becomes NULL, which makes NULL of all that it is put into. */

static json_t *number_json(double number)
{
    return isfinite(number) ? json_real(number) : json_null();
}

static json_t *index_json(const hpa_gradcheck_result *result)
{
    json_t *index = json_array();
    for (int32_t n = 0; n < result->ndim; n++)
        if (json_array_append_new(index, json_integer(result->index[n]))) {
            json_decref(index);
            return NULL;
        }
    return index;
}

static json_t *result_json(const hpa_gradcheck_result *result)
{
    static const char *const kinds[] = {
        [HPA_GRADCHECK_GRADIENT] = "gradient",
        [HPA_GRADCHECK_OUTPUT] = "output",
        [HPA_GRADCHECK_PROPERTY] = "property",
    };
    bool direction = result->direction >= 0;
    /* clang-format off */
    return json_pack("{ss ss sb sI sI sI so so so* so so so so so}",
                     "name", result->name,
                     "kind", kinds[result->kind],
                     "passed", result->passed,
                     "elements", (json_int_t)result->elements,
                     "checked", (json_int_t)result->checked,
                     "directions", (json_int_t)result->directions,
                     "max_abs_error", number_json(result->max_abs_error),
                     "max_rel_error", number_json(result->max_rel_error),
                     "worst_direction", direction ? json_integer(result->direction) : NULL,
                     "worst_index", index_json(result),
                     "analytic", number_json(result->analytic),
                     "numeric", number_json(result->numeric),
                     "allowed", number_json(result->allowed),
                     "dense_error", number_json(result->dense_error));
    /* clang-format on */
}

static json_t *results_json(const hpa_gradcheck_report *report)
{
    json_t *results = json_array();
    for (int32_t n = 0; n < report->n_results; n++)
        if (json_array_append_new(results, result_json(&report->results[n]))) {
            json_decref(results);
            return NULL;
        }
    return results;
}

static json_t *case_json(const struct gradcheck_case *checked)
{
    char description[DESCRIPTION_SIZE], fingerprint[17];
    const hpa_gradcheck_report *report = &checked->report;
    describe(description, &checked->desc);
    snprintf(fingerprint, sizeof fingerprint, "%016" PRIx64, report->fingerprint);
    /* clang-format off */
    return json_pack("{ss ss sb sI so so so ss so ss so}",
                     "name", checked->name,
                     "description", description,
                     "passed", report->passed,
                     "checked", (json_int_t)report->checked,
                     "max_abs_error", number_json(report->max_abs_error),
                     "max_rel_error", number_json(report->max_rel_error),
                     "density", number_json(report->density),
                     "fingerprint", fingerprint,
                     "seconds", number_json(checked->seconds),
                     "message", report->message,
                     "results", results_json(report));
    /* clang-format on */
}

static json_t *cases_json(const struct gradcheck_case *cases, int n)
{
    json_t *array = json_array();
    for (int i = 0; i < n; i++)
        if (json_array_append_new(array, case_json(&cases[i]))) {
            json_decref(array);
            return NULL;
        }
    return array;
}

bool print_json(const struct gradcheck_case *cases, int n)
{
    hpa_gradcheck_report total = totals(cases, n);
    /* clang-format off */
    json_t *object = json_pack("{sb so so sI ss ss sb so so}",
                               "passed", total.passed,
                               "max_abs_error", number_json(total.max_abs_error),
                               "max_rel_error", number_json(total.max_rel_error),
                               "checked", (json_int_t)total.checked,
                               "backend", cases[0].desc.device == HPA_CUDA ? "cuda" : "cpu",
                               "dtype", dtype_name(cases[0].desc.dtype),
                               "reference", cases[0].desc.reference,
                               "seconds", number_json(total_seconds(cases, n)),
                               "cases", cases_json(cases, n));
    /* clang-format on */
    bool printed = object && !json_dumpf(object, stdout, JSON_INDENT(2)) && putchar('\n') != EOF;
    json_decref(object);
    return printed && written();
}
