#include "difference.h"

double difference_quotient(moved_loss loss, void *context, double eps, int32_t order)
{
    double near = loss(context, eps) - loss(context, -eps);
    if (order == 2)
        return near / (2 * eps);
    double far = loss(context, 2 * eps) - loss(context, -2 * eps);
    return (8 * near - far) / (12 * eps);
}
