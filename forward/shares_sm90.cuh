/* The Hopper forward with head_dim 64: four warpgroups, two to a half of the queries, which share
 * the keys of each tile. */
#ifndef HPA_FORWARD_SHARES_SM90_CUH
#define HPA_FORWARD_SHARES_SM90_CUH

#include "forward/consumers_sm90.cuh"

namespace
{

/* Named barriers: a number for each share of the keys, each half of the queries, each warpgroup. */
enum { VALUES_CLEARED = 3, PARTIAL_FULL = 5, TURN = 7 };

constexpr int pair_threads = 2 * 128; /* of two warpgroups */

/* The four begin their products in turns, one after another. */
template <int head_dim> __device__ __forceinline__ int turn_of(const walk<head_dim> &w)
{
    return w.half + groups * w.share;
}

template <int head_dim> __device__ __forceinline__ void await_share_turn(const walk<head_dim> &w)
{
    named_barrier(TURN + turn_of(w), pair_threads);
}

template <int head_dim> __device__ __forceinline__ void pass_share_turn(const walk<head_dim> &w)
{
    named_barrier_arrive(TURN + (turn_of(w) + 1) % 4, pair_threads);
}

/* Adds a tile's values with the weights p, and makes the next tile's weights. Nothing of its own is
 * under way meanwhile: for another set of weights there are no registers. */
template <typename T, int head_dim>
__device__ __forceinline__ void share_step(const forward_arguments &x,
                                           shared_memory<head_dim> &shared, walk<head_dim> &w,
                                           sums<head_dim> &a, float (&s)[32], uint32_t (&p)[4][4])
{
    const typename walk<head_dim>::ring before = w.at;
    w.at.advance();
    w.n++;
    barrier_wait(&shared.k_full[w.at.stage], w.at.phase);
    await_share_turn(w);
    begin_values_at<T, head_dim>(w, a.o, p, before.stage);
    begin_scores_at<T, head_dim>(w, s, w.at.stage);
    pass_share_turn(w);
    wgmma_wait<0>();
    wgmma_hold(a.o);
    release_stage(&shared.v_empty[before.stage]);
    float rescale[2];
    if (take_scores<T, head_dim, 0>(x, shared, w, a, s, p, rescale))
        rescale_rows(a.o, rescale);
    await_values<T, head_dim>(x, shared, w, a);
}

template <typename T, int head_dim>
__device__ __forceinline__ void attend_share(const forward_arguments &x,
                                             shared_memory<head_dim> &shared, walk<head_dim> &w,
                                             sums<head_dim> &a)
{
    float s[32], rescale[2];
    uint32_t p[4][4];
    begin_tile<T, head_dim>(shared, w, s);
    take_scores<T, head_dim, 0>(x, shared, w, a, s, p, rescale);
    await_values<T, head_dim>(x, shared, w, a);
    if (of_warp(shared.job[w.job].ends)) {
        if (w.half == 0)
            clear_values<head_dim>(x, shared, w, w.at);
        named_barrier(VALUES_CLEARED + w.share, pair_threads);
    }
    while (w.n + 1 < w.key_tiles)
        share_step<T, head_dim>(x, shared, w, a, s, p);
    begin_values_at<T, head_dim>(w, a.o, p, w.at.stage);
    finish_values<T, head_dim>(shared, w, a);
}

/* What the second share of the keys comes to is handed over, once what was handed over before has
 * been read ... */
template <int head_dim>
__device__ __forceinline__ void hand_over(shared_memory<head_dim> &shared, const walk<head_dim> &w,
                                          const sums<head_dim> &a, uint32_t phase)
{
    partial_sums &to = shared.partial.of_half[w.half];
    const int thread = threadIdx.x % 128;
    barrier_wait(&shared.partial.empty[w.half], phase ^ 1);
#pragma unroll
    for (int i = 0; i < head_dim / 2; i++)
        to.o[i][thread] = a.o[i];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        to.shift[r][thread] = a.shift[r];
        to.total[r][thread] = a.total[r];
    }
    to.not_finite[thread] = a.not_finite;
    named_barrier_arrive(PARTIAL_FULL + w.half, pair_threads);
}

/* ... and added to the first. */
template <int head_dim>
__device__ __forceinline__ void take_over(shared_memory<head_dim> &shared, const walk<head_dim> &w,
                                          sums<head_dim> &a)
{
    const partial_sums &from = shared.partial.of_half[w.half];
    const int thread = threadIdx.x % 128;
    named_barrier(PARTIAL_FULL + w.half, pair_threads);
    float mine[2], theirs[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float shift = from.shift[r][thread], both = fmaxf(a.shift[r], shift);
        const bool seen = both != -INFINITY; /* or all sums are 0, and -inf - -inf would be NaN */
        mine[r] = seen ? exp2_fast(a.shift[r] - both) : 1;
        theirs[r] = seen ? exp2_fast(shift - both) : 1;
        a.total[r] = a.total[r] * mine[r] + from.total[r][thread] * theirs[r];
        a.shift[r] = both;
    }
#pragma unroll
    for (int i = 0; i < head_dim / 2; i++)
        a.o[i] = a.o[i] * mine[i / 2 % 2] + from.o[i][thread] * theirs[i / 2 % 2];
    a.not_finite |= from.not_finite[thread];
    barrier_arrive(&shared.partial.empty[w.half]);
}

template <typename T, int head_dim>
__device__ __forceinline__ void write_tile(const forward_arguments &x, const tile_job &job,
                                           const walk<head_dim> &w, const sums<head_dim> &a)
{
    if (named_barrier_or(1 + w.half, 128, a.not_finite)) {
        attend_rows<T, head_dim>(x, job.work, ((int)threadIdx.x - 128) / 32 * 16);
        return;
    }
    results<head_dim> now;
    keep_results<T, head_dim>(now, a, x, job);
    now.rows = of_warp(job.rows);
    write_results<T, head_dim>(x, job, now);
}

template <typename T, int head_dim>
__device__ void consume_shares(const forward_arguments &x, shared_memory<head_dim> &shared)
{
    walk<head_dim> w = new_walk<head_dim>(shared);
    uint32_t phase = 0; /* of handing over */
    if (turn_of(w) == 3)
        pass_share_turn(w);
    for (stage_ring<jobs> job_at;; job_at.advance()) {
        barrier_wait(&shared.job_full[job_at.stage], job_at.phase);
        const tile_job &job = shared.job[job_at.stage];
        w.key_tiles = of_warp(job.key_tiles);
        if (w.key_tiles < 0)
            return;
        sums<head_dim> a;
        begin_walk<head_dim>(shared, w, a, job_at.stage);
        if (w.key_tiles > 0) {
            attend_share<T, head_dim>(x, shared, w, a);
            w.q_at.advance();
            if (w.share == 1)
                hand_over<head_dim>(shared, w, a, phase);
            else
                take_over<head_dim>(shared, w, a);
            phase ^= 1;
        }
        if (w.share == 0)
            write_tile<T, head_dim>(x, job, w, a);
        release_stage(&shared.job_empty[job_at.stage]);
    }
}

} // namespace
#endif
