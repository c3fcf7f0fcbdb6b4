/* AdamW: Loshchilov and Hutter, "Decoupled weight decay regularization", arXiv 1711.05101. Matrices
 * decay, norms do not. */
#ifndef DEMO_ADAMW_H
#define DEMO_ADAMW_H

#include "model.h"

/* The Euclidean length of all gradients together, which are scaled down where it is more than
 * `longest`; 0: no limit. */
bool adamw_clip(model *m, double longest, double *norm, failure *why);

/* One step of all weights. step.weight_decay is that of matrices; step.decayed need not be set. */
void adamw_update(model *m, adamw_step step);

/* Rises in a line over the warm-up, then falls along a cosine to `lowest`. step 0, 1, ... */
double learning_rate_at(int64_t step, int64_t steps, int64_t warmup, double highest, double lowest);

#endif
