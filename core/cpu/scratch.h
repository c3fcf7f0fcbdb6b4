/* Scratch of the CPU kernels: an arena whose arrays begin at cache lines, though the caller's buffer
 * need not. */
#ifndef HPA_CORE_CPU_SCRATCH_H
#define HPA_CORE_CPU_SCRATCH_H

#include "core/arena.h"
#include "core/cpu/kernels.h"
#include "core/geometry.h"

#define HPA_CACHE_LINE 64

/* Bytes to ask for, given what the layout took. */
static inline size_t hpa_cpu_scratch_bytes(const hpa_arena *counted)
{
    return counted->used + HPA_CACHE_LINE;
}

static inline hpa_arena hpa_cpu_arena(const hpa_exec *exec)
{
    const uintptr_t start = (uintptr_t)exec->scratch;
    const size_t skip = (HPA_CACHE_LINE - start % HPA_CACHE_LINE) % HPA_CACHE_LINE;
    return (hpa_arena){.base = (unsigned char *)exec->scratch + skip};
}

static inline int64_t hpa_padded(int64_t n)
{
    return hpa_ceil_div(n, HPA_TILE_PAD) * HPA_TILE_PAD;
}

/* Reals from one row to the next of an array of n columns that is read down its columns: an odd
 * number of cache lines, so that the rows spread over all sets of a cache. */
static inline int64_t hpa_spread_stride(int64_t n, size_t real_bytes)
{
    const int64_t line = HPA_CACHE_LINE / (int64_t)real_bytes;
    return (hpa_padded(n) / line | 1) * line;
}

#endif
