#include "compare.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static int64_t sample_count(int64_t n, int64_t samples)
{
    return samples == 0 || samples > n ? n : samples;
}

/* Draws one element from each of count equal stretches, so that they are ascending and distinct. */
static void sample_elements(int64_t *element, int64_t count, int64_t n, struct random *random)
{
    int64_t stretch = count ? n / count : 0;
    int64_t rest = count ? n % count : 0;
    int64_t begin = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t length = stretch + (i < rest);
        element[i] = begin;
        if (length > 1)
            element[i] += (int64_t)(random_bits(random) % (uint64_t)length);
        begin += length;
    }
}

hpa_status pairs_create(struct pairs *pairs, int64_t n, const hpa_gradcheck_options *options,
                        bool always_directions, struct random *random)
{
    int64_t n_elements = sample_count(n, options->samples);
    bool directions = n > 0 && (always_directions || n_elements < n);
    *pairs = (struct pairs){.n_elements = n_elements,
                            .n_directions = directions ? options->directions : 0};
    size_t slots = (size_t)(pairs->n_elements + pairs->n_directions + 1);
    pairs->element = calloc(slots, sizeof *pairs->element);
    pairs->analytic = calloc(slots, sizeof *pairs->analytic);
    pairs->numeric = calloc(slots, sizeof *pairs->numeric);
    if (!pairs->element || !pairs->analytic || !pairs->numeric) {
        pairs_destroy(pairs);
        return HPA_OUT_OF_MEMORY;
    }
    sample_elements(pairs->element, n_elements, n, random);
    return HPA_OK;
}

void pairs_destroy(struct pairs *pairs)
{
    free(pairs->element);
    free(pairs->analytic);
    free(pairs->numeric);
    *pairs = (struct pairs){0};
}

struct comparison pairs_comparison(const struct pairs *pairs, double atol, double rtol)
{
    return (struct comparison){.n_elements = pairs->n_elements,
                               .n_directions = pairs->n_directions,
                               .element = pairs->element,
                               .analytic = pairs->analytic,
                               .numeric = pairs->numeric,
                               .atol = atol,
                               .rtol = rtol,
                               .floor = QUOTIENT_FLOOR};
}

void result_start(hpa_gradcheck_result *result, const char *name, hpa_gradcheck_kind kind,
                  const struct shape *shape)
{
    *result = (hpa_gradcheck_result){.kind = kind, .passed = true, .elements = 1, .direction = -1};
    snprintf(result->name, sizeof result->name, "%s", name);
    for (int32_t n = 0; n < shape->ndim; n++)
        result->elements *= shape->length[n];
}

double keep_maximum(double maximum, double value)
{
    return isnan(maximum) || isnan(value) ? NAN : fmax(maximum, value);
}

double largest_finite(const double *values, int64_t n)
{
    double largest = 0;
    for (int64_t i = 0; i < n; i++)
        if (isfinite(values[i]))
            largest = fmax(largest, fabs(values[i]));
    return largest;
}

/* How large a part of what is allowed the error is: above 1 fails, and so does +inf, which is the
 * answer for everything that is not finite. */
static double share_of_allowed(double analytic, double numeric, double allowed)
{
    double error = fabs(analytic - numeric);
    if (error == 0)
        return 0;
    return isfinite(error) && allowed > 0 ? error / allowed : INFINITY;
}

/* Adds one comparison to the result's maxima; returns its share of what is allowed. */
static double judge(hpa_gradcheck_result *result, double analytic, double numeric, double size,
                    double allowed)
{
    double error = fabs(analytic - numeric);
    result->max_abs_error = keep_maximum(result->max_abs_error, error);
    result->max_rel_error = keep_maximum(result->max_rel_error, error == 0 ? 0 : error / size);
    double share = share_of_allowed(analytic, numeric, allowed);
    if (!(share <= 1))
        result->passed = false;
    return share;
}

static void set_place(hpa_gradcheck_result *result, const struct shape *shape,
                      const struct comparison *comparison, int64_t position)
{
    if (position >= comparison->n_elements) {
        result->direction = position - comparison->n_elements;
        return;
    }
    int64_t element = comparison->element ? comparison->element[position] : position;
    result->ndim = shape->ndim;
    for (int32_t n = shape->ndim - 1; n >= 0; n--) {
        result->index[n] = element % shape->length[n];
        element /= shape->length[n];
    }
}

