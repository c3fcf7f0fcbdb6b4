/* Which instruction set does this processor run? */
#include "core/cpu/kernels.h"

#include <string.h>

#define KERNELS_OF(set)                               \
    extern const hpa_tiles_f32 hpa_tiles_##set##_f32; \
    extern const hpa_tiles_f64 hpa_tiles_##set##_f64; \
    static const hpa_cpu_kernels set = {#set, &hpa_tiles_##set##_f32, &hpa_tiles_##set##_f64};

KERNELS_OF(generic)
#if defined(HPA_CPU_X86)
KERNELS_OF(avx2)
KERNELS_OF(avx512)

static bool runs_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool runs_avx512(void)
{
    return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

static bool runs_generic(void)
{
    return true;
}

static const struct {
    const hpa_cpu_kernels *kernels;
    bool (*runs)(void);
} candidates[] = {
#if defined(HPA_CPU_X86)
    {&avx512, runs_avx512},
    {&avx2, runs_avx2},
#endif
    {&generic, runs_generic},
};

#define N_CANDIDATES (sizeof candidates / sizeof *candidates)

const hpa_cpu_kernels *hpa_cpu_select(void)
{
    size_t n = 0;
    while (!candidates[n].runs())
        n++;
    return candidates[n].kernels;
}

const hpa_cpu_kernels *hpa_cpu_select_named(const char *name)
{
    for (size_t n = 0; n < N_CANDIDATES; n++)
        if (strcmp(candidates[n].kernels->name, name) == 0 && candidates[n].runs())
            return candidates[n].kernels;
    return NULL;
}

const char *hpa_cpu_names(void)
{
    return HPA_CPU_SETS;
}
