#include "convert.h"

#include <math.h>
#include <string.h>

size_t dtype_size(hpa_dtype dtype)
{
    switch (dtype) {
    case HPA_F64:
        return 8;
    case HPA_F32:
        return 4;
    case HPA_F16:
    case HPA_BF16:
        return 2;
    default:
        return 0;
    }
}

const char *dtype_name(hpa_dtype dtype)
{
    switch (dtype) {
    case HPA_F64:
        return "f64";
    case HPA_F32:
        return "f32";
    case HPA_F16:
        return "f16";
    case HPA_BF16:
        return "bf16";
    default:
        return NULL;
    }
}

double dtype_rounding_unit(hpa_dtype dtype)
{
    switch (dtype) {
    case HPA_F32:
        return 0x1p-24;
    case HPA_F16:
        return 0x1p-11;
    case HPA_BF16:
        return 0x1p-8;
    default:
        return 0x1p-53;
    }
}

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint16_t half_from_float(float value)
{
    uint32_t bits = bits_of(value);
    uint32_t sign = (bits >> 16) & 0x8000u;
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) /* NaN */
        return (uint16_t)(sign | 0x7e00u);
    if (magnitude >= 0x47800000u) /* 65536 and more, infinity */
        return (uint16_t)(sign | 0x7c00u);
    if (magnitude < 0x38800000u) {
        /* Below 2^-14 halves are multiples of 2^-24, which is what floats next to 0.5 are. */
        float shifted = float_of(magnitude) + 0.5f;
        return (uint16_t)(sign | (bits_of(shifted) - bits_of(0.5f)));
    }
    /* Ties to even; a carry out of the mantissa rightly raises the exponent, up to infinity. */
    magnitude += 0xfffu + ((magnitude >> 13) & 1u);
    return (uint16_t)(sign | ((magnitude - (112u << 23)) >> 13));
}

static float half_to_float(uint16_t half)
{
    int exponent = (half >> 10) & 31;
    int mantissa = half & 1023;
    float magnitude;
    if (exponent == 31)
        magnitude = mantissa ? NAN : INFINITY;
    else if (exponent == 0)
        magnitude = (float)mantissa * 0x1p-24f;
    else
        magnitude = ldexpf((float)(mantissa + 1024), exponent - 25);
    return half & 0x8000 ? -magnitude : magnitude;
}

static uint16_t bfloat_from_float(float value)
{
    uint32_t bits = bits_of(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((bits >> 16) | 0x40u);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static float bfloat_to_float(uint16_t stored)
{
    return float_of((uint32_t)stored << 16);
}

void dtype_encode(hpa_dtype dtype, const double *values, void *stored, int64_t n)
{
    switch (dtype) {
    case HPA_F32:
        for (int64_t i = 0; i < n; i++)
            ((float *)stored)[i] = (float)values[i];
        return;
    case HPA_F16:
        for (int64_t i = 0; i < n; i++)
            ((uint16_t *)stored)[i] = half_from_float((float)values[i]);
        return;
    case HPA_BF16:
        for (int64_t i = 0; i < n; i++)
            ((uint16_t *)stored)[i] = bfloat_from_float((float)values[i]);
        return;
    default:
        for (int64_t i = 0; i < n; i++)
            ((double *)stored)[i] = values[i];
    }
}

void dtype_decode(hpa_dtype dtype, const void *stored, double *values, int64_t n)
{
    switch (dtype) {
    case HPA_F32:
        for (int64_t i = 0; i < n; i++)
            values[i] = ((const float *)stored)[i];
        return;
    case HPA_F16:
        for (int64_t i = 0; i < n; i++)
            values[i] = half_to_float(((const uint16_t *)stored)[i]);
        return;
    case HPA_BF16:
        for (int64_t i = 0; i < n; i++)
            values[i] = bfloat_to_float(((const uint16_t *)stored)[i]);
        return;
    default:
        for (int64_t i = 0; i < n; i++)
            values[i] = ((const double *)stored)[i];
    }
}

float dtype_round_float(hpa_dtype dtype, float value)
{
    switch (dtype) {
    case HPA_F16:
        return half_to_float(half_from_float(value));
    case HPA_BF16:
        return bfloat_to_float(bfloat_from_float(value));
    default:
        return value;
    }
}
