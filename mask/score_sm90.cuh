/* Scores on Hopper's warpgroup products (wgmma, sm_90a) for f16 and bf16, head_dim up to 128.
 *
 * As score_mma.cuh, but a warpgroup takes 64 keys at a time and up to 128 queries in one product.
 * Each warp copies its 16 keys into rows of its own in shared memory, from where they become left
 * operands in registers; so the copies of the next 16 run under the product of these, and no warp
 * waits for another. The right operand, the queries, is read from shared memory by the product
 * itself. */
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
    static constexpr int units = 4 * STEPS; /* of 16 bytes, in a row */
    /* An odd number of units, so that the eight rows which ldmatrix reads at once fall into
     * different banks. */
    static constexpr int key_pitch = 16 * (units + 1);
    static constexpr int keys_of_warp = 16;
    static constexpr int warp_bytes = keys_of_warp * key_pitch;

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
            uint4 loaded[4];
#pragma unroll
            for (int n = 0; n < 4; n++)
                loaded[n] = load_any_unit(search, from, 4 * step + n);
#pragma unroll
            for (int n = 0; n < 4; n++)
                *reinterpret_cast<uint4 *>(shared + place(room, query, 4 * step + n)) = loaded[n];
        }
        /* The products read shared memory by another way than the stores above. */
