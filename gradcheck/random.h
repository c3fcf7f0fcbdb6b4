/* Repeatable random numbers (splitmix64), the same on every machine. */
#ifndef HPA_GRADCHECK_RANDOM_H
#define HPA_GRADCHECK_RANDOM_H

#include <stdint.h>

struct random {
    uint64_t state;
};

uint64_t random_bits(struct random *random);

/* In [0, 1). */
double random_uniform(struct random *random);

/* Mean 0, variance 1. */
double random_normal(struct random *random);

void random_fill_normal(struct random *random, double *values, int64_t n);

#endif
