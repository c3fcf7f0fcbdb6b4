/* What must hold beside the values of the gradients. */
#include "attention.h"

#include "convert.h"
#include "dense.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static hpa_gradcheck_result *start_line(struct attention *attention, const char *name)
{
    hpa_gradcheck_result *line = report_next(attention->report);
    struct shape none = {.ndim = 1, .length = {0}};
    result_start(line, name, HPA_GRADCHECK_PROPERTY, &none);
    return line;
}

/* Adds the comparison of one tensor to a line that stands for several. The line keeps the place of
 * its first failure, and the name of the tensor with it. */
static void merge(hpa_gradcheck_result *line, const hpa_gradcheck_result *part, const char *tensor)
{
    hpa_gradcheck_result before = *line;
    if ((before.passed && !part->passed) || before.checked == 0)
        *line = *part;
    if (before.passed && !part->passed)
        snprintf(line->name, sizeof line->name, "%.16s: %.5s", before.name, tensor);
    else
        memcpy(line->name, before.name, sizeof line->name);
    line->passed = before.passed && part->passed;
    line->elements = before.elements + part->elements;
    line->checked = before.checked + part->checked;
    line->max_abs_error = keep_maximum(before.max_abs_error, part->max_abs_error);
    line->max_rel_error = keep_maximum(before.max_rel_error, part->max_rel_error);
}

/* got against want, elements of one of the tensors that were written. element as in struct
 * comparison. */
static void add_part(struct attention *attention, hpa_gradcheck_result *line, int which,
                     const struct comparison *comparison)
{
    const struct tensor *tensor = &attention->written[which];
    struct shape shape = tensor_memory_shape(tensor);
    hpa_gradcheck_result part;
    result_start(&part, "", HPA_GRADCHECK_PROPERTY, &shape);
    result_compare(&part, &shape, comparison);
    tensor_place_in_view(tensor, &part);
    merge(line, &part, written_names[which]);
}

/* Host room for the values of one tensor and what they are expected to be. */
struct both {
    double *got;
    double *want; /* starts as zeros */
};

static hpa_status both_create(struct both *both, int64_t n)
{
    both->got = calloc((size_t)n + 1, sizeof(double));
    both->want = calloc((size_t)n + 1, sizeof(double));
    return both->got && both->want ? HPA_OK : HPA_OUT_OF_MEMORY;
}

static void both_destroy(struct both *both)
{
    free(both->got);
    free(both->want);
}

static hpa_status read_and_add(struct attention *attention, hpa_gradcheck_result *line, int which,
                               const double *want, double atol)
{
    struct tensor *tensor = &attention->written[which];
    struct both both;
    hpa_status status = both_create(&both, tensor->elements);
    if (status == HPA_OK) {
        tensor_read(tensor, both.got);
        struct comparison comparison = {.n_elements = tensor->elements,
                                        .analytic = both.got,
                                        .numeric = want ? want : both.want,
                                        .atol = atol};
        add_part(attention, line, which, &comparison);
    }
    both_destroy(&both);
    return status;
}

/* d_out and d_lse of zero must give gradients of exactly zero. */
static hpa_status check_zero_cotangent(struct attention *attention)
{
    hpa_gradcheck_result *line = start_line(attention, "zero cotangent");
    tensor_fill(&attention->d_out, 0);
    tensor_fill(&attention->d_lse, 0);
    attention_fill_gradients(attention, NAN);
    hpa_status status = attention_backward(attention, false);
    tensor_write(&attention->d_out, attention->problem.d_out);
    tensor_write(&attention->d_lse, attention->problem.d_lse);
    for (int n = DQ; n <= DV && status == HPA_OK; n++)
        status = read_and_add(attention, line, n, NULL, 0);
    return status;
}

/* The first element whose bits are not those of the first run; -1: none. */
static int64_t first_difference(const struct attention *attention, int which)
{
    const struct tensor *tensor = &attention->written[which];
    size_t size = dtype_size(tensor->form.dtype);
    const char *now = tensor->stored, *before = attention->first_stored[which];
    for (int64_t i = 0; i < tensor->elements; i++)
        if (memcmp(now + (size_t)i * size, before + (size_t)i * size, size) != 0)
            return i;
    return -1;
}

static void add_bits(struct attention *attention, hpa_gradcheck_result *line, int which)
{
    struct tensor *tensor = &attention->written[which];
    struct shape shape = tensor_memory_shape(tensor);
    hpa_gradcheck_result part;
    result_start(&part, "", HPA_GRADCHECK_PROPERTY, &shape);
    tensor_read(tensor, NULL);
    int64_t element = first_difference(attention, which);
    if (element >= 0) {
        double now;
        size_t offset = (size_t)element * dtype_size(tensor->form.dtype);
        dtype_decode(tensor->form.dtype, (char *)tensor->stored + offset, &now, 1);
        struct comparison comparison = {.n_elements = 1,
                                        .element = &element,
                                        .analytic = &now,
                                        .numeric = &attention->first[which][element]};
        result_compare(&part, &shape, &comparison);
        tensor_place_in_view(tensor, &part);
        part.passed = false; /* 0 and -0 compare equal, and are not the same bits */
    }
    part.checked = tensor->elements;
    merge(line, &part, written_names[which]);
}

