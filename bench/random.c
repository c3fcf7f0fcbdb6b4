/* random.c - inputs that are random enough to measure with. */
#include "device.h"

#include <string.h>

/* splitmix64 */
static uint64_t random_bits(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* The sum of four uniform numbers: nearly normal, mean 0, variance 1. */
static double random_normal(uint64_t *state)
{
    const double sqrt_3 = 1.7320508075688772;
    uint64_t bits = random_bits(state);
    double sum = 0;
    for (int part = 0; part < 4; part++)
        sum += (double)(bits >> (16 * part) & 0xffff);
    return (sum / 65535 - 2) * sqrt_3;
}

/* Cuts the last bits off: good enough for inputs that are random anyway. */
static uint16_t to_16_bits(double value, hpa_dtype dtype)
{
    float single = (float)value;
    uint32_t bits;
    memcpy(&bits, &single, sizeof bits);
    if (dtype == HPA_BF16)
        return (uint16_t)(bits >> 16);
    uint32_t sign = bits >> 16 & 0x8000;
    uint32_t magnitude = bits & 0x7fffffff;
    const uint32_t smallest_normal = 113u << 23; /* 2^-14; below it: zero */
    if (magnitude < smallest_normal)
        return (uint16_t)sign;
    return (uint16_t)(sign | (magnitude - (112u << 23)) >> 13);
}

size_t bench_dtype_bytes(hpa_dtype dtype)
{
    return dtype == HPA_F64 ? 8 : dtype == HPA_F32 ? 4 : 2;
}

void bench_random(void *data, hpa_dtype dtype, int64_t n, uint64_t seed)
{
    for (int64_t i = 0; i < n; i++) {
        double value = random_normal(&seed);
        if (dtype == HPA_F64)
            ((double *)data)[i] = value;
        else if (dtype == HPA_F32)
            ((float *)data)[i] = (float)value;
        else
            ((uint16_t *)data)[i] = to_16_bits(value, dtype);
    }
}
