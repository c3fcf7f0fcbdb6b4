#include "random.h"

#include <math.h>

uint64_t random_bits(struct random *random)
{
    random->state += UINT64_C(0x9e3779b97f4a7c15);
    uint64_t mixed = random->state;
    mixed = (mixed ^ (mixed >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    mixed = (mixed ^ (mixed >> 27)) * UINT64_C(0x94d049bb133111eb);
    return mixed ^ (mixed >> 31);
}

double random_uniform(struct random *random)
{
    return (double)(random_bits(random) >> 11) * 0x1p-53;
}

double random_normal(struct random *random)
{
    const double two_pi = 6.283185307179586;
    double radius = sqrt(-2.0 * log(1.0 - random_uniform(random))); /* 1 - u is never 0 */
    return radius * cos(two_pi * random_uniform(random));
}

void random_fill_normal(struct random *random, double *values, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        values[i] = random_normal(random);
}
