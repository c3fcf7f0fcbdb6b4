#include "random.h"

#include <math.h>

/* SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014. */
uint64_t random_bits(random_source *source)
{
    uint64_t z = source->state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

int64_t random_below(random_source *source, int64_t limit)
{
    /* The bias of the remainder is limit / 2^64. */
    return (int64_t)(random_bits(source) % (uint64_t)limit);
}

double random_unit(random_source *source)
{
    return (double)(random_bits(source) >> 11) * 0x1p-53;
}

double random_normal(random_source *source)
{
    const double two_pi = 6.283185307179586;
    double radius = sqrt(-2.0 * log(1.0 - random_unit(source)));
    return radius * cos(two_pi * random_unit(source));
}
