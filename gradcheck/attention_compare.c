/* out, lse, dq, dk and dv as the code under test wrote them, against dense attention. */
#include "attention.h"

#include "convert.h"
#include "dense.h"
#include "dense_difference.h"
#include "probe.h"

#include <math.h>
#include <stdlib.h>

/* Both forward passes sum some hundred products in double. */
#define FORWARD_ATOL 1e-12
#define FORWARD_RTOL 1e-10

/* Everything that dense attention makes, on the host, in the order of memory. */
struct dense_values {
    double *written[N_WRITTEN];
};

static hpa_status dense_values_create(struct dense_values *values,
                                      const struct attention *attention)
{
    *values = (struct dense_values){0};
    bool room = true;
    for (int n = 0; n < N_WRITTEN; n++) {
        size_t elements = (size_t)attention->written[n].elements + 1;
        values->written[n] = calloc(elements, sizeof(double));
        room = room && values->written[n];
    }
    return room ? HPA_OK : HPA_OUT_OF_MEMORY;
}

static void dense_values_destroy(struct dense_values *values)
{
    for (int n = 0; n < N_WRITTEN; n++)
        free(values->written[n]);
}

static void add_line(struct attention *attention, int which, const struct comparison *comparison,
                     double dense_error)
{
    const struct tensor *tensor = &attention->written[which];
    struct shape shape = tensor_memory_shape(tensor);
    hpa_gradcheck_result *result = report_next(attention->report);
    result_start(result, written_names[which],
                 which <= LSE ? HPA_GRADCHECK_OUTPUT : HPA_GRADCHECK_GRADIENT, &shape);
    result_compare(result, &shape, comparison);
    tensor_place_in_view(tensor, result);
    result->dense_error = dense_error;
}

/* The lse of queries that see a key, as element numbers; the others' is -inf, and has a line of its
 * own. */
static int64_t list_finite(const double *lse, int64_t n, int64_t *element)
{
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++)
        if (lse[i] != -INFINITY)
            element[count++] = i;
    return count;
}

static void pick(double *picked, const double *values, const int64_t *element, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        picked[i] = values[element[i]];
}

static double largest_error(const double *got, const double *want, int64_t n)
{
    double largest = 0;
    for (int64_t i = 0; i < n; i++)
        if (got[i] != want[i])
            largest = fmax(largest, fabs(got[i] - want[i]));
    return largest;
}

/* How closely one of the tensors is looked at. */
struct yardstick {
    double atol;
    double rtol;
    double floor;
    double dense_error;
};

/* lse may be infinite, and is compared where it is finite. */
static hpa_status compare_lse(struct attention *attention, const double *want,
                              const struct yardstick *yardstick)
{
    int64_t n = attention->written[LSE].elements;
    struct pairs finite;
    hpa_gradcheck_options all = {0};
    hpa_status status = pairs_create(&finite, n, &all, false, &attention->random);
    if (status != HPA_OK)
        return status;
    finite.n_elements = list_finite(want, n, finite.element);
    pick(finite.analytic, attention->first[LSE], finite.element, finite.n_elements);
    pick(finite.numeric, want, finite.element, finite.n_elements);
    struct comparison comparison = pairs_comparison(&finite, yardstick->atol, yardstick->rtol);
    comparison.floor = yardstick->floor;
    add_line(attention, LSE, &comparison, yardstick->dense_error);
    pairs_destroy(&finite);
    return HPA_OK;
}

static hpa_status compare_all(struct attention *attention, int which, const double *want,
                              const struct yardstick *yardstick)
{
    if (which == LSE)
        return compare_lse(attention, want, yardstick);
    struct comparison comparison = {.n_elements = attention->written[which].elements,
                                    .analytic = attention->first[which],
                                    .numeric = want,
                                    .atol = yardstick->atol,
                                    .rtol = yardstick->rtol,
                                    .floor = yardstick->floor};
    add_line(attention, which, &comparison, yardstick->dense_error);
    return HPA_OK;
}

/* Double precision: gradients against differences */

static double loss_of_problem(void *context)
{
    return dense_loss(context);
}

static hpa_tensor flat_view(double *values, int64_t n)
{
    return (hpa_tensor){.data = values, .dtype = HPA_F64, .ndim = 1, .shape = {n}, .stride = {1}};
}

static hpa_status compare_with_differences(struct attention *attention,
                                           struct dense_difference *difference, int which,
                                           double *values)
{
    double (*quotient)(struct dense_difference *, int64_t) = which == DQ   ? dense_difference_q
                                                             : which == DK ? dense_difference_k
                                                                           : dense_difference_v;
    const hpa_gradcheck_options *options = &attention->options;
    int64_t n = attention->written[which].elements;
    struct pairs pairs;
    hpa_status status = pairs_create(&pairs, n, options, true, &attention->random);
    if (status != HPA_OK)
        return status;
    pick(pairs.analytic, attention->first[which], pairs.element, pairs.n_elements);
    for (int64_t i = 0; i < pairs.n_elements; i++)
        pairs.numeric[i] = quotient(difference, pairs.element[i]);

    hpa_tensor value = flat_view(values, n), gradient = flat_view(attention->first[which], n);
    struct probe probe = {.loss = loss_of_problem,
                          .context = &attention->problem,
                          .value = &value,
                          .gradient = &gradient,
                          .eps = options->eps,
                          .order = options->order};
    status = probe_directions(&probe, &pairs, &attention->random);
    struct comparison comparison = pairs_comparison(&pairs, options->atol, options->rtol);
    if (status == HPA_OK)
        add_line(attention, which, &comparison, 0);
    pairs_destroy(&pairs);
    return status;
}

