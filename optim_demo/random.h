/* Random numbers whose whole state is one integer, so that a checkpoint can hold it. */
#ifndef DEMO_RANDOM_H
#define DEMO_RANDOM_H

#include <stdint.h>

typedef struct random_source {
    uint64_t state; /* any value is a good seed */
} random_source;

uint64_t random_bits(random_source *source);
int64_t random_below(random_source *source, int64_t limit); /* 0 ... limit - 1 */
double random_unit(random_source *source);                  /* [0, 1) */
double random_normal(random_source *source);                /* mean 0, variance 1 */

#endif
