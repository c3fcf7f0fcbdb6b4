/* The layers of the transformer, each forward followed by its backward. Every backward that writes
 * the gradient of a weight adds to it, so that several batches can share one step.
 * N rows of tokens; the sums of a row, and of a weight's gradient, run in a fixed order, so that a
 * run can be repeated to the bit. */
#ifndef DEMO_LAYERS_H
#define DEMO_LAYERS_H

#include "real.h"

#include <stdint.h>

/* out (N, O) = in (N, K) weight^T, weight (O, K); with add, out += */
void linear_forward(real *out, const real *in, const real *weight, int64_t N, int64_t K, int64_t O,
                    int add);
/* d_in (N, K) is written, or added to with add; d_weight (O, K) is added to. */
void linear_backward(real *d_in, real *d_weight, const real *d_out, const real *in,
                     const real *weight, int64_t N, int64_t K, int64_t O, int add);

/* out (N, C) = weight (C) * in (N, C) / root mean square of the row; scale (N) is the reciprocal of
 * that root, kept for the backward. */
void rmsnorm_forward(real *out, real *scale, const real *in, const real *weight, int64_t N,
                     int64_t C);
/* d_in (N, C) and d_weight (C) are added to. */
void rmsnorm_backward(real *d_in, real *d_weight, const real *d_out, const real *in,
                      const real *scale, const real *weight, int64_t N, int64_t C);

/* Fills table (T, D/2, 2) with the cosine and sine of position * base^(-2i/D). */
void rope_table(real *table, int64_t T, int64_t D, double base);
/* Rotates, in place, the first `heads` heads of each row of x (N, stride). Row n stands at position
 * first + n % T. direction 1 goes forward; -1 undoes it, which is also the backward. */
void rope(real *x, const real *table, int64_t N, int64_t T, int64_t first, int64_t stride,
          int64_t heads, int64_t D, int direction);

/* out (N, F) = silu(gate) * up, where gate_up (N, 2F) holds gate and up side by side. */
void swiglu_forward(real *out, const real *gate_up, int64_t N, int64_t F);
/* d_gate_up (N, 2F) is written. */
void swiglu_backward(real *d_gate_up, const real *d_out, const real *gate_up, int64_t N, int64_t F);

/* out (N, C) = the row of table (V, C) of each token. */
void embedding_forward(real *out, const uint8_t *tokens, const real *table, int64_t N, int64_t C);
/* d_table (V, C) is added to. */
void embedding_backward(real *d_table, const real *d_out, const uint8_t *tokens, int64_t N,
                        int64_t C);

/* Turns logits (N, V) into probabilities in place; losses (N) = -log probability of the target. */
void cross_entropy_forward(real *losses, real *logits, const uint8_t *targets, int64_t N,
                           int64_t V);
/* Turns the probabilities (N, V) into the gradient of factor * sum of losses, in place. */
void cross_entropy_backward(real *probabilities, const uint8_t *targets, double factor, int64_t N,
                            int64_t V);

#endif