void result_compare(hpa_gradcheck_result *result, const struct shape *shape,
                    const struct comparison *comparison)
{
    int64_t n = comparison->n_elements + comparison->n_directions;
    double floor = comparison->floor * largest_finite(comparison->numeric, comparison->n_elements);
    double worst = -1;
    int64_t worst_position = -1;
    for (int64_t i = 0; i < n; i++) {
        double analytic = comparison->analytic[i], numeric = comparison->numeric[i];
        double size = fmax(fmax(fabs(analytic), fabs(numeric)), floor);
        double allowed = comparison->atol + comparison->rtol * size;
        double share = judge(result, analytic, numeric, size, allowed);
        if (share <= worst)
            continue;
        worst = share;
        worst_position = i;
        result->analytic = analytic;
        result->numeric = numeric;
        result->allowed = allowed;
    }
    result->checked = comparison->n_elements;
    result->directions = comparison->n_directions;
    if (worst_position >= 0)
        set_place(result, shape, comparison, worst_position);
}

hpa_gradcheck_result *report_next(hpa_gradcheck_report *report)
{
    return &report->results[report->n_results++];
}

void place_print(char text[PLACE_SIZE], const hpa_gradcheck_result *result)
{
    if (result->direction >= 0) {
        snprintf(text, PLACE_SIZE, "direction %" PRId64, result->direction);
        return;
    }
    if (result->ndim == 0) {
        snprintf(text, PLACE_SIZE, "-");
        return;
    }
    int used = 0;
    for (int32_t n = 0; n < result->ndim; n++)
        used += snprintf(text + used, (size_t)(PLACE_SIZE - used), "%s%" PRId64, n ? ", " : "[",
                         result->index[n]);
    snprintf(text + used, (size_t)(PLACE_SIZE - used), "]");
}

static void describe_failure(hpa_gradcheck_report *report, const hpa_gradcheck_result *result)
{
    char place[PLACE_SIZE];
    place_print(place, result);
    snprintf(report->message, sizeof report->message,
             "%s does not agree: at %s the code under test has %.17g, the checker %.17g, and they "
             "may differ by %.3g",
             result->name, place, result->analytic, result->numeric, result->allowed);
}

void report_finish(hpa_gradcheck_report *report)
{
    report->passed = true;
    for (int32_t n = 0; n < report->n_results; n++) {
        const hpa_gradcheck_result *result = &report->results[n];
        if (!result->passed && report->message[0] == 0)
            describe_failure(report, result);
        report->passed = report->passed && result->passed;
        if (result->kind != HPA_GRADCHECK_GRADIENT)
            continue;
        report->checked += result->checked + result->directions;
        report->max_abs_error = keep_maximum(report->max_abs_error, result->max_abs_error);
        report->max_rel_error = keep_maximum(report->max_rel_error, result->max_rel_error);
    }
}

hpa_status report_error(hpa_gradcheck_report *report, hpa_status status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(report->message, sizeof report->message, format, arguments);
    va_end(arguments);
    report->passed = false;
    return status;
}

hpa_status check_options(const hpa_gradcheck_options *options, hpa_gradcheck_report *report)
{
    if (!(options->eps > 0 && isfinite(options->eps)))
        return report_error(report, HPA_INVALID_ARGUMENT,
                            "options.eps is %g; expected a finite step above 0", options->eps);
    if (options->order != 2 && options->order != 4)
        return report_error(report, HPA_INVALID_ARGUMENT,
                            "options.order is %" PRId32 "; expected 2 or 4", options->order);
    if (!(options->atol >= 0 && isfinite(options->atol)))
        return report_error(report, HPA_INVALID_ARGUMENT,
                            "options.atol is %g; expected a finite number, 0 or more",
                            options->atol);
    if (!(options->rtol >= 0 && isfinite(options->rtol)))
        return report_error(report, HPA_INVALID_ARGUMENT,
                            "options.rtol is %g; expected a finite number, 0 or more",
                            options->rtol);
    if (options->samples < 0)
        return report_error(report, HPA_INVALID_ARGUMENT,
                            "options.samples is %" PRId64 "; expected 0 or more", options->samples);
    if (options->directions < 0 || options->directions > 1000000)
        return report_error(report, HPA_INVALID_ARGUMENT,
                            "options.directions is %" PRId32 "; expected 0 to 1000000",
                            options->directions);
    return HPA_OK;
}
