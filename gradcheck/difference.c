#include "difference.h"

#include <math.h>

double difference_quotient(moved_loss loss, void *context, double eps, int32_t order)
{
    double near = loss(context, eps) - loss(context, -eps);
    if (order == 2)
        return near / (2 * eps);
    double far = loss(context, 2 * eps) - loss(context, -2 * eps);
    return (8 * near - far) / (12 * eps);
}

void exact_sum_add(struct exact_sum *sum, double term)
{
    double total = sum->total + term;
    if (fabs(sum->total) >= fabs(term))
        sum->lost += (sum->total - total) + term;
    else
        sum->lost += (term - total) + sum->total;
    sum->total = total;
}

double exact_sum_value(const struct exact_sum *sum)
{
    return sum->total + sum->lost;
}
