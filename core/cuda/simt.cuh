/* Tiles of 16 x 16 pairs on the ordinary arithmetic units: any head_dim, any dtype.
 *
 * 256 threads: thread (row, column) owns one pair, and of each 16 x D sum the 16-byte pieces number
 * column, column + 16, ... of its row. The 16 threads of a row are neighbours in one warp. Rows in
 * shared memory are of the sum type, one 16-byte piece longer than D: an odd number of pieces, which
 * keeps the rows of a tile in different banks. */
#ifndef HPA_CORE_CUDA_SIMT_CUH
#define HPA_CORE_CUDA_SIMT_CUH

#include "core/cuda/reduce.cuh"
#include "core/cuda/rows.cuh"
#include "core/cuda/scalar.cuh"

#define SIMT_TOKENS 16
#define SIMT_THREADS 256
#define SIMT_MAX_HEAD_DIM 256

template <typename sum> struct alignas(16) sum_piece {
    static constexpr int length = 16 / sizeof(sum);
    sum element[length];
};

/* A thread's share of a 16 x D sum. */
template <typename sum> struct sum_row {
    static constexpr int pieces = SIMT_MAX_HEAD_DIM / sum_piece<sum>::length / SIMT_TOKENS;
    sum_piece<sum> piece[pieces];
};

template <typename sum> __host__ __device__ __forceinline__ int simt_pitch(int head_dim)
{
    return head_dim + sum_piece<sum>::length;
}

/* Bytes of one tile of 16 tokens, and of one of 16 x 16 pairs. */
template <typename sum> static inline size_t simt_tile_bytes(int64_t head_dim)
{
    return SIMT_TOKENS * sizeof(sum) * (size_t)simt_pitch<sum>((int)head_dim);
}
template <typename sum> inline constexpr int simt_pair_pitch = SIMT_TOKENS + 1;

__device__ __forceinline__ int simt_row()
{
    return (int)threadIdx.x / SIMT_TOKENS;
}
__device__ __forceinline__ int simt_column()
{
    return (int)threadIdx.x % SIMT_TOKENS;
}

/* Tokens first ... first + 15 of one head; those at end and beyond become zeros. */
template <typename T>
__device__ __forceinline__ void simt_load(sum_of<T> *tile, const T *head_data, int64_t token_stride,
                                          int64_t first, int64_t end, int head_dim)
{
    const int64_t token = first + simt_row();
    for (int d = simt_column(); d < head_dim; d += SIMT_TOKENS)
        tile[simt_row() * simt_pitch<sum_of<T>>(head_dim) + d] =
            token < end ? to_sum(head_data[token * token_stride + d]) : 0;
}

/* a[row] . b[column] */
template <typename sum>
__device__ __forceinline__ sum simt_dot(const sum *a, const sum *b, int head_dim)
{
    const int pitch = simt_pitch<sum>(head_dim);
    sum total = 0;
    for (int d = 0; d < head_dim; d += sum_piece<sum>::length) {
        const auto x = *reinterpret_cast<const sum_piece<sum> *>(a + simt_row() * pitch + d);
        const auto y = *reinterpret_cast<const sum_piece<sum> *>(b + simt_column() * pitch + d);
#pragma unroll
        for (int n = 0; n < sum_piece<sum>::length; n++)
            total += x.element[n] * y.element[n];
    }
    return total;
}

/* sums[row] += weights[row][n] * tile[n] for begin <= n < end */
template <typename sum>
__device__ __forceinline__ void simt_add_rows(sum_row<sum> &sums, const sum *weights,
                                              const sum *tile, int begin, int end, int head_dim)
{
    const int pitch = simt_pitch<sum>(head_dim);
    for (int n = begin; n < end; n++) {
        const sum weight = weights[simt_row() * simt_pair_pitch<sum> + n];
#pragma unroll
        for (int i = 0; i < sum_row<sum>::pieces; i++) {
            const int d = (simt_column() + SIMT_TOKENS * i) * sum_piece<sum>::length;
            if (d >= head_dim)
                break;
            const auto x = *reinterpret_cast<const sum_piece<sum> *>(tile + n * pitch + d);
#pragma unroll
            for (int e = 0; e < sum_piece<sum>::length; e++)
                sums.piece[i].element[e] += weight * x.element[e];
        }
    }
}

/* factor * sums to a row of head_dim elements, or added to it */
template <typename T>
__device__ __forceinline__ void simt_store(T *to, const sum_row<sum_of<T>> &sums, sum_of<T> factor,
                                           bool accumulate, int head_dim)
{
    using sum = sum_of<T>;
#pragma unroll
    for (int i = 0; i < sum_row<sum>::pieces; i++) {
        const int d = (simt_column() + SIMT_TOKENS * i) * sum_piece<sum>::length;
        if (d >= head_dim)
            break;
#pragma unroll
        for (int e = 0; e < sum_piece<sum>::length; e++) {
            const sum value = sums.piece[i].element[e] * factor;
            to[d + e] = from_sum<T>(accumulate ? to_sum(to[d + e]) + value : value);
        }
    }
}

#endif