#if __CUDA_ARCH_FEAT_SM90_ALL
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
    }

    /* Of copying the warp's 16 keys: a lane copies one unit of a row in each turn. */
    static constexpr int rows_of_turn = 32 / units;

    /* What is made of it is made again each time, and so takes no registers meanwhile. */
    static __device__ __forceinline__ uint32_t lane_again()
    {
        uint32_t lane;
        asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
        return lane;
    }

    /* Begins to copy the keys; lane l holds the number of key l % 16. column: of key 0, this lane's
     * unit; to: where that goes. */
    static __device__ __forceinline__ void fetch_keys(const mask_search &search, const char *column,
                                                      uint32_t to, int32_t key)
    {
        const uint32_t lane = lane_again(), row = lane / units;
        const bool exists = lane % units < (uint32_t)search.g.head_dim / 8;
#pragma unroll
        for (uint32_t first = 0; first < keys_of_warp; first += rows_of_turn) {
            const uint32_t of_row = (uint32_t)__shfl_sync(0xffffffffu, key, (int)(first + row));
            if (32 % units == 0 || lane < rows_of_turn * units) /* of 12 units: some stand by */
                copy_async_16(to + first * key_pitch,
                              column + (uint64_t)of_row * search.k_row_bytes, exists);
        }
    }

    /* The same for rows that do not begin at multiples of 16 bytes. */
    static __device__ __noinline__ void copy_keys(const mask_search &search, const char *column,
                                                  uint32_t to, int32_t key)
    {
        const uint32_t lane = threadIdx.x % 32, row = lane / units;
        for (uint32_t first = 0; first < keys_of_warp; first += rows_of_turn) {
            const int64_t of_row = __shfl_sync(0xffffffffu, key, (int)(first + row));
            const uint16_t *from =
                reinterpret_cast<const uint16_t *>(column) + of_row * search.k.strides.token;
            const uint4 unit = lane % units < (uint32_t)search.g.head_dim / 8
                                   ? load_unit<ROWS_BY_ELEMENT>(from, 0, 1)
                                   : make_uint4(0, 0, 0, 0);
            if (lane < rows_of_turn * units)
                asm volatile(
                    "st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to + first * key_pitch),
                    "r"(unit.x), "r"(unit.y), "r"(unit.z), "r"(unit.w)
                    : "memory");
        }
    }

    /* Left operands of the warp's keys. */
    static __device__ __forceinline__ void take_keys(uint32_t rows, uint32_t (&left)[2 * STEPS][4])
    {
        copy_async_wait();
        __syncwarp();
        const uint32_t lane = threadIdx.x % 32;
        const uint32_t from = rows + lane % 16 * key_pitch + lane / 16 * 16;
#pragma unroll
        for (int step = 0; step < 2 * STEPS; step++)
            load_matrices(left[step], from + (uint32_t)step * 32);
        __syncwarp(); /* the rows are free */
    }

    /* sums[64 keys, columns queries], begun and not waited for. */
    template <int columns>
    static __device__ __forceinline__ void begin(float (&sums)[columns / 2], uint32_t queries,
                                                 int room, const uint32_t (&left)[2 * STEPS][4])
    {
        wgmma_hold(sums);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < 2 * STEPS; step++) {
            const uint32_t at = queries + step / 4 * room * 128 + step % 4 * 32;
            wgmma_abt<T, columns / 2>(sums, left[step], wgmma_panel(at, 0), step > 0);
        }
        wgmma_commit();
    }

    /* best[n]: of row 8 n + g of this warp's 16 keys, over the queries in this lane's columns. */
    template <int columns>
    static __device__ __forceinline__ void take_best(float (&sums)[columns / 2], float (&best)[2])
    {
        wgmma_wait<0>();
        wgmma_hold(sums);
#pragma unroll
        for (int n = 0; n < columns / 2; n++)
            best[n % 4 / 2] = fmaxf(best[n % 4 / 2], sums[n]);
    }

    /* The same for 64 queries at once. */
    static __device__ __forceinline__ void multiply_half(uint32_t queries, int room,
                                                         const uint32_t (&left)[2 * STEPS][4],
                                                         float (&best)[2])
    {
        float sums[32];
        begin<64>(sums, queries, room, left);
        take_best<64>(sums, best);
    }

    /* Over all queries; `meanwhile` is called when the first product is under way. */
    template <typename F>
    static __device__ __forceinline__ void
    multiply(const mask_search &search, uint32_t queries, int32_t count,
             const uint32_t (&left)[2 * STEPS][4], float (&best)[2], const F &meanwhile)
    {
        if (count < 128) {
            meanwhile();
            multiply_half(queries, search.query_room, left, best);
            return;
        }
        float sums[64];
        begin<128>(sums, queries, search.query_room, left);
        meanwhile();
        take_best<128>(sums, best);
        int32_t first = 128;
#pragma unroll 1
        for (; first + 128 <= count; first += 128) {
            begin<128>(sums, queries + (uint32_t)first * 128, search.query_room, left);
            take_best<128>(sums, best);
        }
        if (first < count)
            multiply_half(queries + (uint32_t)first * 128, search.query_room, left, best);
    }

    /* Hands the best of the warp's 16 keys to their halves of children, half: of key lane % 16. */
    static __device__ __forceinline__ void keep_best(const tree_level<score> &level,
                                                     const float (&best)[2], int32_t half)
    {
        const uint32_t lane = threadIdx.x % 32, odd = lane & 1;
        /* Lanes 4 g + t: those with an even t go on with row g, those with an odd one with 8 + g. */
        const float other = __shfl_xor_sync(0xffffffffu, odd ? best[0] : best[1], 1);
        float mine = fmaxf(odd ? best[1] : best[0], other);
        mine = fmaxf(mine, __shfl_xor_sync(0xffffffffu, mine, 2));
        const int32_t owner = __shfl_sync(0xffffffffu, half, (int)(8 * odd + lane / 4));
        if (lane % 4 < 2)
            atomicMax(&level.halves[owner], ordered_bits(mine));
    }

    static __device__ void score_level(const mask_search &search, const mask_row &row,
                                       const tree_level<score> &level, const unsigned char *queries,
                                       unsigned char *key_rows, int32_t count)
    {
#if __CUDA_ARCH_FEAT_SM90_ALL
        const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const uint32_t step = blockDim.x / 2; /* 16 keys of each warp */
        const uint32_t total = (uint32_t)level.n_children * level.tokens;
        const uint32_t first_query = shared_offset(queries);
        const uint32_t rows = shared_offset(key_rows) + warp * warp_bytes;
        const uint32_t in_tile = warp % 4 * 16 + lane % 16;
        const int unit = (int)lane % units;
        const char *column = reinterpret_cast<const char *>(
            find_keys<uint16_t>(search, row) + (unit < search.g.head_dim / 8 ? 8 * unit : 0));
        const uint32_t to = rows + lane / units * key_pitch + (uint32_t)unit * 16;
        /* The warps of a warpgroup take the same number of tiles. One tile early, for the copies. */
        int32_t half, key = -1;
#pragma unroll 1
        for (uint32_t tile = warp / 4 * 64; tile < total; tile += step) {
            if (key < 0) {
                find_representative(search, row, level, min(tile + in_tile, total - 1), &half,
                                    &key);
                if (search.by_16_bytes)
                    fetch_keys(search, column, to, key);
            }
            if (!search.by_16_bytes)
                copy_keys(search, column, to, key);
            const bool more = tile + step < total;
            const int32_t half_now = half;
            find_representative(search, row, level, min(tile + step + in_tile, total - 1), &half,
                                &key);
            uint32_t left[2 * STEPS][4];
            take_keys(rows, left);
            float best[2] = {-INFINITY, -INFINITY};
            multiply(search, first_query, count, left, best, [&]() {
                if (more && search.by_16_bytes)
                    fetch_keys(search, column, to, key);
            });
            keep_best(level, best, half_now);
        }
#endif
    }
};

#endif
