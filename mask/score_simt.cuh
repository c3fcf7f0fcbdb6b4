/* Scores in plain arithmetic for f32 and f64: a tile of 32 keys in shared memory, a lane for each
 * key, and the queries divided among the warps. */
#ifndef HPA_MASK_SCORE_SIMT_CUH
#define HPA_MASK_SCORE_SIMT_CUH

#include "mask/score_mma.cuh"

template <typename T> struct lane_arithmetic;

template <> struct lane_arithmetic<float> {
    using score = uint32_t;
    using unit = float4;
    static constexpr int unit_size = 4;
    static __device__ __forceinline__ void multiply_add(float &sum, const float4 &a,
                                                        const float4 &b)
    {
        sum = fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
    }
};

template <> struct lane_arithmetic<double> {
    using score = unsigned long long;
    using unit = double2;
    static constexpr int unit_size = 2;
    static __device__ __forceinline__ void multiply_add(double &sum, const double2 &a,
                                                        const double2 &b)
    {
        sum = fma(a.y, b.y, fma(a.x, b.x, sum));
    }
};

template <typename T> struct simt_scores {
    using score = typename lane_arithmetic<T>::score;
    using unit = typename lane_arithmetic<T>::unit;
    static constexpr int unit_size = lane_arithmetic<T>::unit_size;
    static constexpr int threads_each = 512; /* of a multiprocessor */
    static constexpr int threads = 256;
    static constexpr int least_threads = 256;
    static constexpr int query_multiple = 4; /* a warp takes so many at a time */
    static constexpr int tile_keys = 32;

    /* An odd number of 16-byte units, so that a unit of each row is read without conflicts. */
    static __host__ __device__ __forceinline__ int pitch(int64_t head_dim)
    {
        return (int)head_dim + unit_size;
    }

    static __device__ void load_row(const mask_search &search, const T *from, T *to, int lane)
    {
        for (int d = lane; d < search.g.head_dim; d += 32)
            to[d] = from[d];
    }

    static __device__ void load_queries(const mask_search &search, const mask_row &row,
                                        unsigned char *shared, int32_t first, int32_t count)
    {
        T *to = reinterpret_cast<T *>(shared);
        const int lane = (int)threadIdx.x % 32;
        for (int query = (int)threadIdx.x / 32; query < count; query += (int)blockDim.x / 32)
            load_row(search, find_query<T>(search, row, first + query),
                     to + query * pitch(search.g.head_dim), lane);
    }

    /* The highest product of the lane's key with the warp's share of the queries. */
    static __device__ T best_of(const mask_search &search, const T *key, const T *queries,
                                int32_t count)
    {
        const int row_pitch = pitch(search.g.head_dim);
        const int units = (int)search.g.head_dim / unit_size;
        const unit *of_key = reinterpret_cast<const unit *>(key);
        T best = -(T)INFINITY;
        for (int first = (int)threadIdx.x / 32 * query_multiple; first < count;
             first += (int)blockDim.x / 32 * query_multiple) {
            T sums[query_multiple] = {};
            for (int d = 0; d < units; d++) {
                const unit a = of_key[d];
#pragma unroll
                for (int n = 0; n < query_multiple; n++)
                    lane_arithmetic<T>::multiply_add(
                        sums[n], a,
                        reinterpret_cast<const unit *>(queries + (first + n) * row_pitch)[d]);
            }
#pragma unroll
            for (int n = 0; n < query_multiple; n++)
                best = sums[n] > best ? sums[n] : best;
        }
        return best;
    }

    static __device__ void score_level(const mask_search &search, const mask_row &row,
                                       const tree_level<score> &level, const unsigned char *queries,
                                       unsigned char *key_tile, int32_t count)
    {
        const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
        const int row_pitch = pitch(search.g.head_dim);
        const uint32_t total = (uint32_t)level.n_children * level.tokens;
        const T *keys = find_keys<T>(search, row);
        T *tile = reinterpret_cast<T *>(key_tile);
        for (uint32_t first = 0; first < total; first += tile_keys) {
            int32_t half, key;
            find_representative(search, row, level, min(first + (uint32_t)lane, total - 1), &half,
                                &key);
            __syncthreads(); /* the tile before was read */
            for (int n = warp; n < tile_keys; n += (int)blockDim.x / 32)
                load_row(search, keys + __shfl_sync(0xffffffffu, key, n) * search.k.strides.token,
                         tile + n * row_pitch, lane);
            __syncthreads();
            const T best = best_of(search, tile + lane * row_pitch,
                                   reinterpret_cast<const T *>(queries), count);
            atomicMax(&level.halves[half], ordered_bits(best));
        }
    }
};

#endif
