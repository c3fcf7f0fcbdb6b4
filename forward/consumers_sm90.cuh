/* What the warpgroups that attend have in common: how they take a tile of keys, and write results. */
#ifndef HPA_FORWARD_CONSUMERS_SM90_CUH
#define HPA_FORWARD_CONSUMERS_SM90_CUH

#include "forward/values_sm90.cuh"
#include "forward/weights_sm90.cuh"

namespace
{

__device__ __forceinline__ float reciprocal(float x)
{
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* What a thread has to write of a tile of queries, once another is under way. */
template <int head_dim> struct results {
    uint32_t out[2][head_dim / 8]; /* two columns each */
    float lse[2];
    int at;   /* the job */
    int rows; /* queries; 0: nothing is to be written */
};

/* A row without weights sees no key, so O = 0 and lse = -inf; or else its scores are all -inf, which
 * takes infinities in q or k, and it is NaN. */
template <typename T, int head_dim>
__device__ __forceinline__ void keep_results(results<head_dim> &kept, const sums<head_dim> &a,
                                             const forward_arguments &x, const tile_job &job)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float total = lanes_sum<4>(a.total[r]);
        const bool sees = job.first_key <= last_key_of(x, job, row_in_tile<head_dim>() + 8 * r);
        const float inverse = !sees ? 0 : total == 0 ? NAN : reciprocal(total);
        kept.lse[r] = !sees ? -INFINITY : total == 0 ? NAN : (a.shift[r] + log2f(total)) * LN_2;
#pragma unroll
        for (int n = 0; n < head_dim / 8; n++)
            kept.out[r][n] =
                pack<T>(a.o[4 * n + 2 * r] * inverse, a.o[4 * n + 2 * r + 1] * inverse);
    }
}

template <typename T, int head_dim>
__device__ __forceinline__ void write_results(const forward_arguments &x, const tile_job &job,
                                              const results<head_dim> &kept)
{
    const int lane = threadIdx.x % 4;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = row_in_tile<head_dim>() + 8 * r;
        T *out = static_cast<T *>(x.out.data) + job.out + row * x.out.strides.token;
#pragma unroll
        for (int n = 0; n < head_dim / 8; n += 4) {
            const uint32_t words[4] = {kept.out[r][n], kept.out[r][n + 1], kept.out[r][n + 2],
                                       kept.out[r][n + 3]};
            const uint4 columns = gather_columns(words);
            if (row < kept.rows)
                *reinterpret_cast<uint4 *>(out + 8 * (n + lane)) = columns;
        }
        if (lane == 0 && row < kept.rows)
            static_cast<float *>(x.lse.data)[job.lse + row * x.lse.strides.token] = kept.lse[r];
    }
}

/* A warpgroup's way through a tile of queries. */
template <int head_dim> struct walk {
    using ring = stage_ring<shared_memory<head_dim>::stages>;
    ring at;
    uint32_t q, k, v; /* lower words: of these queries, and of this share of stage 0 */
    int half, share;  /* of the queries, and of the keys */
    int job;          /* where the description of the tile lies */
    stage_ring<shared_memory<head_dim>::q_stages> q_at;
    int key_tiles, hiding_tiles, n; /* n: number of the key tile */
};

template <int head_dim>
__device__ __forceinline__ walk<head_dim> new_walk(shared_memory<head_dim> &shared)
{
    walk<head_dim> w = {};
    const int group = of_warp(((int)threadIdx.x - 128) / 128);
    w.half = key_shares<head_dim> == 1 ? group : group % groups;
    w.share = key_shares<head_dim> == 1 ? 0 : group / groups;
    w.k = lower_word(shared.k[0] + w.share * share_keys<head_dim> * 128, 0);
    w.v = lower_word(shared.v[0] + w.share * share_keys<head_dim> * 128, key_panel_bytes);
    return w;
}

/* Begins the scores of the key tile in a stage. */
template <typename T, int head_dim, int size>
__device__ __forceinline__ void begin_scores_at(const walk<head_dim> &w, float (&s)[size],
                                                int stage)
{
    begin_scores<T, head_dim>(s, w.q, w.k + stage * (shared_memory<head_dim>::operand_bytes >> 4));
}

/* Adds a tile of values with the weights p, which is begun and not waited for. */
template <typename T, int head_dim, int steps>
__device__ __forceinline__ void begin_values_at(const walk<head_dim> &w, float (&o)[head_dim / 2],
                                                const uint32_t (&p)[steps][4], int stage)
{
    begin_values<T, head_dim>(o, p, w.v + stage * (shared_memory<head_dim>::operand_bytes >> 4));
}

