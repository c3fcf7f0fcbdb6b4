/* The four warps of the Hopper forward that work ahead: one plans the tiles of queries, the others fetch
 * what they need. */
#ifndef HPA_FORWARD_PRODUCERS_SM90_CUH
#define HPA_FORWARD_PRODUCERS_SM90_CUH

#include "forward/sm90.cuh"

namespace
{

/* The planner: one warp. */

/* Blocks at the list's end that reach past what the first query sees. All lanes. */
__device__ __forceinline__ int count_hiding_blocks(const forward_arguments &x, const tile_job &job,
                                                   int first_sees)
{
    const int lane = threadIdx.x % 32;
    for (int end = job.length; end > 0; end -= 32) {
        const int n = end - 1 - lane;
        const bool whole = n < 0 || (job.blocks[n] + 1) * x.block_k <= first_sees;
        const uint32_t wholes = __ballot_sync(0xffffffffu, whole);
        if (wholes != 0)
            return job.length - end + __ffs((int)wholes) - 1;
    }
    return job.length;
}

/* Tile number `work`; false where there is none. All lanes alike. */
__device__ __forceinline__ bool plan_tile(const forward_arguments &x, int64_t work, tile_job *job)
{
    const hpa_geometry &g = x.geometry;
    query_tile tile;
    if (!find_query_tile(g, x.mask, work, x.tiles_per_block, tile_queries, &tile))
        return false;
    const hpa_sequence &s = tile.sequence;
    job->work = work;
    job->out = hpa_offset(&x.out.strides, s.batch, tile.head, s.q_start, tile.begin);
    job->lse = hpa_offset(&x.lse.strides, s.batch, tile.head, s.q_start, tile.begin);
    job->rows = (int)(tile.end - tile.begin);
    job->first_sees = (int)(g.causal ? hpa_key_position(&s, tile.begin) + 1 : s.kv_length);
    job->keys = (int)s.kv_length;
    job->q_token = (int)(s.q_start + tile.begin);
    job->kv_token = (int)s.kv_start;
    job->head = (int)tile.head;
    job->kv_head = (int)(tile.head / g.group);
    job->batch = g.packed ? 0 : (int)s.batch;
    job->blocks = x.mask.row_blocks + tile.mask_row * g.capacity;
    job->length = max(0, min(x.mask.row_length[tile.mask_row], (int)g.capacity));
    job->first_key = job->length > 0 ? *job->blocks * x.block_k : INT_MAX;
    job->key_tiles = (job->length + x.boxes - 1) / x.boxes;
    const int sees = min(job->first_sees, job->keys);
    const int hiding = count_hiding_blocks(x, *job, sees);
    const int in_first = job->length - (job->key_tiles - 1) * x.boxes;
    job->ends = job->length > 0 && (job->blocks[job->length - 1] + 1) * x.block_k > job->keys;
    job->hiding_tiles = hiding == 0 && in_first == x.boxes ? 0
                        : hiding <= in_first               ? 1
                                             : 1 + (hiding - in_first + x.boxes - 1) / x.boxes;
    return true;
}

template <int head_dim>
__device__ void plan_tiles(const forward_arguments &x, shared_memory<head_dim> &shared)
{
    stage_ring<jobs> at;
    bool last = false;
    for (int64_t work = blockIdx.x; !last; work += gridDim.x) {
        tile_job job;
        last = work >= x.tiles;
        if (last)
            job.key_tiles = -1;
        else if (!plan_tile(x, work, &job))
            continue;
        barrier_wait(&shared.job_empty[at.stage], at.phase ^ 1);
        if (threadIdx.x % 32 == 0) {
            shared.job[at.stage] = job;
            barrier_arrive(&shared.job_full[at.stage]);
        }
        __syncwarp();
        at.advance();
    }
}

/* The fetching warps: one for queries, one for keys, one for values. */

/* Each warpgroup's queries by themselves: it may be done with its last scores before the other is. */
template <int head_dim>
__device__ void fetch_queries(shared_memory<head_dim> &shared, const CUtensorMap *map)
{
    stage_ring<shared_memory<head_dim>::q_stages> at;
    for (stage_ring<jobs> job_at;; job_at.advance()) {
        barrier_wait(&shared.job_full[job_at.stage], job_at.phase);
        const tile_job &job = shared.job[job_at.stage];
        const int key_tiles = job.key_tiles, token = job.q_token, head = job.head,
                  batch = job.batch;
        if (key_tiles < 0)
            return;
        release_stage(&shared.job_empty[job_at.stage]);
        if (key_tiles == 0)
            continue;
        for (int group = 0; group < groups; group++) {
            uint64_t *full = &shared.q_full[at.stage][group];
            barrier_wait(&shared.q_empty[at.stage][group], at.phase ^ 1);
            if (threadIdx.x % 32 == 0) {
                barrier_arrive_expect(full, sizeof(shared.q[0][0]));
                for (int panel = 0; panel < head_dim / HPA_TMA_COLUMNS; panel++)
                    tma_load(shared.q[at.stage][group] + panel * query_panel_bytes, map, full,
                             panel * HPA_TMA_COLUMNS, token + group * group_queries, head, batch);
            }
            __syncwarp();
        }
        at.advance();
    }
}

/* What a fetching warp needs to know of a tile of queries. */
struct key_list {
    const int32_t *blocks; /* past their end */
    int in_first; /* blocks of the first tile of keys, which takes what the others leave over */
    int key_tiles;
    int token, head, batch; /* of key 0 */
};

__device__ __forceinline__ key_list key_list_of(const forward_arguments &x, const tile_job &job)
{
    return {job.blocks + job.length,
            job.length - (job.key_tiles - 1) * x.boxes,
            job.key_tiles,
            job.kv_token,
            job.kv_head,
            job.batch};
}

/* First key of box number lane of tile n from the end of the list, -1 where there is none. */
__device__ __forceinline__ int find_key(const forward_arguments &x, const key_list &list, int n)
{
    const int lane = threadIdx.x % 32;
    const int count = n >= list.key_tiles ? 0 : n == 0 ? list.in_first : x.boxes;
    if (lane >= count)
        return -1;
    return __ldg(list.blocks - list.in_first - n * x.boxes + lane) << x.block_k_log2;
}

/* Boxes of one tile of K or V, each by one lane, which knows its first token. */
template <int head_dim>
__device__ __forceinline__ void fetch_boxes(const forward_arguments &x, unsigned char *operand,
                                            const CUtensorMap *map, uint64_t *full,
                                            const key_list &list, int token)
{
    const int lane = threadIdx.x % 32;
    if (lane < x.boxes)
#pragma unroll
        for (int panel = 0; panel < head_dim / HPA_TMA_COLUMNS; panel++)
            tma_load(operand + panel * key_panel_bytes + lane * x.block_k * 128, map, full,
                     panel * HPA_TMA_COLUMNS, token, list.head, list.batch);
    __syncwarp();
}

/* Writes down what the boxes of a tile of K are; lane n knows the first key of box n. The lane that
 * arrives at the barrier writes. */
__device__ __forceinline__ void name_boxes(const forward_arguments &x, int32_t *names, int key)
{
    for (int box = 0; box < x.boxes; box++) {
        const int of_box = __shfl_sync(0xffffffffu, key, box);
        if (threadIdx.x % 32 == 0)
            names[box] = of_box;
    }
}

/* All keys of all tiles of queries, or all values. A box without a block repeats the first: its scores
 * are hidden, and what is read is finite when the row's own keys are. */
template <int head_dim, bool keys>
__device__ void fetch_list(const forward_arguments &x, shared_memory<head_dim> &shared,
                           const CUtensorMap *map)
{
    stage_ring<shared_memory<head_dim>::stages> at;
    for (stage_ring<jobs> job_at;; job_at.advance()) {
        barrier_wait(&shared.job_full[job_at.stage], job_at.phase);
        const tile_job &job = shared.job[job_at.stage];
        const key_list list = key_list_of(x, job);
        if (list.key_tiles < 0)
            return;
        release_stage(&shared.job_empty[job_at.stage]);
        int key = find_key(x, list, 0);
#pragma unroll 1
        for (int n = 0; n < list.key_tiles; n++, at.advance()) {
            uint64_t *full = keys ? &shared.k_full[at.stage] : &shared.v_full[at.stage];
            const int first = __shfl_sync(0xffffffffu, key, 0);
            const int token = list.token + (key < 0 ? first : key);
            barrier_wait(keys ? &shared.k_empty[at.stage] : &shared.v_empty[at.stage],
                         at.phase ^ 1);
            if (threadIdx.x % 32 == 0)
                barrier_expect(full, shared.operand_bytes);
            __syncwarp(); /* the wait may have parted the lanes */
            fetch_boxes<head_dim>(x, keys ? shared.k[at.stage] : shared.v[at.stage], map, full,
                                  list, token);
            if (keys)
                name_boxes(x, names_at<head_dim>(shared, at), key);
            if (threadIdx.x % 32 == 0)
                barrier_arrive(full);
            key = find_key(x, list, n + 1);
        }
    }
}

} // namespace
#endif
