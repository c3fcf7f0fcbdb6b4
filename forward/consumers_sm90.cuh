/* The two warpgroups of the Hopper forward that attend: products, weights, and the results. */
#ifndef HPA_FORWARD_CONSUMERS_SM90_CUH
#define HPA_FORWARD_CONSUMERS_SM90_CUH

#include "forward/sm90.cuh"

namespace
{

/* The consumers: a warpgroup each. A thread has row_in_tile and the row 8 below it. */

/* Tells the compiler that all lanes hold the same. */
__device__ __forceinline__ int of_warp(int value)
{
    return __shfl_sync(0xffffffffu, value, 0);
}

template <typename T> struct pair_of;
template <> struct pair_of<__half> {
    using type = __half2;
};
template <> struct pair_of<__nv_bfloat16> {
    using type = __nv_bfloat162;
};

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
template <typename T, int head_dim>
__device__ __forceinline__ void begin_scores(float (&s)[64], uint32_t q, uint32_t k)
{
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < head_dim / 16; step++) {
        const uint32_t at = step / 4 * panel_bytes + step % 4 * 32;
        wgmma_abt<T>(s, upper_word | (q + (at >> 4)), upper_word | (k + (at >> 4)), step > 0);
    }
    wgmma_commit();
}

/* O += P V, begun and not waited for. */
template <typename T, int head_dim>
__device__ __forceinline__ void begin_values(float (&o)[head_dim / 2], const uint32_t (&p)[8][4],
                                             uint32_t v)
{
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < tile_keys / 16; step++)
        wgmma_ab<T>(o, p[step], upper_word | (v + (step * 16 * 128 >> 4)));
    wgmma_commit();
}

/* The last key that a row sees; -1 or less: none. */
__device__ __forceinline__ int last_key_of(const forward_arguments &x, const tile_job &job, int row)
{
    const int64_t sees = (int64_t)job.first_sees + (x.geometry.causal ? row : 0);
    return (int)hpa_min(sees, job.keys) - 1;
}

