/* Hands out the pieces of one block; without a block it only counts, so that one routine sizes and
 * places everything. Pieces start at multiples of 256 bytes. */
#ifndef DEMO_ARENA_H
#define DEMO_ARENA_H

#include <stddef.h>
#include <stdint.h>

typedef struct arena {
    char *base; /* NULL: only count */
    int64_t used;
} arena;

static inline void *arena_take(arena *a, int64_t bytes)
{
    int64_t start = a->used;
    a->used += (bytes + 255) / 256 * 256;
    return a->base ? a->base + start : NULL;
}

#endif