static hpa_status check_second_run(struct attention *attention)
{
    hpa_gradcheck_result *line = start_line(attention, "second run");
    hpa_status status = attention_forward(attention);
    attention_fill_gradients(attention, NAN);
    if (status == HPA_OK)
        status = attention_backward(attention, false);
    for (int n = 0; n < N_WRITTEN && status == HPA_OK; n++)
        add_bits(attention, line, n);
    return status;
}

/* Gradients on top of START: the kernel may round once more or once less than the checker. */
#define START 1.0
#define ACCUMULATE_ROUNDINGS 8

static hpa_status check_accumulate(struct attention *attention)
{
    hpa_gradcheck_result *line = start_line(attention, "accumulate");
    attention_fill_gradients(attention, START);
    hpa_status status = attention_backward(attention, true);
    for (int n = DQ; n <= DV && status == HPA_OK; n++) {
        int64_t elements = attention->written[n].elements;
        double unit = dtype_rounding_unit(attention->desc.dtype);
        double largest = START + largest_finite(attention->first[n], elements);
        double *want = calloc((size_t)elements + 1, sizeof(double));
        if (!want)
            return HPA_OUT_OF_MEMORY;
        for (int64_t i = 0; i < elements; i++)
            want[i] = START + attention->first[n][i];
        status = read_and_add(attention, line, n, want, ACCUMULATE_ROUNDINGS * unit * largest);
        free(want);
    }
    return status;
}

/* The rows (token * heads_q + head) of queries that see no key, ascending. */
static int64_t list_empty_rows(const struct problem *problem, int64_t *rows)
{
    int64_t count = 0;
    for (int64_t b = 0; b < problem->batch; b++)
        for (int64_t i = 0; i < problem_queries(problem, b); i++)
            for (int64_t head = 0; head < problem->heads_q; head++)
                if (!dense_query_sees_a_key(problem, b, head, i))
                    rows[count++] = problem_query_row(problem, b, head, i) / problem->head_dim;
    return count;
}

/* out and dq of the empty rows are 0. */
static void add_empty_zero(struct attention *attention, hpa_gradcheck_result *line, int which,
                           const int64_t *rows, int64_t n_rows)
{
    int64_t dim = attention->desc.head_dim;
    const double zero = 0;
    for (int64_t n = 0; n < n_rows; n++)
        for (int64_t d = 0; d < dim; d++) {
            int64_t element = rows[n] * dim + d;
            struct comparison comparison = {.n_elements = 1,
                                            .element = &element,
                                            .analytic = &attention->first[which][element],
                                            .numeric = &zero};
            add_part(attention, line, which, &comparison);
        }
}

/* lse of the empty rows is -inf, which as a number would agree with nothing. */
static void add_empty_lse(struct attention *attention, hpa_gradcheck_result *line,
                          const int64_t *rows, int64_t n_rows)
{
    const struct tensor *tensor = &attention->written[LSE];
    struct shape shape = tensor_memory_shape(tensor);
    const double expected = -INFINITY;
    for (int64_t n = 0; n < n_rows; n++) {
        hpa_gradcheck_result part;
        result_start(&part, "", HPA_GRADCHECK_PROPERTY, &shape);
        part.checked = 1;
        struct comparison comparison = {.n_elements = 1,
                                        .element = &rows[n],
                                        .analytic = &attention->first[LSE][rows[n]],
                                        .numeric = &expected};
        if (attention->first[LSE][rows[n]] != expected)
            result_compare(&part, &shape, &comparison);
        tensor_place_in_view(tensor, &part);
        merge(line, &part, written_names[LSE]);
    }
}

static hpa_status check_empty_rows(struct attention *attention)
{
    const struct problem *problem = &attention->problem;
    int64_t *rows = calloc((size_t)(problem->tokens_q * problem->heads_q) + 1, sizeof *rows);
    if (!rows)
        return HPA_OUT_OF_MEMORY;
    int64_t n_rows = list_empty_rows(problem, rows);
    if (n_rows > 0) {
        hpa_gradcheck_result *line = start_line(attention, "empty rows");
        add_empty_zero(attention, line, OUT, rows, n_rows);
        add_empty_lse(attention, line, rows, n_rows);
        add_empty_zero(attention, line, DQ, rows, n_rows);
        line->elements = line->checked; /* of the empty rows, not of their tensors */
    }
    free(rows);
    return HPA_OK;
}

hpa_status attention_properties(struct attention *attention)
{
    hpa_status status = check_zero_cotangent(attention);
    if (status == HPA_OK)
        status = check_second_run(attention);
    if (status == HPA_OK)
        status = check_accumulate(attention);
    if (status == HPA_OK)
        status = check_empty_rows(attention);
    if (status == HPA_OUT_OF_MEMORY)
        return report_error(attention->report, status, "no memory to check properties");
    return status;
}
