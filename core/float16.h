/* The two 16-bit storage formats in plain C: exact widening, rounding to nearest even. */
#ifndef HPA_CORE_FLOAT16_H
#define HPA_CORE_FLOAT16_H

#include <stdint.h>
#include <string.h>

static inline float hpa_float_from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t hpa_bits_from_float(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float hpa_float_from_bf16(uint16_t h)
{
    return hpa_float_from_bits((uint32_t)h << 16);
}

static inline uint16_t hpa_bf16_from_float(float value)
{
    const uint32_t bits = hpa_bits_from_float(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) /* NaN: keep it one */
        return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static inline float hpa_float_from_f16(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    const uint32_t magnitude = h & 0x7fffu;
    if (magnitude >= 0x7c00u) /* infinity, NaN */
        return hpa_float_from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    if (magnitude >= 0x0400u) /* normal: exponent bias 15 to 127 */
        return hpa_float_from_bits(sign | ((magnitude << 13) + (112u << 23)));
    const float subnormal = (float)magnitude * 0x1p-24f;
    return sign ? -subnormal : subnormal;
}

static inline uint16_t hpa_f16_from_float(float value)
{
    const uint32_t bits = hpa_bits_from_float(value);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
    if (magnitude >= 0x477ff000u) /* 65520 and more round to infinity */
        return (uint16_t)(sign | 0x7c00u);
    if (magnitude >= 0x38800000u) { /* 2^-14 and more: normal */
        const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
        return (uint16_t)(sign | (rounded - (112u << 23)) >> 13);
    }
    /* Subnormal: adding 0.5 puts the rounded multiple of 2^-24 into the low bits. */
    const float shifted = hpa_float_from_bits(magnitude) + 0.5f;
    return (uint16_t)(sign | (hpa_bits_from_float(shifted) - 0x3f000000u));
}

#endif