/* Hides what causality, the sequence's end and missing blocks forbid. */
__device__ __forceinline__ void hide_scores(const forward_arguments &x, float (&s)[64],
                                            const int32_t *key_of_box, const int (&last_key)[2])
{
    const int in_box = x.block_k - 1;
#pragma unroll
    for (int n = 0; n < 16; n++) {
        const int column = n * 8 + (int)threadIdx.x % 4 * 2;
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
template <int head_dim>
__device__ __forceinline__ void follow_scores(const float (&s)[64], sums<head_dim> &a,
                                              float (&rescale)[2], float scale_log2)
{
    float highest[2][2];
#pragma unroll
    for (int i = 0; i < 4; i++)
        highest[i / 2][i % 2] = s[i];
#pragma unroll
    for (int n = 1; n < 16; n++)
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
template <typename T, int head_dim>
__device__ __forceinline__ void weigh_scores(uint32_t (&p)[8][4], float (&total)[2],
                                             const float (&s)[64], const sums<head_dim> &a,
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
    for (int i = 0; i < 64; i += 2) {
        const int r = i / 2 % 2;
        const float low = exp2_fast(fmaf(s[i], scale_log2, -shift[r]));
        const float high = exp2_fast(fmaf(s[i + 1], scale_log2, -shift[r]));
        total[r] += low + high;
        p[i / 8][i / 2 % 4] = pack<T>(low, high);
    }
}

/* Weighs s and adds to the totals. Does O need to be multiplied by rescale? That is so where a weight
 * may have grown past MOST_WEIGHT, or a row has no shift yet: then s is weighed again, against its
 * highest score. All lanes alike. */
template <typename T, int head_dim>
__device__ __forceinline__ bool weigh_and_add(uint32_t (&p)[8][4], const float (&s)[64],
                                              sums<head_dim> &a, float (&rescale)[2],
                                              float scale_log2)
{
    float total[2];
    weigh_scores<T, head_dim>(p, total, s, a, scale_log2);
    const bool outgrown = total[0] > MOST_WEIGHT || total[1] > MOST_WEIGHT ||
                          a.shift[0] == -INFINITY || a.shift[1] == -INFINITY;
    const bool moves = __any_sync(0xffffffffu, outgrown);
    if (moves) {
        follow_scores<head_dim>(s, a, rescale, scale_log2);
        weigh_scores<T, head_dim>(p, total, s, a, scale_log2);
        a.total[0] *= rescale[0];
        a.total[1] *= rescale[1];
    }
    a.total[0] += total[0];
    a.total[1] += total[1];
    return moves;
}

template <int n> __device__ __forceinline__ void rescale_rows(float (&o)[n], const float (&by)[2])
{
#pragma unroll
    for (int i = 0; i < n; i++)
        o[i] *= by[i / 2 % 2];
}

/* Rows of V past the sequence's end belong to somebody else, or to nobody: they weigh nothing, and
 * 0 * NaN must stay 0. The first warpgroup clears them in its turn, and so before the second's. */
template <int head_dim>
__device__ void clear_values_past_end(const forward_arguments &x, unsigned char *v,
                                      const int32_t *key_of_box, int keys)
{
    const int row = threadIdx.x % 128, box = row >> x.block_k_log2;
    const int first = key_of_box[box] < 0 ? key_of_box[0] : key_of_box[box];
    if (first + (row & (x.block_k - 1)) >= keys)
        for (int n = 0; n < head_dim / 8; n++)
            *reinterpret_cast<uint4 *>(v + n / 8 * panel_bytes + row * 128 + n % 8 * 16) =
                make_uint4(0, 0, 0, 0);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    named_barrier(1, 128);
}

/* Does this thread's row of a tile of V, if there is such a key, hold an element that is not finite?
 * 0 times it is then NaN, and so is what that is added to. */
template <typename T, int head_dim>
__device__ __forceinline__ bool share_is_not_finite(const forward_arguments &x,
                                                    const unsigned char *v,
                                                    const int32_t *key_of_box, int keys)
{
    using pair = typename pair_of<T>::type;
    const int row = threadIdx.x % 128, first = key_of_box[row >> x.block_k_log2];
    if (first < 0 || first + (row & (x.block_k - 1)) >= keys)
        return false; /* and not read, as the other warpgroup may be clearing it */
    const pair zero(T(0.f), T(0.f));
    pair sums[4] = {zero, zero, zero, zero};
#pragma unroll
    for (int n = 0; n < head_dim / 8; n++) {
        const uint4 chunk = *reinterpret_cast<const uint4 *>(v + n / 8 * panel_bytes + row * 128 +
                                                             (n + row) % 8 * 16);
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

/* A row without weights sees no key, so O = 0 and lse = -inf; or else its scores are all -inf, which
 * takes infinities in q or k, and it is NaN. */
template <typename T, int head_dim>
__device__ __forceinline__ void write_tile(const forward_arguments &x, const tile_job &job,
                                           const sums<head_dim> &a, const int (&last_key)[2],
                                           int row_in_tile)
{
    const int lane = threadIdx.x % 4;
    const int first_key = job.length > 0 ? *job.blocks * x.block_k : INT_MAX;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = row_in_tile + 8 * r;
        const float total = lanes_sum<4>(a.total[r]);
        const bool sees = first_key <= last_key[r];
        const float inverse = !sees ? 0 : total == 0 ? NAN : 1 / total;
        T *out = static_cast<T *>(x.out.data) + job.out + row * x.out.strides.token;
#pragma unroll
        for (int n = 0; n < head_dim / 8; n += 4) {
            uint32_t words[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                words[i] = pack<T>(a.o[4 * (n + i) + 2 * r] * inverse,
                                   a.o[4 * (n + i) + 2 * r + 1] * inverse);
            const uint4 columns = gather_columns(words);
            if (row < job.rows)
                *reinterpret_cast<uint4 *>(out + 8 * (n + lane)) = columns;
        }
        if (lane == 0 && row < job.rows)
            static_cast<float *>(x.lse.data)[job.lse + row * x.lse.strides.token] =
                !sees        ? -INFINITY
                : total == 0 ? NAN
                             : (a.shift[r] + log2f(total)) * LN_2;
    }
}

/* A warpgroup's way through one tile of queries. */
template <int head_dim> struct walk {
    stage_ring<shared_memory<head_dim>::stages> at;
    uint32_t q, k, v; /* lower words: of this tile's queries, of stage 0 of keys and of values */
    int group;
    int key_tiles, hiding_tiles, n; /* n: number of the key tile */
    int keys;
    bool ends;
    int last_key[2]; /* that this thread's rows see; -1 or less: none */
};

template <int head_dim> constexpr int stage_step = shared_memory<head_dim>::operand_bytes >> 4;

/* Waits for the scores, and makes weights of them. */
template <typename T, int head_dim, int pending>
__device__ __forceinline__ bool
take_scores(const forward_arguments &x, shared_memory<head_dim> &shared, const walk<head_dim> &w,
            sums<head_dim> &a, float (&s)[64], uint32_t (&p)[8][4], float (&rescale)[2])
{
    wgmma_wait<pending>();
    wgmma_hold(s);
    release_stage(&shared.k_empty[w.at.stage]);
    if (w.n < w.hiding_tiles)
        hide_scores(x, s, names_at<head_dim>(shared, w.at), w.last_key);
    return weigh_and_add<T, head_dim>(p, s, a, rescale, x.scale_log2);
}

/* Of a tile with hidden pairs: a weight of 0 does not keep a NaN away. */
template <typename T, int head_dim>
__device__ __forceinline__ void inspect_values(const forward_arguments &x,
                                               shared_memory<head_dim> &shared,
                                               const walk<head_dim> &w, sums<head_dim> &a)
{
    barrier_wait(&shared.v_full[w.at.stage], w.at.phase);
    if (w.n < w.hiding_tiles)
        a.not_finite |= share_is_not_finite<T, head_dim>(x, shared.v[w.at.stage],
                                                         names_at<head_dim>(shared, w.at), w.keys);
}

template <int head_dim>
__device__ __forceinline__ void
clear_values(const forward_arguments &x, shared_memory<head_dim> &shared, const walk<head_dim> &w,
             const stage_ring<shared_memory<head_dim>::stages> &first)
{
    if (w.group == 0 && w.ends)
        clear_values_past_end<head_dim>(x, shared.v[first.stage], names_at<head_dim>(shared, first),
                                        w.keys);
}

/* Begins the scores of the next tile, adds this one's values with the weights p, and makes the next
 * tile's weights meanwhile. */
template <typename T, int head_dim>
__device__ __forceinline__ void step(const forward_arguments &x, shared_memory<head_dim> &shared,
                                     walk<head_dim> &w, sums<head_dim> &a, float (&s)[64],
                                     uint32_t (&p)[8][4], uint32_t (&next_p)[8][4])
{
    const stage_ring<shared_memory<head_dim>::stages> before = w.at;
    w.at.advance();
    w.n++;
    barrier_wait(&shared.k_full[w.at.stage], w.at.phase);
    await_turn(w.group);
    if (w.n == 1)
        clear_values<head_dim>(x, shared, w, before);
    begin_scores<T, head_dim>(s, w.q, w.k + w.at.stage * stage_step<head_dim>);
    begin_values<T, head_dim>(a.o, p, w.v + before.stage * stage_step<head_dim>);
    pass_turn(w.group);
    float rescale[2];
    const bool moved = take_scores<T, head_dim, 1>(x, shared, w, a, s, next_p, rescale);
    wgmma_wait<0>();
    wgmma_hold(a.o);
    release_stage(&shared.v_empty[before.stage]);
    if (moved)
        rescale_rows(a.o, rescale);
    inspect_values<T, head_dim>(x, shared, w, a);
}

/* Adds the last tile's values. */
template <typename T, int head_dim>
__device__ __forceinline__ void finish(const forward_arguments &x, shared_memory<head_dim> &shared,
                                       walk<head_dim> &w, sums<head_dim> &a,
                                       const uint32_t (&p)[8][4])
{
    if (w.key_tiles == 1) { /* the tile that reaches past the end has had no turn yet */
        await_turn(w.group);
        clear_values<head_dim>(x, shared, w, w.at);
    }
    begin_values<T, head_dim>(a.o, p, w.v + w.at.stage * stage_step<head_dim>);
    if (w.key_tiles == 1)
        pass_turn(w.group);
    wgmma_wait<0>();
    wgmma_hold(a.o);
    release_stage(&shared.v_empty[w.at.stage]);
    w.at.advance();
}

template <typename T, int head_dim>
__device__ __forceinline__ void attend(const forward_arguments &x, shared_memory<head_dim> &shared,
                                       walk<head_dim> &w, sums<head_dim> &a, uint64_t *q_empty)
{
    float s[64], rescale[2];
    uint32_t even[8][4], odd[8][4]; /* weights of the tiles with even and odd numbers */
    w.n = 0;
    barrier_wait(&shared.k_full[w.at.stage], w.at.phase);
    begin_scores<T, head_dim>(s, w.q, w.k + w.at.stage * stage_step<head_dim>);
    take_scores<T, head_dim, 0>(x, shared, w, a, s, even, rescale);
    inspect_values<T, head_dim>(x, shared, w, a);
    while (true) {
        if (w.n + 1 == w.key_tiles) {
            release_stage(q_empty);
            finish<T, head_dim>(x, shared, w, a, even);
            return;
        }
        step<T, head_dim>(x, shared, w, a, s, even, odd);
        if (w.n + 1 == w.key_tiles) {
            release_stage(q_empty);
            finish<T, head_dim>(x, shared, w, a, odd);
            return;
        }
        step<T, head_dim>(x, shared, w, a, s, odd, even);
    }
}

template <typename T, int head_dim>
__device__ void consume(const forward_arguments &x, shared_memory<head_dim> &shared)
{
    const int thread = threadIdx.x - 128, group = of_warp(thread / 128);
    const int row_in_tile = thread / 32 * 16 + thread % 32 / 4;
    walk<head_dim> w = {};
    w.k = lower_word(shared.k, 0);
    w.v = lower_word(shared.v, panel_bytes);
    w.group = group;
    stage_ring<shared_memory<head_dim>::q_stages> q_at;
    if (group == 1)
        pass_turn(group);
    for (stage_ring<jobs> job_at;; job_at.advance()) {
        barrier_wait(&shared.job_full[job_at.stage], job_at.phase);
        const tile_job &job = shared.job[job_at.stage];
        w.key_tiles = of_warp(job.key_tiles);
        if (w.key_tiles < 0)
            return;
        w.hiding_tiles = of_warp(job.hiding_tiles);
        w.keys = job.keys;
        w.ends = of_warp(job.ends);
        w.last_key[0] = last_key_of(x, job, row_in_tile);
        w.last_key[1] = last_key_of(x, job, row_in_tile + 8);
        sums<head_dim> a;
#pragma unroll
        for (int i = 0; i < head_dim / 2; i++)
            a.o[i] = 0;
        a.shift[0] = a.shift[1] = -INFINITY;
        a.total[0] = a.total[1] = 0;
        a.not_finite = false;
        if (w.key_tiles > 0) {
            barrier_wait(&shared.q_full[q_at.stage], q_at.phase);
            w.q = lower_word(shared.q[q_at.stage] + group * group_queries * 128, 0);
            attend<T, head_dim>(x, shared, w, a, &shared.q_empty[q_at.stage]);
            q_at.advance();
        }
        if (named_barrier_or(1 + group, 128, a.not_finite))
            attend_rows<T, head_dim>(x, job.work, thread / 32 * 16);
        else
            write_tile<T, head_dim>(x, job, a, w.last_key, row_in_tile);
        release_stage(&shared.job_empty[job_at.stage]);
    }
}

} // namespace
#endif
