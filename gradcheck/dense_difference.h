/* Differences of dense_loss for single elements, without computing every row of attention anew: an
 * element of q moves one row, an element of k moves one score in each row of its group of heads, and
 * an element of v one output in each of those rows. No derivative is written down here, only how far
 * the loss moves. The same numbers as difference_quotient over dense_loss gives, for thousands of
 * elements in a second. */
#ifndef HPA_GRADCHECK_DENSE_DIFFERENCE_H
#define HPA_GRADCHECK_DENSE_DIFFERENCE_H

#include "problem.h"

struct dense_difference;

/* Computes every row of attention once. NULL: out of memory. The problem and its mask must stay as
 * they are until the end. */
struct dense_difference *dense_difference_create(const struct problem *problem, double eps,
                                                 int32_t order);
void dense_difference_destroy(struct dense_difference *difference);

/* d dense_loss / d one element of q, k or v. Quickest in ascending order. */
double dense_difference_q(struct dense_difference *difference, int64_t element);
double dense_difference_k(struct dense_difference *difference, int64_t element);
double dense_difference_v(struct dense_difference *difference, int64_t element);

#endif