/* Begins the scores of a tile of queries with its first keys. */
template <typename T, int head_dim, int size>
__device__ __forceinline__ void begin_tile(shared_memory<head_dim> &shared, walk<head_dim> &w,
                                           float (&s)[size])
{
    barrier_wait(&shared.q_full[w.q_at.stage][w.half], w.q_at.phase);
    w.q = lower_word(shared.q[w.q_at.stage][w.half], 0);
    barrier_wait(&shared.k_full[w.at.stage], w.at.phase);
    begin_scores_at<T, head_dim>(w, s, w.at.stage);
}

/* The values of the key tile are there. One with hidden pairs is looked through: a weight of 0 does not
 * keep a NaN away. */
template <typename T, int head_dim>
__device__ __forceinline__ void await_values(const forward_arguments &x,
                                             shared_memory<head_dim> &shared,
                                             const walk<head_dim> &w, sums<head_dim> &a)
{
    barrier_wait(&shared.v_full[w.at.stage], w.at.phase);
    if (w.n < w.hiding_tiles)
        a.not_finite |= part_is_not_finite<T, head_dim>(x, shared.v[w.at.stage],
                                                        names_at<head_dim>(shared, w.at),
                                                        shared.job[w.job].keys, w.share);
}

template <int head_dim>
__device__ __forceinline__ void
clear_values(const forward_arguments &x, shared_memory<head_dim> &shared, const walk<head_dim> &w,
             const typename walk<head_dim>::ring &first)
{
    clear_values_past_end<head_dim>(x, shared.v[first.stage], names_at<head_dim>(shared, first),
                                    shared.job[w.job].keys, w.share);
}

/* Weighs s and adds to the totals. Does O need to be multiplied by rescale? That is so where the
 * weights will not do: then s is weighed again, against its highest score. All lanes alike. */
template <typename T, int head_dim, int size>
__device__ __forceinline__ bool weigh_and_add(uint32_t (&p)[size / 8][4], const float (&s)[size],
                                              sums<head_dim> &a, float (&rescale)[2],
                                              float scale_log2)
{
    float total[2];
    weigh_scores<T, head_dim, size>(p, total, s, a, scale_log2);
    const bool moves = !weights_will_do(a, total);
    if (moves) {
        follow_scores<head_dim, size>(s, a, rescale, scale_log2);
        weigh_scores<T, head_dim, size>(p, total, s, a, scale_log2);
        a.total[0] *= rescale[0];
        a.total[1] *= rescale[1];
    }
    a.total[0] += total[0];
    a.total[1] += total[1];
    return moves;
}

/* Waits for the scores of a key tile, and makes weights of them. */
template <typename T, int head_dim, int pending, int size>
__device__ __forceinline__ bool
take_scores(const forward_arguments &x, shared_memory<head_dim> &shared, const walk<head_dim> &w,
            sums<head_dim> &a, float (&s)[size], uint32_t (&p)[size / 8][4], float (&rescale)[2])
{
    wgmma_wait<pending>();
    wgmma_hold(s);
    release_stage(&shared.k_empty[w.at.stage]);
    if (w.n + 1 == w.key_tiles)
        release_stage(&shared.q_empty[w.q_at.stage][w.half]);
    if (w.n < w.hiding_tiles)
        hide_scores<head_dim>(x, s, names_at<head_dim>(shared, w.at), shared.job[w.job],
                              w.share * share_keys<head_dim>);
    return weigh_and_add<T, head_dim, size>(p, s, a, rescale, x.scale_log2);
}

template <typename T, int head_dim>
__device__ __forceinline__ void finish_values(shared_memory<head_dim> &shared, walk<head_dim> &w,
                                              sums<head_dim> &a)
{
    wgmma_wait<0>();
    wgmma_hold(a.o);
    release_stage(&shared.v_empty[w.at.stage]);
    w.at.advance();
}

template <int head_dim> __device__ __forceinline__ void clear_sums(sums<head_dim> &a)
{
#pragma unroll
    for (int i = 0; i < head_dim / 2; i++)
        a.o[i] = 0;
    a.shift[0] = a.shift[1] = -INFINITY;
    a.total[0] = a.total[1] = 0;
    a.not_finite = false;
}

/* Takes up the tile of queries that is described at a place. */
template <int head_dim>
__device__ __forceinline__ void begin_walk(shared_memory<head_dim> &shared, walk<head_dim> &w,
                                           sums<head_dim> &a, int job)
{
    w.job = job;
    w.hiding_tiles = of_warp(shared.job[job].hiding_tiles);
    w.n = 0;
    clear_sums(a);
}

} // namespace
#endif
