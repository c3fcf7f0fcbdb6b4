/* Central difference quotients of order 2 and 4, and sums that lose nothing to rounding. */
#ifndef HPA_GRADCHECK_DIFFERENCE_H
#define HPA_GRADCHECK_DIFFERENCE_H

#include <math.h>
#include <stdint.h>

/* The loss, or what it has changed by, when the variable has moved by step. */
typedef double (*moved_loss)(void *context, double step);

/* d loss / d step at 0. order is 2 or 4. */
double difference_quotient(moved_loss loss, void *context, double eps, int32_t order);

/* Neumaier's compensated sum: start from {0}. */
struct exact_sum {
    double total;
    double lost; /* what the additions to total rounded away */
};

static inline void exact_sum_add(struct exact_sum *sum, double term)
{
    double total = sum->total + term;
    if (fabs(sum->total) >= fabs(term))
        sum->lost += (sum->total - total) + term;
    else
        sum->lost += (term - total) + sum->total;
    sum->total = total;
}

static inline double exact_sum_value(const struct exact_sum *sum)
{
    return sum->total + sum->lost;
}

#endif
