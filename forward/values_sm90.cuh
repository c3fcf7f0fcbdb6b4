/* What the Hopper forward does about values that must not count: rows past the sequence's end, and
 * values that are not finite. */
#ifndef HPA_FORWARD_VALUES_SM90_CUH
#define HPA_FORWARD_VALUES_SM90_CUH

#include "forward/sm90.cuh"

namespace
{

template <typename T> struct pair_of;
template <> struct pair_of<__half> {
    using type = __half2;
};
template <> struct pair_of<__nv_bfloat16> {
    using type = __nv_bfloat162;
};

/* Where row `row` of a tile of V has its n-th 16 bytes, but for the swizzle. */
__device__ __forceinline__ int value_at(int row, int n)
{
    return n / 8 * key_panel_bytes + row * 128 + n % 8 * 16;
}

/* The rows of a tile of V that a warpgroup multiplies are shared out among its threads: a row to
 * one, or half a row if there are 64. This thread's row, and the 16 bytes that its part begins with. */
template <int head_dim> __device__ __forceinline__ int value_row(int share)
{
    return share * share_keys<head_dim> + (int)(threadIdx.x % share_keys<head_dim>);
}

template <int head_dim> constexpr int value_chunks = head_dim / 8 / key_shares<head_dim>;

template <int head_dim> __device__ __forceinline__ int value_chunk()
{
    return value_chunks<head_dim> * (int)(threadIdx.x % 128 / share_keys<head_dim>);
}

/* Rows of V past the sequence's end belong to somebody else, or to nobody: they weigh nothing, and
 * 0 * NaN must stay 0. One warpgroup clears them before any uses them. */
template <int head_dim>
__device__ void clear_values_past_end(const forward_arguments &x, unsigned char *v,
                                      const int32_t *key_of_box, int keys, int share)
{
    const int row = value_row<head_dim>(share), box = row >> x.block_k_log2;
    const int first = key_of_box[box] < 0 ? key_of_box[0] : key_of_box[box];
    if (first + (row & (x.block_k - 1)) >= keys)
        for (int n = 0; n < value_chunks<head_dim>; n++)
            *reinterpret_cast<uint4 *>(v + value_at(row, value_chunk<head_dim>() + n)) =
                make_uint4(0, 0, 0, 0);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* Does this thread's part of a tile of V, if there is such a key, hold an element that is not finite?
 * 0 times it is then NaN, and so is what that is added to. */
template <typename T, int head_dim>
__device__ __forceinline__ bool part_is_not_finite(const forward_arguments &x,
                                                   const unsigned char *v,
                                                   const int32_t *key_of_box, int keys, int share)
{
    using pair = typename pair_of<T>::type;
    const int row = value_row<head_dim>(share), first = key_of_box[row >> x.block_k_log2];
    if (first < 0 || first + (row & (x.block_k - 1)) >= keys)
        return false; /* and not read, as another warpgroup may be clearing it */
    const pair zero(T(0.f), T(0.f));
    pair sums[4] = {zero, zero, zero, zero};
#pragma unroll
    for (int n = 0; n < value_chunks<head_dim>; n++) {
        /* Rows begin in turns, so that neighbouring threads read from different banks. */
        constexpr int turn = value_chunks<head_dim> < 8 ? value_chunks<head_dim> : 8;
        const int chunk_at = value_chunk<head_dim>() + n / turn * turn + (n + row) % turn;
        const uint4 chunk = *reinterpret_cast<const uint4 *>(v + value_at(row, chunk_at));
        const uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
        for (int i = 0; i < 4; i++)
            sums[i] = __hfma2(*reinterpret_cast<const pair *>(&words[i]), zero, sums[i]);
    }
    const pair sum = __hadd2(__hadd2(sums[0], sums[1]), __hadd2(sums[2], sums[3]));
    return __hisnan(sum.x) || __hisnan(sum.y);
}

/* One row by one warp, from global memory, key by key: a weight of 0 in a product of tiles does not
 * keep a NaN away from a row that does not see its key, so a tile that met one is done again so. */
template <typename T, int head_dim>
__device__ void attend_row(const forward_arguments &x, const query_tile &tile, int64_t query)
{
    constexpr int share = head_dim / 32; /* columns of a lane */
    const hpa_sequence &s = tile.sequence;
    const int lane = threadIdx.x % 32;
    const int64_t head = tile.head, kv_head = head / x.geometry.group;
    const T *q = row_at<const T>(x.q, s.batch, head, s.q_start, query) + lane * share;
    const block_list list = row_list(x.geometry, x.mask, s, tile.mask_row);
    const int64_t visible = visible_keys(x.geometry, s, query);
    float o[share] = {}, highest = -INFINITY, total = 0;
    bool sees = false;
    for (int n = 0; n < list.length; n++)
        for (int64_t key = (int64_t)list.blocks[n] * x.block_k;
             key < hpa_min(visible, (int64_t)(list.blocks[n] + 1) * x.block_k); key++) {
            const T *k = row_at<const T>(x.k, s.batch, kv_head, s.kv_start, key) + lane * share;
            const T *v = row_at<const T>(x.v, s.batch, kv_head, s.kv_start, key) + lane * share;
            float dot = 0;
            for (int d = 0; d < share; d++)
                dot += (float)q[d] * (float)k[d];
            const float score = lanes_sum<32>(dot) * x.scale_log2, before = highest;
            highest = fmaxf(highest, score);
            const float shift = highest == -INFINITY ? 0 : highest;
            const float rescale = exp2_fast(before - shift), weight = exp2_fast(score - shift);
            total = total * rescale + weight;
            for (int d = 0; d < share; d++)
                o[d] = o[d] * rescale + weight * (float)v[d];
            sees = true;
        }
    if (sees && total == 0)
        total = NAN;
    T *out = row_at<T>(x.out, s.batch, head, s.q_start, query) + lane * share;
    for (int d = 0; d < share; d++)
        out[d] = T(sees ? o[d] / total : 0);
    if (lane == 0)
        *row_at<float>(x.lse, s.batch, head, s.q_start, query) =
            sees ? (highest + log2f(total)) * LN_2 : -INFINITY;
}

/* The 16 rows of a warp. */
template <typename T, int head_dim>
__device__ __noinline__ void attend_rows(const forward_arguments &x, int64_t work, int first_row)
{
    query_tile tile;
    find_query_tile(x.geometry, x.mask, work, x.tiles_per_block, tile_queries, &tile);
    const int64_t end = hpa_min(tile.end, tile.begin + first_row + 16);
    for (int64_t query = tile.begin + first_row; query < end; query++)
        attend_row<T, head_dim>(x, tile, query);
}

} // namespace
#endif
