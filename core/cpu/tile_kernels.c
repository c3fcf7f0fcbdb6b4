/* The tile operations for one instruction set. The build compiles this file once for each, with the
 * flags of that set and HPA_CPU_SET as its name; the code below is the same for all of them, vectors
 * of the compiler's own and loops that it vectorises. */
#include "core/cpu/kernels.h"
#include "core/float16.h"

#include <math.h>
#include <string.h>

/* Bytes of a vector, and the largest piece of C that a product keeps in registers: rows times
 * vectors of them, beside one row of B and one number of A. */
#if defined(__AVX512F__)
#define VECTOR_BYTES 64 /* 32 registers: 24 for C */
#define PIECE_ROWS 6
#define PIECE_VECTORS 4
#elif defined(__AVX2__)
#define VECTOR_BYTES 32 /* 16 registers: 12 for C */
#define PIECE_ROWS 6
#define PIECE_VECTORS 2
#else
#define VECTOR_BYTES 16 /* at least 16 registers: 8 for C */
#define PIECE_ROWS 4
#define PIECE_VECTORS 2
#endif

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* The conversions of core/float16.h without a branch, so that loops over them vectorise. */

ALWAYS_INLINE float float_from_f16(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    const uint32_t magnitude = h & 0x7fffu;
    /* 2^112 moves the exponent's bias from 15 to 127, and makes subnormals normal. */
    const float finite = hpa_float_from_bits(magnitude << 13) * 0x1p112f;
    const uint32_t special = 0x7f800000u | magnitude << 13;
    return hpa_float_from_bits(sign |
                               (magnitude >= 0x7c00u ? special : hpa_bits_from_float(finite)));
}

ALWAYS_INLINE uint16_t f16_from_float(float value)
{
    const uint32_t bits = hpa_bits_from_float(value);
    const uint32_t sign = bits >> 16 & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t normal = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - (112u << 23)) >> 13;
    const uint32_t subnormal =
        hpa_bits_from_float(hpa_float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
    uint32_t rounded = magnitude >= 0x38800000u ? normal : subnormal;
    rounded = magnitude >= 0x477ff000u ? 0x7c00u : rounded;
    rounded = magnitude > 0x7f800000u ? (0x7e00u | (magnitude >> 13 & 0x3ffu)) : rounded;
    return (uint16_t)(sign | rounded);
}

ALWAYS_INLINE uint16_t bf16_from_float(float value)
{
    const uint32_t bits = hpa_bits_from_float(value);
    const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    const uint32_t nan = bits >> 16 | 0x40u;
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

#define HPA_REAL_BITS 32
#include "core/cpu/tile_kernels.h"
#undef HPA_REAL_BITS
#define HPA_REAL_BITS 64
#include "core/cpu/tile_kernels.h"
#undef HPA_REAL_BITS

#define TILES_OF(kind)                                                          \
    {                                                                           \
        .multiply = multiply_##kind, .softmax = softmax_##kind,                 \
        .softmax_gradient = softmax_gradient_##kind, .highest = highest_##kind, \
        .scale_rows = scale_rows_##kind, .row_dots = row_dots_##kind,           \
        .read_rows = read_rows_##kind, .write_rows = write_rows_##kind,         \
        .transpose = transpose_##kind                                           \
    }

#define STRING_OF(name) #name
#define NAME_STRING(name) STRING_OF(name)
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

extern const hpa_cpu_kernels JOIN(hpa_cpu_, HPA_CPU_SET);
const hpa_cpu_kernels JOIN(hpa_cpu_, HPA_CPU_SET) = {
    .name = NAME_STRING(HPA_CPU_SET),
    .tiles_f32 = TILES_OF(f32),
    .tiles_f64 = TILES_OF(f64),
};
