/* What score_sm90.cuh needs for plain levels, in which nearly all keys are scored: children that
 * have all the same power of two of representatives, lists in shared memory, and 128 queries. */
#ifndef HPA_MASK_PLAIN_SM90_CUH
#define HPA_MASK_PLAIN_SM90_CUH

#include "mask/tree_cuda.cuh"

/* The key of find_representative, whose place in units of block_k / (2 tokens) is whole. keys: a
 * plain_keys in shared memory. */
__device__ __forceinline__ uint32_t find_plain_key(uint32_t keys, uint32_t number)
{
    const uint4 a = load_shared_16(keys), b = load_shared_16(keys + 16);
    number = min(number, a.z);
    const uint32_t child = number >> a.w, odd = (2 * number + 1) & b.x;
    const uint32_t begin = load_shared(a.x + 4 * child), size = load_shared(a.y + 4 * child);
    return min(b.z + ((begin * (b.x + 1) + size * odd) << b.y), b.w);
}

/* The greatest of count bit patterns as signed numbers, in four chains: of floats, where one of
 * them is not negative. */
template <int count, typename F> __device__ __forceinline__ int32_t most_signed(const F &bits)
{
    int32_t chain[4];
#pragma unroll
    for (int n = 0; n < 4; n++)
        chain[n] = (int32_t)bits(n);
#pragma unroll
    for (int n = 4; n < count; n += 2)
        chain[n / 2 % 4] = __vimax3_s32(chain[n / 2 % 4], (int32_t)bits(n), (int32_t)bits(n + 1));
    return max(__vimax3_s32(chain[0], chain[1], chain[2]), chain[3]);
}

/* The least of them as unsigned numbers: of floats that are all negative, the greatest. */
template <int count, typename F> __device__ __forceinline__ uint32_t least_unsigned(const F &bits)
{
    uint32_t chain[4];
#pragma unroll
    for (int n = 0; n < 4; n++)
        chain[n] = bits(n);
#pragma unroll
    for (int n = 4; n < count; n += 2)
        chain[n / 2 % 4] = __vimin3_u32(chain[n / 2 % 4], bits(n), bits(n + 1));
    return min(__vimin3_u32(chain[0], chain[1], chain[2]), chain[3]);
}

/* ordered_bits of the greatest of count scores, NaN being -inf. */
template <int count, typename F> __device__ __forceinline__ uint32_t best_score(const F &bits)
{
    const uint32_t infinity = 0x7f800000u, sign = 0x80000000u;
    const int32_t most = most_signed<count>(bits);
    if (__builtin_expect((uint32_t)most <= infinity, 1))
        return (uint32_t)most | sign;
    if (most < 0) {
        const uint32_t least = least_unsigned<count>(bits);
        return least == sign ? sign : ~min(least, infinity | sign);
    }
    float best = -INFINITY;
#pragma unroll
    for (int n = 0; n < count; n++)
        best = fmaxf(best, __uint_as_float(bits(n)));
    return ordered_bits(best);
}

#endif
