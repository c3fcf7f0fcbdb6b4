/* The Hopper forward with head_dim 128: two warpgroups that begin their products in turns. */
#ifndef HPA_FORWARD_TURNS_SM90_CUH
#define HPA_FORWARD_TURNS_SM90_CUH

#include "forward/consumers_sm90.cuh"

namespace
{

/* The first warpgroup clears in its turn, and so before the second's. */
template <int head_dim>
__device__ __forceinline__ void
clear_in_turn(const forward_arguments &x, shared_memory<head_dim> &shared, const walk<head_dim> &w,
              const typename walk<head_dim>::ring &first)
{
    if (w.half == 0 && shared.job[w.job].ends) {
        clear_values<head_dim>(x, shared, w, first);
        named_barrier(1, 128);
    }
}

/* Begins the scores of the next tile, adds this one's values with the weights p, and makes the next
 * tile's weights meanwhile. */
template <typename T, int head_dim>
__device__ __forceinline__ void step(const forward_arguments &x, shared_memory<head_dim> &shared,
                                     walk<head_dim> &w, sums<head_dim> &a, float (&s)[64],
                                     uint32_t (&p)[8][4], uint32_t (&next_p)[8][4])
{
    const typename walk<head_dim>::ring before = w.at;
    w.at.advance();
    w.n++;
    barrier_wait(&shared.k_full[w.at.stage], w.at.phase);
    await_turn(w.half);
    if (w.n == 1)
        clear_in_turn<head_dim>(x, shared, w, before);
    begin_scores_at<T, head_dim>(w, s, w.at.stage);
    begin_values_at<T, head_dim>(w, a.o, p, before.stage);
    pass_turn(w.half);
    float rescale[2];
    const bool moved = take_scores<T, head_dim, 1>(x, shared, w, a, s, next_p, rescale);
    wgmma_wait<0>();
    wgmma_hold(a.o);
    release_stage(&shared.v_empty[before.stage]);
    if (moved)
        rescale_rows(a.o, rescale);
    await_values<T, head_dim>(x, shared, w, a);
}

/* Adds the last tile's values. */
template <typename T, int head_dim>
__device__ __forceinline__ void finish(const forward_arguments &x, shared_memory<head_dim> &shared,
                                       walk<head_dim> &w, sums<head_dim> &a,
                                       const uint32_t (&p)[8][4])
{
    if (w.key_tiles == 1) { /* the tile that reaches past the end has had no turn yet */
        await_turn(w.half);
        clear_in_turn<head_dim>(x, shared, w, w.at);
    }
    begin_values_at<T, head_dim>(w, a.o, p, w.at.stage);
    if (w.key_tiles == 1)
        pass_turn(w.half);
    finish_values<T, head_dim>(shared, w, a);
}

/* s: the scores of the first tile, under way. */
template <typename T, int head_dim>
__device__ __forceinline__ void attend(const forward_arguments &x, shared_memory<head_dim> &shared,
                                       walk<head_dim> &w, sums<head_dim> &a, float (&s)[64])
{
    float rescale[2];
    uint32_t even[8][4], odd[8][4]; /* weights of the tiles with even and odd numbers */
    take_scores<T, head_dim, 0>(x, shared, w, a, s, even, rescale);
    await_values<T, head_dim>(x, shared, w, a);
    while (true) {
        if (w.n + 1 == w.key_tiles) {
            finish<T, head_dim>(x, shared, w, a, even);
            return;
        }
        step<T, head_dim>(x, shared, w, a, s, even, odd);
        if (w.n + 1 == w.key_tiles) {
            finish<T, head_dim>(x, shared, w, a, odd);
            return;
        }
        step<T, head_dim>(x, shared, w, a, s, odd, even);
    }
}

/* Results of one tile of queries are written while the first scores of the next are made. */
template <typename T, int head_dim>
__device__ void consume_in_turns(const forward_arguments &x, shared_memory<head_dim> &shared)
{
    const int thread = (int)threadIdx.x - 128;
    walk<head_dim> w = new_walk<head_dim>(shared);
    sums<head_dim> a;
    results<head_dim> kept = {};
    const auto keep = [&](const tile_job &job, int at) {
        keep_results<T, head_dim>(kept, a, x, job);
        kept.rows = of_warp(job.rows);
        kept.at = at;
    };
    const auto write_kept = [&]() {
        write_results<T, head_dim>(x, shared.job[kept.at], kept);
        __syncwarp();
        if (thread % 32 == 0 && kept.rows > 0)
            barrier_arrive(&shared.job_empty[kept.at]);
        kept.rows = 0;
    };
    if (w.half == 1)
        pass_turn(w.half);
    for (stage_ring<jobs> job_at;; job_at.advance()) {
        barrier_wait(&shared.job_full[job_at.stage], job_at.phase);
        const tile_job &job = shared.job[job_at.stage];
        w.key_tiles = of_warp(job.key_tiles);
        if (w.key_tiles <= 0) {
            write_kept();
            if (w.key_tiles < 0)
                return;
            clear_sums(a);
            keep(job, job_at.stage);
            continue;
        }
        float s[64];
        begin_tile<T, head_dim>(shared, w, s);
        write_kept();
        begin_walk<head_dim>(shared, w, a, job_at.stage);
        attend<T, head_dim>(x, shared, w, a, s);
        w.q_at.advance();
        if (named_barrier_or(1 + w.half, 128, a.not_finite)) {
            attend_rows<T, head_dim>(x, job.work, thread / 32 * 16);
            release_stage(&shared.job_empty[job_at.stage]);
            kept = {}; /* and so nothing of it lives on */
        } else {
            keep(job, job_at.stage);
        }
    }
}

} // namespace
#endif