static hpa_status compare_double(struct attention *attention, struct dense_values *dense)
{
    struct problem *problem = &attention->problem;
    dense_forward(problem, dense->written[OUT], dense->written[LSE]);
    const struct yardstick forward = {FORWARD_ATOL, FORWARD_RTOL, QUOTIENT_FLOOR, 0};
    hpa_status status = compare_all(attention, OUT, dense->written[OUT], &forward);
    if (status == HPA_OK)
        status = compare_all(attention, LSE, dense->written[LSE], &forward);
    if (status != HPA_OK)
        return status;

    struct dense_difference *difference =
        dense_difference_create(problem, attention->options.eps, attention->options.order);
    if (!difference)
        return HPA_OUT_OF_MEMORY;
    double *const values[N_WRITTEN] = {[DQ] = problem->q, [DK] = problem->k, [DV] = problem->v};
    for (int n = DQ; n <= DV && status == HPA_OK; n++)
        status = compare_with_differences(attention, difference, n, values[n]);
    dense_difference_destroy(difference);
    return status;
}

/* Below double: errors against the error of dense attention in the same dtype */

/* Rounding in a narrow dtype makes errors that depend on the largest values, not on each element's,
 * so sizes are all that of the largest. Where dense attention happens to be nearly exact, one rounding
 * of the largest value and the noise of float sums are allowed. */
static struct yardstick narrow_yardstick(int which, hpa_dtype dtype, const double *rounded,
                                         const double *exact, int64_t n, double noise)
{
    double factor = which == OUT   ? HPA_GRADCHECK_OUT_FACTOR
                    : which == LSE ? HPA_GRADCHECK_LSE_FACTOR
                                   : HPA_GRADCHECK_GRADIENT_FACTOR;
    double error = largest_error(rounded, exact, n);
    double least = dtype_rounding_unit(dtype) * largest_finite(exact, n) + noise;
    return (struct yardstick){
        .atol = factor * fmax(error, least), .floor = 1, .dense_error = error};
}

static hpa_status run_dense(const struct attention *attention, struct dense_values *exact,
                            struct dense_values *rounded)
{
    const struct problem *problem = &attention->problem;
    dense_forward(problem, exact->written[OUT], exact->written[LSE]);
    dense_backward(problem, exact->written[DQ], exact->written[DK], exact->written[DV]);
    struct rounded_attention result = {rounded->written[OUT], rounded->written[LSE],
                                       rounded->written[DQ], rounded->written[DK],
                                       rounded->written[DV]};
    /* lse is f32 for every dtype below f64, and so is the arithmetic that it is held against. */
    hpa_status status = dense_rounded(problem, HPA_F32, &result);
    if (status != HPA_OK || attention->desc.dtype == HPA_F32)
        return status;
    double *lse = calloc((size_t)attention->written[LSE].elements + 1, sizeof(double));
    if (!lse)
        return HPA_OUT_OF_MEMORY;
    result.lse = lse;
    status = dense_rounded(problem, attention->desc.dtype, &result);
    free(lse);
    return status;
}

static hpa_status compare_narrow(struct attention *attention, struct dense_values *exact)
{
    struct dense_values rounded;
    struct dense_noise noise;
    hpa_status status = dense_values_create(&rounded, attention);
    if (status == HPA_OK)
        status = run_dense(attention, exact, &rounded);
    if (status == HPA_OK)
        status = dense_noise(&attention->problem, attention->desc.dtype, &noise);
    for (int n = 0; n < N_WRITTEN && status == HPA_OK; n++) {
        const double of_float[N_WRITTEN] = {noise.out, noise.lse, noise.dq, noise.dk, noise.dv};
        const struct tensor *tensor = &attention->written[n];
        struct yardstick yardstick =
            narrow_yardstick(n, tensor->form.dtype, rounded.written[n], exact->written[n],
                             tensor->elements, of_float[n]);
        status = compare_all(attention, n, exact->written[n], &yardstick);
    }
    dense_values_destroy(&rounded);
    return status;
}

hpa_status attention_compare(struct attention *attention)
{
    struct dense_values dense;
    hpa_status status = dense_values_create(&dense, attention);
    if (status == HPA_OK && attention->desc.dtype == HPA_F64)
        status = compare_double(attention, &dense);
    else if (status == HPA_OK)
        status = compare_narrow(attention, &dense);
    dense_values_destroy(&dense);
    if (status == HPA_OUT_OF_MEMORY)
        return report_error(attention->report, status, "no memory for dense attention");
    return status;
}
