/* Scores on the tensor cores (mma.sync, sm_80 and later) for f16 and bf16.
 *
 * A warp takes 16 GROUPS keys at a time. Their rows go from global memory straight into registers
 * as left operands: nobody else needs them. The row's queries lie in shared memory and are the
 * right operand, so that the maximum over the queries is one over a thread's own registers, and no
 * product is written anywhere.
 *
 * A product sums over head dims in any order as long as both operands agree. Lane 4 g + t therefore
 * loads dims 8 t ... 8 t + 7 of each 32 of its rows, which are 16 bytes, and uses them as its
 * columns of two steps of 16. */
#ifndef HPA_MASK_SCORE_MMA_CUH
#define HPA_MASK_SCORE_MMA_CUH

#include "core/cuda/mma.cuh"
#include "core/cuda/reduce.cuh"
#include "mask/tree_cuda.cuh"

/* How rows are read: 16 bytes at a time, where they are aligned and head_dim is a multiple of 32
 * and where head_dim is not; else by element. */
enum row_access { ROWS_WHOLE, ROWS_BY_UNIT, ROWS_BY_ELEMENT };

/* 8 elements of a row of head_dim; zeros past its end. */
template <row_access access>
__device__ __forceinline__ uint4 load_unit(const uint16_t *row, int unit, int units)
{
    if (access == ROWS_WHOLE)
        return __ldg(reinterpret_cast<const uint4 *>(row) + unit);
    if (unit >= units)
        return make_uint4(0, 0, 0, 0);
    if (access == ROWS_BY_UNIT)
        return __ldg(reinterpret_cast<const uint4 *>(row) + unit);
    const uint16_t *e = row + 8 * unit;
    return make_uint4(e[0] | (uint32_t)e[1] << 16, e[2] | (uint32_t)e[3] << 16,
                      e[4] | (uint32_t)e[5] << 16, e[6] | (uint32_t)e[7] << 16);
}

/* The same where speed does not matter. */
__device__ __forceinline__ uint4 load_any_unit(const mask_search &search, const uint16_t *row,
                                               int unit)
{
    const int units = (int)search.g.head_dim / 8;
    return search.by_16_bytes ? load_unit<ROWS_BY_UNIT>(row, unit, units)
                              : load_unit<ROWS_BY_ELEMENT>(row, unit, units);
}

/* Sampled query number `number` of a row: past the last, the last again. */
template <typename T>
__device__ __forceinline__ const T *find_query(const mask_search &search, const mask_row &row,
                                               int32_t number)
{
    const int32_t n = min(number, row.queries - 1);
    const int32_t head = search.g.mask_group == 1 ? 0 : n / row.sampled;
    const int64_t query = (n - head * row.sampled) * search.g.query_stride;
    return static_cast<const T *>(search.q.data) + row.first_query + head * search.q.strides.head +
           query * search.q.strides.token;
}

template <typename T>
__device__ __forceinline__ const T *find_keys(const mask_search &search, const mask_row &row)
{
    return static_cast<const T *>(search.k.data) + row.first_key;
}

