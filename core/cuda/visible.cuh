/* Which of a tile's pairs of query and key count, and how values that are not finite are kept from
 * the pairs that do not. */
#ifndef HPA_CORE_CUDA_VISIBLE_CUH
#define HPA_CORE_CUDA_VISIBLE_CUH

#include "core/cuda/gather.cuh"
#include "core/cuda/mma.cuh"
#include "core/cuda/reduce.cuh"

/* Does a part hold a token at `end` or beyond? */
template <int parts> __device__ __forceinline__ bool any_part_reaches(const int32_t *first, int end)
{
    bool reaches = false;
#pragma unroll
    for (int n = 0; n < parts; n++)
        reaches |= first[n] + PART_TOKENS > end;
    return reaches;
}

/* Does a part hold a token before `end`? */
template <int parts>
__device__ __forceinline__ bool any_part_begins_before(const int32_t *first, int end)
{
    bool before = false;
#pragma unroll
    for (int n = 0; n < parts; n++)
        before |= first[n] < end;
    return before;
}

/* Does a part that begins before `end` hold a token at `begin` or beyond? */
template <int parts>
__device__ __forceinline__ bool any_part_meets(const int32_t *first, int begin, int end)
{
    bool meets = false;
#pragma unroll
    for (int n = 0; n < parts; n++)
        meets |= first[n] + PART_TOKENS > begin && first[n] < end;
    return meets;
}

/* Token of a column of a gathered tile. */
__device__ __forceinline__ int32_t token_of(const int32_t *first, int column)
{
    return first[column / PART_TOKENS] + column % PART_TOKENS;
}

/* How many keys the queries of a warp see, as one lane counts its rows. */
struct visible_range {
    int32_t first_row; /* keys that row 0 of the lane sees, before the limit */
    int32_t most;      /* keys that there are */
    bool grows;        /* causal: each further row sees one more */
};

__device__ __forceinline__ int32_t visible_of(const visible_range &range, int row)
{
    return range.grows ? min(range.first_row + row, range.most) : range.most;
}

/* Sets sums(16 groups x columns) to value where the row does not see the key. */
template <int groups, int columns>
__device__ __forceinline__ void hide_keys(float (&sums)[groups][columns / 8][4], float value,
                                          const int32_t *first, const visible_range &range)
{
#pragma unroll
    for (int n = 0; n < groups; n++)
#pragma unroll
        for (int c = 0; c < columns / 8; c++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int column = 8 * c + (int)(threadIdx.x % 4) * 2 + i % 2;
                if (token_of(first, column) >= visible_of(range, 16 * n + i / 2 * 8))
                    sums[n][c][i] = value;
            }
}

/* Adds what is not finite in one row of a tile (D elements) to the sums of the rows that see it,
 * sees(n) telling for rows g (n even) and g + 8 (n odd) of each group of 16. */
template <typename T, int D, int groups, typename sees_row>
__device__ __forceinline__ void add_not_finite(float (&sums)[groups][D / 8][4], uint32_t tile_row,
                                               sees_row sees)
{
#pragma unroll
    for (int c = 0; c < D / 8; c++) {
        uint32_t both;
        asm volatile("ld.shared.u32 %0, [%1];"
                     : "=r"(both)
                     : "r"(tile_row + 16 * c + threadIdx.x % 4 * 4));
        if (finite_or_zero<T>(both) == both)
            continue;
        const float2 value = unpack<T>(both), finite = unpack<T>(finite_or_zero<T>(both));
#pragma unroll
        for (int n = 0; n < 2 * groups; n++)
            if (sees(n)) {
                sums[n / 2][c][n % 2 * 2] += value.x == finite.x ? 0 : value.x;
                sums[n / 2][c][n % 2 * 2 + 1] += value.y == finite.y ? 0 : value.y;
            }
    }
}

#endif
