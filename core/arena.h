/* One layout routine sizes a buffer and hands it out: with base NULL the arena only counts. */
#ifndef HPA_CORE_ARENA_H
#define HPA_CORE_ARENA_H

#include <stddef.h>
#include <stdint.h>

/* Part of the layout of a saved mask: changing it changes what a mask means. */
#define HPA_ARENA_ALIGNMENT 256

typedef struct hpa_arena {
    unsigned char *base;
    size_t used; /* bytes */
} hpa_arena;

/* The next count * size bytes; NULL while counting. */
static inline void *hpa_arena_take(hpa_arena *arena, int64_t count, size_t size)
{
    void *taken = arena->base ? arena->base + arena->used : NULL;
    const size_t bytes = (size_t)count * size;
    arena->used += (bytes + HPA_ARENA_ALIGNMENT - 1) / HPA_ARENA_ALIGNMENT * HPA_ARENA_ALIGNMENT;
    return taken;
}

#define HPA_ARENA_ARRAY(arena, type, count) ((type *)hpa_arena_take((arena), (count), sizeof(type)))

#endif