/* STEPS: head_dim / 32, rounded up to what there is. */
template <typename T, int STEPS, int GROUPS> struct mma_scores {
    using score = uint32_t;
    static constexpr int threads_each = 512; /* of a multiprocessor */
    static constexpr int threads = 512;      /* at most */
    static constexpr int least_threads = 128;
    static constexpr int query_bytes = 64 * STEPS;
    static constexpr int query_multiple = 16;

    /* Units of rows that lie 128 bytes apart in the banks change halves in odd rows. */
    static __device__ __forceinline__ int place(int query, int unit)
    {
        return query * query_bytes + 16 * (STEPS % 2 == 0 ? unit ^ (query & 1) << 2 : unit);
    }

    static __device__ void load_queries(const mask_search &search, const mask_row &row,
                                        unsigned char *shared, int32_t first, int32_t count)
    {
        for (int i = (int)threadIdx.x; i < count * 4 * STEPS; i += (int)blockDim.x) {
            const int query = i / (4 * STEPS), unit = i % (4 * STEPS);
            const uint16_t *from = find_query<uint16_t>(search, row, first + query);
            *reinterpret_cast<uint4 *>(shared + place(query, unit)) =
                load_any_unit(search, from, unit);
        }
    }

    /* Left operands of the keys; lane l holds the number of key l (and 32 + l) of the tile. */
    template <row_access access>
    static __device__ __forceinline__ void
    read_keys(const mask_search &search, const uint16_t *keys,
              const int32_t (&key)[(GROUPS + 1) / 2], uint32_t (&left)[GROUPS][2 * STEPS][4])
    {
        const int lane = (int)threadIdx.x % 32, g = lane / 4, t = lane % 4;
        const int units = (int)search.g.head_dim / 8;
#pragma unroll
        for (int half = 0; half < 2 * GROUPS; half++) {
            const int32_t number = __shfl_sync(0xffffffffu, key[half / 4], (8 * half + g) % 32);
            const uint16_t *row = keys + number * search.k.strides.token;
#pragma unroll
            for (int step = 0; step < STEPS; step++) {
                const uint4 unit = load_unit<access>(row, 4 * step + t, units);
                left[half / 2][2 * step][half % 2] = unit.x;
                left[half / 2][2 * step][2 + half % 2] = unit.y;
                left[half / 2][2 * step + 1][half % 2] = unit.z;
                left[half / 2][2 * step + 1][2 + half % 2] = unit.w;
            }
        }
    }

    static __device__ __forceinline__ void load_keys(const mask_search &search,
                                                     const uint16_t *keys,
                                                     const int32_t (&key)[(GROUPS + 1) / 2],
                                                     uint32_t (&left)[GROUPS][2 * STEPS][4])
    {
        if (!search.by_16_bytes)
            read_keys<ROWS_BY_ELEMENT>(search, keys, key, left);
        else if (search.g.head_dim == 32 * STEPS)
            read_keys<ROWS_WHOLE>(search, keys, key, left);
        else
            read_keys<ROWS_BY_UNIT>(search, keys, key, left);
    }

    /* best[n]: over the queries, of row 8 n + g of the tile, this lane's columns. */
    static __device__ __forceinline__ void multiply(const unsigned char *queries, int32_t count,
                                                    const uint32_t (&left)[GROUPS][2 * STEPS][4],
                                                    float (&best)[2 * GROUPS])
    {
        const int lane = (int)threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
        for (int n = 0; n < 2 * GROUPS; n++)
            best[n] = -INFINITY;
#pragma unroll 1
        for (int first = 0; first < count; first += 16) {
            float sums[GROUPS][2][4] = {};
#pragma unroll
            for (int step = 0; step < STEPS; step++) {
#pragma unroll
                for (int n = 0; n < 2; n++) {
                    const uint4 unit = *reinterpret_cast<const uint4 *>(
                        queries + place(first + 8 * n + g, 4 * step + t));
#pragma unroll
                    for (int group = 0; group < GROUPS; group++) {
                        multiply_add<T>(sums[group][n], left[group][2 * step], unit.x, unit.y);
                        multiply_add<T>(sums[group][n], left[group][2 * step + 1], unit.z, unit.w);
                    }
                }
            }
#pragma unroll
            for (int group = 0; group < GROUPS; group++)
#pragma unroll
                for (int n = 0; n < 8; n++)
                    best[2 * group + n % 4 / 2] =
                        fmaxf(best[2 * group + n % 4 / 2], sums[group][n / 4][n % 4]);
        }
    }

    static __device__ void score_level(const mask_search &search, const mask_row &row,
                                       const tree_level<score> &level, const unsigned char *queries,
                                       unsigned char *, int32_t count)
    {
        constexpr uint32_t tile_keys = 16 * GROUPS;
        const uint32_t lane = threadIdx.x % 32, warps = blockDim.x / 32;
        const uint32_t total = (uint32_t)level.n_children * level.tokens;
        const uint16_t *keys = find_keys<uint16_t>(search, row);
#pragma unroll 1
        for (uint32_t tile = threadIdx.x / 32; tile * tile_keys < total; tile += warps) {
            int32_t key[(GROUPS + 1) / 2], half[(GROUPS + 1) / 2];
#pragma unroll
            for (int n = 0; n < (GROUPS + 1) / 2; n++)
                find_representative(search, row, level,
                                    min(tile * tile_keys + 32 * n + lane % tile_keys, total - 1),
                                    &half[n], &key[n]);
            uint32_t left[GROUPS][2 * STEPS][4];
            load_keys(search, keys, key, left);
            float best[2 * GROUPS];
            multiply(queries, count, left, best);
#pragma unroll
            for (int n = 0; n < 2 * GROUPS; n++) {
                const float highest = lanes_max<4>(best[n]);
                const int32_t owner =
                    __shfl_sync(0xffffffffu, half[n / 4], (int)(8 * n + lane / 4) % 32);
                if (lane % 4 == n % 4)
                    atomicMax(&level.halves[owner], ordered_bits(highest));
            }
        }
    }
};

#endif
