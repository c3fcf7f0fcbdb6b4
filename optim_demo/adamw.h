/* AdamW: Loshchilov and Hutter, "Decoupled weight decay regularization", arXiv 1711.05101. */
#ifndef DEMO_ADAMW_H
#define DEMO_ADAMW_H

#include "real.h"

#include <stdint.h>

typedef struct adamw {
    real *first;  /* (n) running mean of the gradient */
    real *second; /* (n) running mean of its square */
    double beta1, beta2, weight_decay;
} adamw;

/* Step number `step` (1, 2, ...) over n weights, at some offset of the optimizer's arrays. */
void adamw_update(const adamw *self, int64_t offset, real *weights, const real *gradients,
                  int64_t n, int64_t step, double learning_rate, int decay);

/* The Euclidean length of all gradients together, summed in an order that does not depend on the
 * number of threads. */
double gradient_norm(const real *gradients, int64_t n);

/* Rises in a line over the warm-up, then falls along a cosine to `lowest`. step 0, 1, ... */
double learning_rate_at(int64_t step, int64_t steps, int64_t warmup, double highest, double lowest);

#endif
