/* Pairs of (analytic, numeric) values, and the line of the report that they make. */
#ifndef HPA_GRADCHECK_COMPARE_H
#define HPA_GRADCHECK_COMPARE_H

#include <hpa/gradcheck.h>

#include "random.h"

/* The floor for difference quotients: smaller elements are compared as if they were this part of the
 * largest. */
#define QUOTIENT_FLOOR 1e-3

struct shape {
    int32_t ndim;
    int64_t length[4];
};

/* n_elements values of single elements, then n_directions slopes along directions. */
struct pairs {
    int64_t n_elements;
    int64_t n_directions;
    int64_t *element; /* [n_elements] its place in the tensor's logical order, ascending */
    double *analytic; /* [n_elements + n_directions] */
    double *numeric;  /* [n_elements + n_directions] */
};

/* Room for the elements that options sample out of a tensor of n elements, and, where those are not
 * all or always_directions is set, for the directions. The elements are drawn here. */
hpa_status pairs_create(struct pairs *pairs, int64_t n, const hpa_gradcheck_options *options,
                        bool always_directions, struct random *random);
void pairs_destroy(struct pairs *pairs);

/* What is held against what. As struct pairs, but only read; element NULL: element[i] = i. */
struct comparison {
    int64_t n_elements;
    int64_t n_directions;
    const int64_t *element;
    const double *analytic;
    const double *numeric;
    double atol;
    double rtol;
    double floor; /* of size, as a part of the largest magnitude among numeric[n_elements] */
};

/* What has been filled into pairs, the floor being that of difference quotients. */
struct comparison pairs_comparison(const struct pairs *pairs, double atol, double rtol);

/* A result that has compared nothing yet, and so has passed. */
void result_start(hpa_gradcheck_result *result, const char *name, hpa_gradcheck_kind kind,
                  const struct shape *shape);

/* Fills in a started result: passed where every pair agrees within atol + rtol * size. */
void result_compare(hpa_gradcheck_result *result, const struct shape *shape,
                    const struct comparison *comparison);

/* The next result of a report, which must not be full. */
hpa_gradcheck_result *report_next(hpa_gradcheck_report *report);

/* Adds up the results: passed, the totals, and, unless there is a message already, one about the
 * first that failed. */
void report_finish(hpa_gradcheck_report *report);

/* Writes report->message and gives status back. */
#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
hpa_status
report_error(hpa_gradcheck_report *report, hpa_status status, const char *format, ...);

/* HPA_OK, or what is wrong with a field of options. */
hpa_status check_options(const hpa_gradcheck_options *options, hpa_gradcheck_report *report);

/* The larger of two; NaN once either is. */
double keep_maximum(double maximum, double value);

/* The largest magnitude among those of n values that are finite; 0 of none. */
double largest_finite(const double *values, int64_t n);

/* An element as "[0, 3, 17, 5]", or "direction 2", or "-". */
#define PLACE_SIZE 96
void place_print(char text[PLACE_SIZE], const hpa_gradcheck_result *result);

#endif
