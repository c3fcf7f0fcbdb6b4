#include "probe.h"

#include "difference.h"

#include <math.h>
#include <stdlib.h>

int64_t tensor_elements(const hpa_tensor *tensor)
{
    int64_t elements = 1;
    for (int32_t n = 0; n < tensor->ndim; n++)
        elements *= tensor->shape[n];
    return elements;
}

/* Elements are numbered in logical order, the last dimension fastest. */
static double *element_of(const hpa_tensor *tensor, int64_t element)
{
    int64_t offset = 0;
    for (int32_t n = tensor->ndim - 1; n >= 0; n--) {
        offset += element % tensor->shape[n] * tensor->stride[n];
        element /= tensor->shape[n];
    }
    return (double *)tensor->data + offset;
}

struct element_move {
    const struct probe *probe;
    double *place;
};

static double loss_with_element_moved(void *context, double step)
{
    const struct element_move *move = context;
    double start = *move->place;
    *move->place = start + step;
    double loss = move->probe->loss(move->probe->context);
    *move->place = start;
    return loss;
}

void probe_elements(const struct probe *probe, struct pairs *pairs)
{
    for (int64_t i = 0; i < pairs->n_elements; i++) {
        struct element_move move = {probe, element_of(probe->value, pairs->element[i])};
        pairs->analytic[i] = *element_of(probe->gradient, pairs->element[i]);
        pairs->numeric[i] =
            difference_quotient(loss_with_element_moved, &move, probe->eps, probe->order);
    }
}

struct direction_move {
    const struct probe *probe;
    int64_t elements;
    double *start;     /* [elements] the values before */
    double *direction; /* [elements] of norm 1 */
};

static double loss_with_all_moved(void *context, double step)
{
    const struct direction_move *move = context;
    const struct probe *probe = move->probe;
    for (int64_t i = 0; i < move->elements; i++)
        *element_of(probe->value, i) = move->start[i] + step * move->direction[i];
    double loss = probe->loss(probe->context);
    for (int64_t i = 0; i < move->elements; i++)
        *element_of(probe->value, i) = move->start[i];
    return loss;
}

static void draw_direction(struct direction_move *move, struct random *random)
{
    random_fill_normal(random, move->direction, move->elements);
    struct exact_sum squares = {0};
    for (int64_t i = 0; i < move->elements; i++)
        exact_sum_add(&squares, move->direction[i] * move->direction[i]);
    double norm = sqrt(exact_sum_value(&squares));
    for (int64_t i = 0; i < move->elements; i++)
        move->direction[i] /= norm;
}

static double analytic_slope(const struct direction_move *move)
{
    struct exact_sum slope = {0};
    for (int64_t i = 0; i < move->elements; i++)
        exact_sum_add(&slope, *element_of(move->probe->gradient, i) * move->direction[i]);
    return exact_sum_value(&slope);
}

static void fill_directions(struct direction_move *move, struct pairs *pairs, struct random *random)
{
    const struct probe *probe = move->probe;
    for (int64_t i = 0; i < move->elements; i++)
        move->start[i] = *element_of(probe->value, i);
    for (int64_t i = 0; i < pairs->n_directions; i++) {
        draw_direction(move, random);
        pairs->analytic[pairs->n_elements + i] = analytic_slope(move);
        pairs->numeric[pairs->n_elements + i] =
            difference_quotient(loss_with_all_moved, move, probe->eps, probe->order);
    }
}

hpa_status probe_directions(const struct probe *probe, struct pairs *pairs, struct random *random)
{
    if (pairs->n_directions == 0)
        return HPA_OK;
    int64_t elements = tensor_elements(probe->value);
    struct direction_move move = {.probe = probe,
                                  .elements = elements,
                                  .start = calloc((size_t)elements, sizeof(double)),
                                  .direction = calloc((size_t)elements, sizeof(double))};
    bool room = move.start && move.direction;
    if (room)
        fill_directions(&move, pairs, random);
    free(move.start);
    free(move.direction);
    return room ? HPA_OK : HPA_OUT_OF_MEMORY;
}
