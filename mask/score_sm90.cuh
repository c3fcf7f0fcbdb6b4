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
#include "mask/plain_sm90.cuh"
#include "mask/score_mma.cuh"

/* STEPS: head_dim / 32, rounded up to what there is. */
template <typename T, int STEPS> struct sm90_scores {
    using score = uint32_t;
    /* Queries of one product. Fewer sums let more threads run on a multiprocessor, where its shared
     * memory has room for their queries. */
    static constexpr int columns = STEPS <= 2 ? 64 : 128;
    static constexpr int threads_each = STEPS <= 2 ? 768 : 512;         /* of a multiprocessor */
    static constexpr int threads = threads_each / (STEPS <= 2 ? 2 : 1); /* of a block, at most */
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
        const bool in_columns = blockDim.x % (8 * units) == 0;
        if (search.g.mask_group == 1 && search.by_16_bytes && in_columns)
            load_columns(search, row, shared_address(shared), first, count);
        else
            load_rows(search, row, shared, first, count);
        copy_async_wait();
        /* The products read shared memory by another way than the stores above. */
#if __CUDA_ARCH_FEAT_SM90_ALL
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
    }

    /* Of one head, whose queries lie at equal distances. A thread copies one unit of them, and so
     * one unit of the rows of the swizzle. */
    static __device__ __forceinline__ void load_columns(const mask_search &search,
                                                        const mask_row &row, uint32_t shared,
                                                        int32_t first, int32_t count)
    {
        const int unit = (int)threadIdx.x % units, step = (int)blockDim.x / units;
        const bool exists = unit < (int)search.g.head_dim / 8;
        const uint16_t *from = find_query<uint16_t>(search, row, 0) + (exists ? 8 * unit : 0);
        const int64_t distance = search.g.query_stride * search.q.strides.token;
        const int32_t last = row.queries - 1;
        uint32_t to = shared + (uint32_t)place(search.query_room, (int)threadIdx.x / units, unit);
        for (int query = (int)threadIdx.x / units; query < count; query += step) {
            copy_async_16(to, from + min(first + query, last) * distance, exists);
            to += (uint32_t)step * 128;
        }
    }

    static __device__ __forceinline__ void load_rows(const mask_search &search, const mask_row &row,
                                                     unsigned char *shared, int32_t first,
                                                     int32_t count)
    {
        const int room = search.query_room;
        for (int i = (int)threadIdx.x; i < count * units; i += (int)blockDim.x) {
            const int query = i / units, unit = i % units;
            const uint16_t *from = find_query<uint16_t>(search, row, first + query);
            const bool exists = unit < (int)search.g.head_dim / 8;
            if (search.by_16_bytes)
                copy_async_16(shared_address(shared) + place(room, query, unit),
                              from + (exists ? 8 * unit : 0), exists);
            else
                *reinterpret_cast<uint4 *>(shared + place(room, query, unit)) =
                    load_unit<ROWS_BY_ELEMENT>(from, unit, (int)search.g.head_dim / 8);
        }
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

    /* Begins to copy the keys; lane side + n holds the number of key n. column: of key 0, this
     * lane's unit; to: where that goes. */
    static __device__ __forceinline__ void fetch_keys(const mask_search &search, const char *column,
                                                      uint32_t to, int32_t key, uint32_t side)
    {
        const uint32_t lane = lane_again(), row = lane / units;
        const bool exists = lane % units < (uint32_t)search.g.head_dim / 8;
#pragma unroll
        for (uint32_t first = 0; first < keys_of_warp; first += rows_of_turn) {
            const uint32_t of_row =
                (uint32_t)__shfl_sync(0xffffffffu, key, (int)(side + first + row));
            if (32 % units == 0 || lane < rows_of_turn * units) /* of 12 units: some stand by */
                copy_async_16(to + first * key_pitch,
                              column + (uint64_t)of_row * search.k_row_bytes, exists);
        }
    }

    /* The same for rows that do not begin at multiples of 16 bytes. */
    static __device__ __noinline__ void copy_keys(const mask_search &search, const char *column,
                                                  uint32_t to, int32_t key, uint32_t side)
    {
        const uint32_t lane = threadIdx.x % 32, row = lane / units;
        for (uint32_t first = 0; first < keys_of_warp; first += rows_of_turn) {
            const int64_t of_row = __shfl_sync(0xffffffffu, key, (int)(side + first + row));
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
        const uint64_t panel = wgmma_panel(queries, 0);
        wgmma_hold(sums);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < 2 * STEPS; step++)
            wgmma_abt<T, columns / 2>(
                sums, left[step],
                wgmma_panel_at(panel, (uint32_t)(step / 4 * room * 128 + step % 4 * 32)), step > 0);
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

    /* Over all queries, 128 where ALL; `meanwhile` is called under the first product. */
    template <bool ALL, typename F>
    static __device__ __forceinline__ void
    multiply(const mask_search &search, uint32_t queries, int32_t count,
             const uint32_t (&left)[2 * STEPS][4], float (&best)[2], const F &meanwhile)
    {
        if (columns == 64 || (!ALL && count < 128)) {
            meanwhile();
#pragma unroll 1
            for (int32_t first = 0; first < (columns == 64 ? count : 64); first += 64)
                multiply_half(queries + (uint32_t)first * 128, search.query_room, left, best);
            return;
        }
        float sums[64];
        begin<128>(sums, queries, ALL ? 128 : search.query_room, left);
        meanwhile();
        take_best<128>(sums, best);
        if (ALL)
            return;
        int32_t first = 128;
#pragma unroll 1
        for (; first + 128 <= count; first += 128) {
            begin<128>(sums, queries + (uint32_t)first * 128, search.query_room, left);
            take_best<128>(sums, best);
        }
        if (first < count)
            multiply_half(queries + (uint32_t)first * 128, search.query_room, left, best);
    }

    /* Hands the best of the warp's 16 keys to their halves of children; lane side + n holds that of
     * key n. */
    static __device__ __forceinline__ void
    keep_best(const tree_level<score> &level, const float (&best)[2], int32_t half, uint32_t side)
    {
        const uint32_t lane = threadIdx.x % 32, odd = lane & 1;
        /* Lanes 4 g + t: those with an even t go on with row g, the others with 8 + g. */
        const float other = __shfl_xor_sync(0xffffffffu, odd ? best[0] : best[1], 1);
        float mine = fmaxf(odd ? best[1] : best[0], other);
        mine = fmaxf(mine, __shfl_xor_sync(0xffffffffu, mine, 2));
        const int32_t owner = __shfl_sync(0xffffffffu, half, (int)(side + 8 * odd + lane / 4));
        uint32_t writers = 0x33333333u;
        if (level.fours) {
            mine = fmaxf(mine, __shfl_xor_sync(0xffffffffu, mine, 4));
            mine = fmaxf(mine, __shfl_xor_sync(0xffffffffu, mine, 8));
            writers = 0x00030003u;
        }
        if (writers >> lane & 1)
            atomicMax(&level.halves[owner], ordered_bits(mine));
    }

    /* Plain levels. The row in shared memory for number 0 ... 15 of a warp's: so the two rows of a
     * lane in a product, n and 8 + n, are neighbours among the numbers, and mostly of one half. */
    static __device__ __forceinline__ uint32_t plain_row(uint32_t number)
    {
        return number % 2 * 8 + number / 2;
    }

    /* The keys of two tiles, even and odd, lie in the last unit of rows, which holds no key: those
     * of rows 4 n ... 4 n + 3 in row n or 4 + n. */
    static __device__ __forceinline__ uint32_t place_of_keys(uint32_t rows, uint32_t odd,
                                                             uint32_t p)
    {
        return rows + (4 * odd + p / 4) * key_pitch + units * 16 + p % 4 * 4;
    }

    /* A lane copies one unit of turns rows that follow each other. */
    static constexpr int turns = keys_of_warp / rows_of_turn;

    static __device__ __forceinline__ void fetch_plain(const mask_search &search, uint64_t column,
                                                       uint32_t to, uint32_t keys, bool exists)
    {
        if (32 % units != 0 && lane_again() >= rows_of_turn * units)
            return;
        uint32_t row_bytes = search.k_row_bytes;
        asm volatile("" : "+r"(row_bytes));
#pragma unroll
        for (uint32_t four = 0; four < turns / 4; four++) {
            const uint4 key = load_shared_16(keys + four * key_pitch);
            const uint32_t of_row[4] = {key.x, key.y, key.z, key.w};
#pragma unroll
            for (uint32_t n = 0; n < 4; n++) {
                const uint64_t from = column + (uint64_t)of_row[n] * row_bytes;
                copy_async_16(to + (4 * four + n) * key_pitch, reinterpret_cast<const void *>(from),
                              exists);
            }
        }
    }

    /* sums[64 keys, columns queries], begun and not waited for. panel: the low word of wgmma_panel,
     * the high one being known. */
    static __device__ __forceinline__ void begin_plain(float (&sums)[columns / 2], uint32_t panel,
                                                       const uint32_t (&left)[2 * STEPS][4])
    {
        constexpr uint64_t high = 0x40000040ull << 32;
        panel = made_once(panel); /* else eight are made before the loop and held */
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < 2 * STEPS; step++)
            wgmma_abt<T, columns / 2>(
                sums, left[step], high | (panel + (uint32_t)(step / 4 * 128 * 8 + step % 4 * 2)),
                step > 0);
        wgmma_commit();
    }

    /* ordered_bits of the best of this lane's columns, of both of its rows. */
    static __device__ __forceinline__ uint32_t best_of_both(const float (&sums)[columns / 2])
    {
        return best_score<columns / 2>([&](int n) { return __float_as_uint(sums[n]); });
    }

    /* The same of row 8 row + g. */
    static __device__ __forceinline__ uint32_t best_of_row(const float (&sums)[columns / 2],
                                                           int row)
    {
        return best_score<columns / 4>(
            [&](int n) { return __float_as_uint(sums[n / 2 * 4 + 2 * row + n % 2]); });
    }

    /* Hands over the best of two neighbouring numbers to one half. */
    static __device__ __forceinline__ void keep_whole(uint32_t best, uint32_t half, bool exists)
    {
        if (exists)
            raise_shared(half, best);
    }

    /* The same where they can be of two halves of a child. */
    static __device__ __forceinline__ void
    keep_parted(const uint32_t (&best)[2], const tree_level<score> &level, uint32_t number)
    {
        const uint32_t lane = lane_again(), odd = lane & 1;
        /* Lanes 4 g + t: those with an even t go on with row g, the others with 8 + g. */
        const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? best[0] : best[1], 1);
        uint32_t mine = max(odd ? best[1] : best[0], other);
        mine = max(mine, __shfl_xor_sync(0xffffffffu, mine, 2));
        if (lane % 4 >= 2)
            return;
        number = min(number + odd, level.keys.last);
        const uint32_t child = number >> level.keys.tokens_log2;
        const uint32_t size = load_shared(level.keys.size + 4 * child);
        const uint32_t part = (2 * number + 1) & level.keys.odd_mask;
        const bool second = size * part >> (level.keys.tokens_log2 + 1) >= (size + 1) / 2;
        raise_shared(shared_address(level.halves) + 8 * child + (second ? 4 : 0), mine);
    }

    /* Keeps the compiler from making a value again and again. */
    template <typename V> static __device__ __forceinline__ V made_once(V value)
    {
        if constexpr (sizeof(V) == 8)
            asm volatile("" : "+l"(value));
        else
            asm volatile("" : "+r"(value));
        return value;
    }

    /* WHOLE: numbers 2 n and 2 n + 1 are of one half. */
    template <bool WHOLE>
    static __device__ __forceinline__ void
    score_plain(const mask_search &search, const mask_row &row, const tree_level<score> &level,
                const unsigned char *queries, unsigned char *key_rows)
    {
#if __CUDA_ARCH_FEAT_SM90_ALL
        const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const uint32_t step = blockDim.x / 2; /* 16 keys of each warp */
        const uint32_t last = level.keys.last, keys = made_once(shared_address(&level.keys));
        const uint32_t panel = made_once((uint32_t)wgmma_panel(shared_address(queries), 0));
        const uint32_t rows = made_once(shared_address(key_rows) + warp * warp_bytes);
        const uint32_t unit = lane % units, first_row = lane / units * turns;
        const bool exists = unit < (uint32_t)search.g.head_dim / 8;
        const uint64_t column = made_once(
            reinterpret_cast<uint64_t>(find_keys<uint16_t>(search, row) + (exists ? 8 * unit : 0)));
        const uint32_t to = made_once(rows + first_row * key_pitch + unit * 16);
        const uint32_t from = made_once(place_of_keys(rows, 0, first_row));
        const uint32_t found = made_once(place_of_keys(rows, lane / 16, plain_row(lane % 16)));
        /* The warps of a warpgroup take the same number of tiles, of 64 keys. */
        uint32_t tile = warp / 4 * 64;
        if (tile > last)
            return;
        uint32_t wanted = made_once(tile + warp % 4 * 16 + lane % 16 + lane / 16 * step);
        uint32_t number = made_once(tile + warp % 4 * 16 + lane / 4 * 2);
        uint32_t half =
            WHOLE ? shared_address(level.halves) + 4 * (number >> (level.keys.tokens_log2 - 1)) : 0;
        const uint32_t half_step = step >> (level.keys.tokens_log2 - 1) << 2;
        const auto find = [&]() {
            store_shared(found, find_plain_key(keys, wanted));
            wanted += 2 * step;
            __syncwarp();
        };
        find();
        fetch_plain(search, column, to, from, exists);
        uint32_t other = 4 * key_pitch;
#pragma unroll 1
        for (;;) {
            uint32_t left[2 * STEPS][4];
            take_keys(rows, left);
            float sums[columns / 2];
            begin_plain(sums, panel, left);
            tile += step;
            if (tile <= last)
                fetch_plain(search, column, to, from + other, exists);
            if (other) {
                __syncwarp();
                find();
            }
            other ^= 4 * key_pitch;
            uint32_t best[2] = {0, 0};
#pragma unroll
            for (int first = 0; first < 128; first += columns) {
                if (first > 0)
                    begin_plain(sums, panel + (uint32_t)first * 8, left);
                wgmma_wait<0>();
                wgmma_hold(sums);
                if (WHOLE) {
                    best[0] = max(best[0], best_of_both(sums));
                } else {
                    best[0] = max(best[0], best_of_row(sums, 0));
                    best[1] = max(best[1], best_of_row(sums, 1));
                }
            }
            if (WHOLE)
                keep_whole(best[0], half, number <= last);
            else
                keep_parted(best, level, number);
            if (tile > last)
                return;
            half += half_step;
            number += step;
        }
#endif
    }

    static __device__ void score_level(const mask_search &search, const mask_row &row,
                                       const tree_level<score> &level, const unsigned char *queries,
                                       unsigned char *key_rows, int32_t count)
    {
        if (count == 128 && search.query_room == 128 && search.by_16_bytes && level.plain) {
            if (level.whole)
                score_plain<true>(search, row, level, queries, key_rows);
            else
                score_plain<false>(search, row, level, queries, key_rows);
        } else if (count == 128 && search.query_room == 128 && search.by_16_bytes)
            score_tiles<true>(search, row, level, queries, key_rows, count);
        else
            score_tiles<false>(search, row, level, queries, key_rows, count);
    }

    /* COMMON: 128 queries, and rows that begin at multiples of 16 bytes. */
    template <bool COMMON>
    static __device__ __forceinline__ void
    score_tiles(const mask_search &search, const mask_row &row, const tree_level<score> &level,
                const unsigned char *queries, unsigned char *key_rows, int32_t count)
    {
#if __CUDA_ARCH_FEAT_SM90_ALL
        const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const uint32_t step = blockDim.x / 2; /* 16 keys of each warp */
        const uint32_t total = (uint32_t)level.n_children * level.tokens;
        const uint32_t first_query = shared_address(queries);
        const uint32_t rows = shared_address(key_rows) + warp * warp_bytes;
        const int unit = (int)lane % units;
        const char *column = reinterpret_cast<const char *>(
            find_keys<uint16_t>(search, row) + (unit < search.g.head_dim / 8 ? 8 * unit : 0));
        const uint32_t to = rows + lane / units * key_pitch + (uint32_t)unit * 16;
        /* The warps of a warpgroup take the same number of tiles, of 64 keys. Lanes 0 ... 15 know
         * the keys of an even one, the others those of the next; copies run one tile ahead. */
        uint32_t tile = warp / 4 * 64;
        const auto find = [&](uint32_t first, int32_t &half, int32_t &key) {
            const uint32_t number = first + lane / 16 * step + warp % 4 * 16 + lane % 16;
            find_representative(search, row, level, min(number, total - 1), &half, &key);
        };
        const auto fetch = [&](int32_t key, uint32_t side) {
            if (COMMON || search.by_16_bytes)
                fetch_keys(search, column, to, key, side);
        };
        const auto score_tile = [&](int32_t half, int32_t key, uint32_t side,
                                    const auto &meanwhile) {
            if (!COMMON && !search.by_16_bytes)
                copy_keys(search, column, to, key, side);
            uint32_t left[2 * STEPS][4];
            take_keys(rows, left);
            float best[2] = {-INFINITY, -INFINITY};
            multiply<COMMON>(search, first_query, count, left, best, meanwhile);
            keep_best(level, best, half, side);
        };
        if (tile >= total)
            return;
        int32_t half, key, next_half, next_key;
        find(tile, half, key);
        fetch(key, 0);
#pragma unroll 1
        for (;;) {
            score_tile(half, key, 0, [&]() {
                if (tile + step < total)
                    fetch(key, 16);
                find(tile + 2 * step, next_half, next_key);
            });
            if ((tile += step) >= total)
                break;
            score_tile(half, key, 16, [&]() {
                if (tile + step < total)
                    fetch(next_key, 0);
            });
            if ((tile += step) >= total)
                break;
            half = next_half;
            key = next_key;
        }
#endif
    }
};

#endif
