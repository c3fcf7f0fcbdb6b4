/* For code that is written once for both kinds of real numbers: the build compiles its files twice,
 * with HPA_REAL_BITS 32 and 64, and each copy sees one kind under plain names. What it exports is
 * named by OF_REAL: OF_REAL(x) is x_f32 or x_f64. */
#ifndef HPA_CORE_CPU_REAL_H
#define HPA_CORE_CPU_REAL_H

#include "core/cpu/kernels.h"

#if HPA_REAL_BITS == 32
typedef float real;
#define OF_REAL(name) name##_f32
#elif HPA_REAL_BITS == 64
typedef double real;
#define OF_REAL(name) name##_f64
#else
#error "compile with HPA_REAL_BITS defined as 32 and as 64"
#endif

typedef OF_REAL(hpa_product) hpa_product;
typedef OF_REAL(hpa_score_tile) hpa_score_tile;
typedef OF_REAL(hpa_tiles) hpa_tiles;

#endif
