/* What hpa-gradcheck prints: tables for people, an object for programs. */
#include "program.h"

#include "compare.h"
#include "convert.h"

#include <cjson/cJSON.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
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

/* JSON. A number that is not finite becomes null, and the case that has one has failed. */

static cJSON *result_json(const hpa_gradcheck_result *result)
{
    static const char *const kinds[] = {
        [HPA_GRADCHECK_GRADIENT] = "gradient",
        [HPA_GRADCHECK_OUTPUT] = "output",
        [HPA_GRADCHECK_PROPERTY] = "property",
    };
    cJSON *object = cJSON_CreateObject();
    cJSON_AddStringToObject(object, "name", result->name);
    cJSON_AddStringToObject(object, "kind", kinds[result->kind]);
    cJSON_AddBoolToObject(object, "passed", result->passed);
    cJSON_AddNumberToObject(object, "elements", (double)result->elements);
    cJSON_AddNumberToObject(object, "checked", (double)result->checked);
    cJSON_AddNumberToObject(object, "directions", (double)result->directions);
    cJSON_AddNumberToObject(object, "max_abs_error", result->max_abs_error);
    cJSON_AddNumberToObject(object, "max_rel_error", result->max_rel_error);
    if (result->direction >= 0)
        cJSON_AddNumberToObject(object, "worst_direction", (double)result->direction);
    cJSON *index = cJSON_AddArrayToObject(object, "worst_index");
    for (int32_t n = 0; n < result->ndim; n++)
        cJSON_AddItemToArray(index, cJSON_CreateNumber((double)result->index[n]));
    cJSON_AddNumberToObject(object, "analytic", result->analytic);
    cJSON_AddNumberToObject(object, "numeric", result->numeric);
    cJSON_AddNumberToObject(object, "allowed", result->allowed);
    cJSON_AddNumberToObject(object, "dense_error", result->dense_error);
    return object;
}

static cJSON *case_json(const struct gradcheck_case *checked)
{
    char description[DESCRIPTION_SIZE], fingerprint[17];
    const hpa_gradcheck_report *report = &checked->report;
    describe(description, &checked->desc);
    snprintf(fingerprint, sizeof fingerprint, "%016" PRIx64, report->fingerprint);
    cJSON *object = cJSON_CreateObject();
    cJSON_AddStringToObject(object, "name", checked->name);
    cJSON_AddStringToObject(object, "description", description);
    cJSON_AddBoolToObject(object, "passed", report->passed);
    cJSON_AddNumberToObject(object, "checked", (double)report->checked);
    cJSON_AddNumberToObject(object, "max_abs_error", report->max_abs_error);
    cJSON_AddNumberToObject(object, "max_rel_error", report->max_rel_error);
    cJSON_AddNumberToObject(object, "density", report->density);
    cJSON_AddStringToObject(object, "fingerprint", fingerprint);
    cJSON_AddNumberToObject(object, "seconds", checked->seconds);
    cJSON_AddStringToObject(object, "message", report->message);
    cJSON *results = cJSON_AddArrayToObject(object, "results");
    for (int32_t n = 0; n < report->n_results; n++)
        cJSON_AddItemToArray(results, result_json(&report->results[n]));
    return object;
}

bool print_json(const struct gradcheck_case *cases, int n)
{
    hpa_gradcheck_report total = totals(cases, n);
    cJSON *object = cJSON_CreateObject();
    cJSON_AddBoolToObject(object, "passed", total.passed);
    cJSON_AddNumberToObject(object, "max_abs_error", total.max_abs_error);
    cJSON_AddNumberToObject(object, "max_rel_error", total.max_rel_error);
    cJSON_AddNumberToObject(object, "checked", (double)total.checked);
    cJSON_AddStringToObject(object, "backend", cases[0].desc.device == HPA_CUDA ? "cuda" : "cpu");
    cJSON_AddStringToObject(object, "dtype", dtype_name(cases[0].desc.dtype));
    cJSON_AddBoolToObject(object, "reference", cases[0].desc.reference);
    cJSON_AddNumberToObject(object, "seconds", total_seconds(cases, n));
    cJSON *array = cJSON_AddArrayToObject(object, "cases");
    for (int i = 0; i < n; i++)
        cJSON_AddItemToArray(array, case_json(&cases[i]));
    char *text = cJSON_Print(object);
    bool printed = text && puts(text) >= 0;
    free(text);
    cJSON_Delete(object);
    return printed && written();
}
