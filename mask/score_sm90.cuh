/* Scores on Hopper's warpgroup products (wgmma, sm_90a) for f16 and bf16, head_dim up to 128.
 *
 * As score_mma.cuh, but a warpgroup takes 64 keys at a time and up to 128 queries in one product.
 * Keys are again left operands in registers, each lane's from 16 bytes of the key; the right operand
 * is read from shared memory by the product itself, so there the head dims lie in the order that
 * makes them meet: of each 32, pairs 4 t + j (t, j = 0 ... 3) are stored as pairs 4 j + t. */
#ifndef HPA_MASK_SCORE_SM90_CUH
#define HPA_MASK_SCORE_SM90_CUH

#include "core/cuda/wgmma.cuh"
#include "mask/score_mma.cuh"

/* STEPS: head_dim / 32, rounded up to what there is. */
template <typename T, int STEPS> struct sm90_scores {
    using score = uint32_t;
    static constexpr int threads = 512; /* at most */
    static constexpr int least_threads = 128;
    static constexpr int panels = (STEPS + 1) / 2;
    static constexpr int query_bytes = 128 * panels;
    static constexpr int query_multiple = 64;

    /* Panels of 64 head dims hold query_room rows of 128 bytes in the 128-byte swizzle. */
    static __device__ __forceinline__ int place(int room, int query, int unit)
    {
        return (unit / 8 * room + query) * 128 + 16 * (unit % 8 ^ query % 8);
    }

    static __device__ void load_queries(const mask_search &search, const mask_row &row,
                                        unsigned char *shared, int32_t first, int32_t count)
    {
        const int room = search.query_room;
        for (int i = (int)threadIdx.x; i < count * STEPS; i += (int)blockDim.x) {
            const int query = i / STEPS, step = i % STEPS;
            const uint16_t *from = find_query<uint16_t>(search, row, first + query);
            uint32_t pairs[4][4];
#pragma unroll
            for (int t = 0; t < 4; t++) {
                const uint4 unit = load_any_unit(search, from, 4 * step + t);
                pairs[t][0] = unit.x;
                pairs[t][1] = unit.y;
                pairs[t][2] = unit.z;
                pairs[t][3] = unit.w;
            }
#pragma unroll
            for (int j = 0; j < 4; j++)
                *reinterpret_cast<uint4 *>(shared + place(room, query, 4 * step + j)) =
                    make_uint4(pairs[0][j], pairs[1][j], pairs[2][j], pairs[3][j]);
        }
        /* The products read shared memory by another way than the stores above. */
#if __CUDA_ARCH_FEAT_SM90_ALL
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
    }

    /* best[n]: of row 8 n + g of this warp's 16 keys, over the queries in this lane's columns. */
    template <int columns>
    static __device__ __forceinline__ void
    multiply(uint32_t queries, int room, const uint32_t (&left)[1][2 * STEPS][4], float (&best)[2])
    {
#if __CUDA_ARCH_FEAT_SM90_ALL
        float sums[columns / 2];
        wgmma_hold(sums);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < 2 * STEPS; step++) {
            const uint32_t at = queries + step / 4 * room * 128 + step % 4 * 32;
            wgmma_abt<T, columns / 2>(sums, left[0][step], wgmma_panel(at, 0), step > 0);
        }
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_hold(sums);
#pragma unroll
        for (int n = 0; n < columns / 2; n++)
            best[n % 4 / 2] = fmaxf(best[n % 4 / 2], sums[n]);
#endif
    }

    static __device__ void score_level(const mask_search &search, const mask_row &row,
                                       const tree_level<score> &level, const unsigned char *queries,
                                       unsigned char *, int32_t count)
    {
        const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
        const uint32_t groups = blockDim.x / 128;
        const uint32_t total = (uint32_t)level.n_children * level.tokens;
        const uint16_t *keys = find_keys<uint16_t>(search, row);
        const uint32_t first_query = shared_offset(queries);
#pragma unroll 1
        for (uint32_t tile = threadIdx.x / 128; tile * 64 < total; tile += groups) {
            int32_t key[1], child;
            find_representative(search, row, level,
                                min(tile * 64 + warp * 16 + lane % 16, total - 1), &child, key);
            uint32_t left[1][2 * STEPS][4];
            mma_scores<T, STEPS, 1>::load_keys(search, keys, key, left);
            float best[2] = {-INFINITY, -INFINITY};
#pragma unroll 1
            for (int32_t first = 0; first < count; first += 128) {
                const uint32_t at = first_query + (uint32_t)first * 128;
                if (count - first > 64)
                    multiply<128>(at, search.query_room, left, best);
                else
                    multiply<64>(at, search.query_room, left, best);
            }
#pragma unroll
            for (int n = 0; n < 2; n++) {
                const float highest = lanes_max<4>(best[n]);
                const int32_t owner = __shfl_sync(0xffffffffu, child, (int)(8 * n + lane / 4));
                if (lane % 4 == n)
                    atomicMax(&level.score[owner], ordered_bits(highest));
            }
        }
    }
};

#endif
