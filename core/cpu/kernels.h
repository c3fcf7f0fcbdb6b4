/* The vocabulary of the fast CPU path: a handful of operations on tiles that fit in a cache. The
 * algorithms in mask/, forward/ and backward/ are written in these words and know no instruction
 * set; core/cpu/ builds the words once for each, and the plan picks one when it is made. */
#ifndef HPA_CORE_CPU_KERNELS_H
#define HPA_CORE_CPU_KERNELS_H

#include "hpa/hpa.h"

/* Tiles are padded to a multiple of this many reals along the direction that is vectorised. */
#define HPA_TILE_PAD 16

/* Which pairs (row m of C, k) take part in a product. The others are not even read, so a NaN in
 * them reaches nothing. */
typedef enum hpa_part {
    HPA_ALL,
    HPA_UP_TO, /* k <= m + shift */
    HPA_FROM   /* k >= m - shift */
} hpa_part;

#define real float
#define NAMED(name) name##_f32
#include "core/cpu/tiles.h"
#undef real
#undef NAMED
#define real double
#define NAMED(name) name##_f64
#include "core/cpu/tiles.h"
#undef real
#undef NAMED

typedef struct hpa_cpu_kernels {
    const char *name; /* of the instruction set */
    const hpa_tiles_f32 *tiles_f32;
    const hpa_tiles_f64 *tiles_f64;
} hpa_cpu_kernels;

/* The best that this processor can run. */
const hpa_cpu_kernels *hpa_cpu_select(void);

/* The one of that name, for tests; NULL when it was not built or this processor cannot run it. */
const hpa_cpu_kernels *hpa_cpu_select_named(const char *name);

/* Names of all that were built, best first: "avx512 avx2 generic". */
const char *hpa_cpu_names(void);

#endif
