/* Scores and weights of the Hopper forward, in a warpgroup's registers. */
#ifndef HPA_FORWARD_WEIGHTS_SM90_CUH
#define HPA_FORWARD_WEIGHTS_SM90_CUH

#include "forward/sm90.cuh"

namespace
{

/* Tells the compiler that all lanes hold the same. */
__device__ __forceinline__ int of_warp(int value)
{
    return __shfl_sync(0xffffffffu, value, 0);
}

template <int head_dim> struct sums {
    float o[head_dim / 2]; /* head_dim columns of 64 rows over 128 threads */
    float shift[2];        /* of this thread's two rows, to base 2: near their highest score */
    float total[2];        /* this thread's share of the sum of weights */
    bool not_finite;       /* this thread saw such a value in a tile with hidden pairs */
};

/* wgmma_panel in two words: the lower has the address, the upper is known here and now. */
constexpr uint64_t upper_word = (uint64_t)1 << 62 | (uint64_t)(1024 >> 4) << 32;

__device__ __forceinline__ uint32_t lower_word(const void *panel, uint32_t stride_bytes)
{
    return (uint32_t)of_warp((int)wgmma_panel(shared_address(panel), stride_bytes));
}

/* S = Q K^T, begun and not waited for. q, k: lower words. */
template <typename T, int head_dim, int n>
__device__ __forceinline__ void begin_scores(float (&s)[n], uint32_t q, uint32_t k)
{
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < head_dim / 16; step++) {
        const uint32_t q_at = step / 4 * query_panel_bytes + step % 4 * 32;
        const uint32_t k_at = step / 4 * key_panel_bytes + step % 4 * 32;
        wgmma_abt<T>(s, upper_word | (q + (q_at >> 4)), upper_word | (k + (k_at >> 4)), step > 0);
    }
    wgmma_commit();
}

/* O += P V, begun and not waited for. */
template <typename T, int head_dim, int steps>
__device__ __forceinline__ void begin_values(float (&o)[head_dim / 2],
                                             const uint32_t (&p)[steps][4], uint32_t v)
{
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < steps; step++)
        wgmma_ab<T>(o, p[step], upper_word | (v + (step * 16 * 128 >> 4)));
    wgmma_commit();
}

/* The first of a thread's two rows; the other is 8 below. */
template <int head_dim> __device__ __forceinline__ int row_in_tile()
{
    const int thread = (int)threadIdx.x - 128, of_share = thread % (groups * 128);
    return (key_shares<head_dim> == 1 ? thread : of_share) / 32 * 16 + thread % 32 / 4;
}

/* The last key that a row sees; -1 or less: none. */
__device__ __forceinline__ int last_key_of(const forward_arguments &x, const tile_job &job, int row)
{
    const int64_t sees = (int64_t)job.first_sees + (x.geometry.causal ? row : 0);
    return (int)hpa_min(sees, job.keys) - 1;
}

/* Hides what causality, the sequence's end and missing blocks forbid. */
template <int head_dim, int size>
__device__ __forceinline__ void hide_scores(const forward_arguments &x, float (&s)[size],
                                            const int32_t *key_of_box, const tile_job &job,
                                            int first_column)
{
    const int last_key[2] = {last_key_of(x, job, row_in_tile<head_dim>()),
                             last_key_of(x, job, row_in_tile<head_dim>() + 8)};
    const int in_box = x.block_k - 1;
#pragma unroll
    for (int n = 0; n < size / 4; n++) {
        const int column = first_column + n * 8 + (int)threadIdx.x % 4 * 2;
        const int first = key_of_box[column >> x.block_k_log2];
        const int key = first < 0 ? INT_MAX - 1 : first + (column & in_box);
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (key + i % 2 > last_key[i / 2])
                s[4 * n + i] = -INFINITY;
    }
}

/* Moves shift to the highest score where that has grown: rescale is what older sums are to be
 * multiplied by. */
template <int head_dim, int size>
__device__ __forceinline__ void follow_scores(const float (&s)[size], sums<head_dim> &a,
                                              float (&rescale)[2], float scale_log2)
{
    float highest[2][2];
#pragma unroll
    for (int i = 0; i < 4; i++)
        highest[i / 2][i % 2] = s[i];
#pragma unroll
    for (int n = 1; n < size / 4; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            highest[i / 2][i % 2] = fmaxf(highest[i / 2][i % 2], s[4 * n + i]);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float now = lanes_max<4>(fmaxf(highest[r][0], highest[r][1])) * scale_log2;
        const bool grown = now > a.shift[r]; /* also the first score of a row */
        rescale[r] = grown ? exp2_fast(a.shift[r] - now) : 1.f;
        a.shift[r] = grown ? now : a.shift[r];
    }
}

/* The weights of s, as the left operand of P V, and this thread's share of their sums. */
template <typename T, int head_dim, int size>
__device__ __forceinline__ void weigh_scores(uint32_t (&p)[size / 8][4], float (&total)[2],
                                             const float (&s)[size], const sums<head_dim> &a,
                                             float scale_log2)
{
    float shift[2];
    /* A row that has seen no key yet: exp2(-inf - 0) is 0, where -inf - -inf would be NaN. */
#pragma unroll
    for (int r = 0; r < 2; r++) {
        shift[r] = a.shift[r] == -INFINITY ? 0.f : a.shift[r];
        total[r] = 0;
    }
#pragma unroll
    for (int i = 0; i < size; i += 2) {
        const int r = i / 2 % 2;
        const float low = exp2_fast(fmaf(s[i], scale_log2, -shift[r]));
        const float high = exp2_fast(fmaf(s[i + 1], scale_log2, -shift[r]));
        total[r] += low + high;
        p[i / 8][i / 2 % 4] = pack<T>(low, high);
    }
}

/* May weights with these sums be added as they are? Not where one may have grown past MOST_WEIGHT, nor
 * where a row has no shift yet, unless a shift of 0, with which they were made, will do for it: it is
 * kept then. All lanes alike. */
template <int head_dim>
__device__ __forceinline__ bool weights_will_do(sums<head_dim> &a, const float (&total)[2])
{
    const bool begins = a.shift[0] == -INFINITY || a.shift[1] == -INFINITY;
    bool will_do = !(total[0] > MOST_WEIGHT) && !(total[1] > MOST_WEIGHT);
    if (__all_sync(0xffffffffu, will_do && !begins))
        return true;
#pragma unroll
    for (int r = 0; r < 2; r++)
        will_do &= lanes_sum<4>(total[r]) >= LEAST_SUM || a.shift[r] != -INFINITY;
    if (!__all_sync(0xffffffffu, will_do))
        return false;
#pragma unroll
    for (int r = 0; r < 2; r++)
        a.shift[r] = a.shift[r] == -INFINITY ? 0 : a.shift[r];
    return true;
}

template <int n> __device__ __forceinline__ void rescale_rows(float (&o)[n], const float (&by)[2])
{
#pragma unroll
    for (int i = 0; i < n; i++)
        o[i] *= by[i / 2 % 2];
}

} // namespace
#endif
