/* Moves the elements of a caller's tensor, one at a time or all along a direction, and fills in
 * pairs with what the gradient says and what the loss does. Every element is put back bit for bit.
 */
#ifndef HPA_GRADCHECK_PROBE_H
#define HPA_GRADCHECK_PROBE_H

#include "compare.h"

struct probe {
    hpa_gradcheck_loss_function loss;
    void *context;
    const hpa_tensor *value;    /* f64 */
    const hpa_tensor *gradient; /* f64, of the same shape */
    double eps;
    int32_t order;
};

/* The number of elements of a tensor. */
int64_t tensor_elements(const hpa_tensor *tensor);

/* Fills in the elements that pairs has chosen. */
void probe_elements(const struct probe *probe, struct pairs *pairs);

/* Fills in the directions. HPA_OUT_OF_MEMORY before anything has moved. */
hpa_status probe_directions(const struct probe *probe, struct pairs *pairs, struct random *random);

#endif
