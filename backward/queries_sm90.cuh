/* dq on Hopper: 128 queries of one head at a time, over the key blocks that their row keeps.
 *
 *     s = q k^T    dp = dO v^T    p = exp(scale s - lse)    ds = p (dp - delta)    dq += ds k
 *
 * One warp fetches 64 keys at a time, k and v, into a ring of stages, from the end of the
 * row's list; two warpgroups of 64 queries each take them out. Queries and dO wait in registers as
 * left operands, which spares shared memory their reading; so does ds. The products s and dp of a
 * step are begun together with dq of the step before. Thread blocks stay and take tile after tile. */
#ifndef HPA_BACKWARD_QUERIES_SM90_CUH
#define HPA_BACKWARD_QUERIES_SM90_CUH

#include "backward/sm90.cuh"

namespace
{

inline constexpr int tile_queries = 128;
inline constexpr int queries_threads = 128 + 256; /* producer, consumers */
inline constexpr int step_keys = 64; /* that one step multiplies with the queries */
template <int D> inline constexpr int step_key_bytes = step_keys * D * 2;
inline constexpr int most_boxes = 4;              /* blocks of keys in a step */

/* A tile's queries, and the boxes of keys that they walk over: blocks, or halves of blocks longer
 * than a step. */
struct query_work_sm90 {
    query_tile queries;
    const int32_t *blocks; /* ascending */
    int boxes, steps;
    bool found;
};

/* How steps are cut into boxes. */
struct key_boxes {
    int tokens;    /* of a box */
    int per_step;  /* boxes */
    int per_block; /* boxes */
};

__device__ __forceinline__ key_boxes key_boxes_of(const hpa_geometry &g)
{
    const int tokens = min((int)g.block_k, step_keys);
    return {tokens, step_keys / tokens, (int)g.block_k / tokens};
}

template <int D> struct queries_shared {
    static constexpr int stages = D == 128 ? 6 : 12;
    alignas(1024) unsigned char k[stages][step_key_bytes<D>];
    alignas(1024) unsigned char v[stages][step_key_bytes<D>];
    uint64_t full[stages], empty[stages];
    int32_t key_of_box[stages][most_boxes]; /* first key of each box; -1: no block */
    int32_t last_key[stages];               /* of the step; INT_MAX where a box has no block */
    query_work_sm90 works[2][2];            /* of each warpgroup, this one and the one before */
};

__device__ __forceinline__ void find_queries(const sm90_arguments &x, int64_t number,
                                             query_work_sm90 *work)
{
    const hpa_geometry &g = x.geometry;
    work->found =
        find_query_tile(g, x.mask, number, x.tiles_per_block, tile_queries, &work->queries);
    work->boxes = work->steps = 0;
    if (!work->found)
        return;
    const key_boxes boxes = key_boxes_of(g);
    const int64_t row = work->queries.mask_row;
    work->blocks = x.mask.row_blocks + row * g.capacity;
    work->boxes = max(0, min(x.mask.row_length[row], (int)g.capacity)) * boxes.per_block;
    work->steps = (work->boxes + boxes.per_step - 1) / boxes.per_step;
}

/* The producer: one warp, whose lanes look up the boxes of the next steps and of which one lane fetches
 * them. Each step is little work: the consumers are done with one in a microsecond. */

struct key_walk {
    const int32_t *blocks;
    int boxes, steps, per_step; /* of the tile; boxes of a step */
    int block_shift, box_shift; /* log2: tokens in a block, tokens in a box */
    int first_token, kv_head, batch;
};

__device__ __forceinline__ key_walk key_walk_of(const sm90_arguments &x,
                                                const query_work_sm90 &work)
{
    const hpa_geometry &g = x.geometry;
    const key_boxes boxes = key_boxes_of(g);
    const hpa_sequence &s = work.queries.sequence;
    return {work.blocks,
            work.boxes,
            work.steps,
            boxes.per_step,
            __ffs((int)g.block_k) - 1,
            __ffs(boxes.tokens) - 1,
            (int)s.kv_start,
            (int)(work.queries.head / g.group),
            g.packed ? 0 : (int)s.batch};
}

/* First key of a box; -1: none. Boxes are counted in the order of the steps: step n holds the n-th
 * last of the list, in ascending order, and the first step what the others leave over. */
__device__ __forceinline__ int key_of(const key_walk &walk, int place)
{
    const int left_over = walk.boxes - (walk.steps - 1) * walk.per_step;
    const int step = place / walk.per_step, in_step = place % walk.per_step;
    const int box = walk.boxes - left_over - step * walk.per_step + in_step;
    if (box >= walk.boxes || box < 0 || (step == 0 && in_step >= left_over))
        return -1;
    const int per_block_shift = walk.block_shift - walk.box_shift;
    return (walk.blocks[box >> per_block_shift] << walk.block_shift) +
           ((box & ((1 << per_block_shift) - 1)) << walk.box_shift);
}

/* One box of a step. One that fills the step comes in one piece, or else panel by panel. */
template <int D>
__device__ __forceinline__ void fetch_box(queries_shared<D> &shared, int stage,
                                          const key_walk &walk, int in_step, int key,
                                          const CUtensorMap *k_map, const CUtensorMap *v_map)
{
    uint64_t *full = &shared.full[stage];
    if (walk.per_step == 1) {
        tma_load_rows(shared.k[stage], k_map, full, walk.first_token + key, walk.kv_head,
                      walk.batch);
        tma_load_rows(shared.v[stage], v_map, full, walk.first_token + key, walk.kv_head,
                      walk.batch);
        return;
    }
    for (int panel = 0; panel < D / HPA_TMA_COLUMNS; panel++) {
        const int offset = (panel * step_keys + (in_step << walk.box_shift)) * 128;
        tma_load(shared.k[stage] + offset, k_map, full, panel * HPA_TMA_COLUMNS,
                 walk.first_token + key, walk.kv_head, walk.batch);
        tma_load(shared.v[stage] + offset, v_map, full, panel * HPA_TMA_COLUMNS,
                 walk.first_token + key, walk.kv_head, walk.batch);
    }
}

/* The step whose boxes the lanes from first_lane on have looked up. A box without a block repeats the
 * first: its pairs are hidden. */
template <int D>
__device__ __forceinline__ void push_keys(queries_shared<D> &shared,
                                          const stage_ring<queries_shared<D>::stages> &at,
                                          const key_walk &walk, int mine, int first_lane,
                                          const CUtensorMap *k_map, const CUtensorMap *v_map)
{
    const bool fetches = threadIdx.x == 0;
    const int first_key = __shfl_sync(0xffffffffu, mine, first_lane);
    const int last_box = __shfl_sync(0xffffffffu, mine, first_lane + walk.per_step - 1);
    if (fetches) {
        barrier_wait(&shared.empty[at.stage], at.phase ^ 1);
        shared.last_key[at.stage] = last_box < 0 ? INT_MAX : last_box + (1 << walk.box_shift) - 1;
    }
#pragma unroll 1
    for (int in_step = 0; in_step < walk.per_step; in_step++) {
        const int key = __shfl_sync(0xffffffffu, mine, first_lane + in_step);
        if (fetches) {
            shared.key_of_box[at.stage][in_step] = key;
            if (in_step == 0)
                barrier_expect(&shared.full[at.stage], 2 * step_key_bytes<D>);
            fetch_box(shared, at.stage, walk, in_step, key < 0 ? first_key : key, k_map, v_map);
        }
    }
    if (fetches)
        barrier_arrive(&shared.full[at.stage]); /* the names of the boxes are there, too */
    __syncwarp();
}

template <int D>
__device__ void produce_keys(const sm90_arguments &x, queries_shared<D> &shared,
                             const CUtensorMap *k_map, const CUtensorMap *v_map)
{
    stage_ring<queries_shared<D>::stages> at;
    for (int64_t number = blockIdx.x; number < x.query_tiles; number += gridDim.x) {
        query_work_sm90 work;
        find_queries(x, number, &work);
        const key_walk walk = key_walk_of(x, work);
#pragma unroll 1
        for (int place = 0; place < walk.steps * walk.per_step; place += 32) {
            const int mine = key_of(walk, place + (int)threadIdx.x);
            const int end = min(32, walk.steps * walk.per_step - place);
#pragma unroll 1
            for (int lane = 0; lane < end; lane += walk.per_step, at.advance())
                push_keys(shared, at, walk, mine, lane, k_map, v_map);
        }
    }
}

/* The consumers: a thread has queries `row` and row + 8 of its warpgroup's 64. */

template <int D> struct query_operands {
    uint32_t q[D / 16][4], d_out[D / 16][4];
    stats_pair stats[2];
    int all_see; /* last key that the warpgroup's first query sees */
};

/* Left operand of 64 rows from global memory; rows past the tile repeat its last. */
template <typename T, int D>
__device__ __forceinline__ void load_left(uint32_t (&left)[D / 16][4], const T *rows,
                                          int64_t token_stride, int row, int last_row)
{
    const int pair = (int)threadIdx.x % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const T *at = rows + min(row + 8 * half, last_row) * token_stride + pair;
#pragma unroll
        for (int d = 0; d < D / 16; d++) {
            left[d][half] = *reinterpret_cast<const uint32_t *>(at + 16 * d);
            left[d][2 + half] = *reinterpret_cast<const uint32_t *>(at + 16 * d + 8);
        }
    }
}

template <typename T, int D>
__device__ __forceinline__ void load_queries(const sm90_arguments &x, const query_work_sm90 &work,
                                             query_operands<D> &own, int row_in_tile)
{
    const query_tile &tile = work.queries;
    const hpa_sequence &s = tile.sequence;
    const int last_row = (int)(tile.end - tile.begin) - 1;
    load_left<T, D>(own.q, row_at<const T>(x.q, s.batch, tile.head, s.q_start, tile.begin),
                    x.q.strides.token, row_in_tile, last_row);
    load_left<T, D>(own.d_out, row_at<const T>(x.d_out, s.batch, tile.head, s.q_start, tile.begin),
                    x.d_out.strides.token, row_in_tile, last_row);
    const int64_t first = tile.begin + row_in_tile / GROUP_ROWS * GROUP_ROWS;
    own.all_see = (int)visible_keys(x.geometry, s, first) - 1;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int64_t query = hpa_min(tile.begin + row_in_tile + 8 * half, tile.end - 1);
        own.stats[half] = x.stats[slot_of_query(x.geometry, s, tile.head, query)];
    }
}

/* p = exp(scale s - lse) in place of s. */
template <int D, int n>
__device__ __forceinline__ void weigh_keys(float (&s)[n], const query_operands<D> &own,
                                           float scale_log2)
{
#pragma unroll
    for (int i = 0; i < n; i++)
        s[i] = weight_of(s[i], scale_log2, own.stats[i / 2 % 2].lse);
}

/* ds = p (dp - delta) in place of p. */
template <int D, int n>
__device__ __forceinline__ void differentiate_keys(float (&p)[n], const float (&dp)[n],
                                                   const query_operands<D> &own)
{
#pragma unroll
    for (int i = 0; i < n; i++)
        p[i] *= dp[i] - own.stats[i / 2 % 2].delta;
}

/* ds becomes 0 where the query does not see the key. */
template <int n>
__device__ __forceinline__ void hide_keys_of_step(float (&ds)[n], const hpa_geometry &g,
                                                  const query_tile &tile, const int32_t *key_of_box)
{
    const key_boxes boxes = key_boxes_of(g);
    const int row = ((int)threadIdx.x - 128) / 32 * 16 + (int)threadIdx.x % 32 / 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int64_t query = hpa_min(tile.begin + row + 8 * half, tile.end - 1);
        const int last_key = (int)visible_keys(g, tile.sequence, query) - 1;
#pragma unroll
        for (int i = 0; i < n / 2; i++) {
            const int column = i / 2 * 8 + (int)threadIdx.x % 4 * 2 + i % 2;
            const int first = key_of_box[column / boxes.tokens];
            if (first < 0 || first + column % boxes.tokens > last_key)
                ds[i / 2 * 4 + half * 2 + i % 2] = 0;
        }
    }
}

/* s and dp of a stage, begun and not waited for. */
template <typename T, int D, int n>
__device__ __forceinline__ void begin_scores_of_step(float (&s)[n], float (&dp)[n],
                                                     const query_operands<D> &own,
                                                     queries_shared<D> &shared, int stage)
{
    multiply_abt<T, D>(s, own.q, uniform(shared_address(shared.k[stage])));
    wgmma_commit();
    multiply_abt<T, D>(dp, own.d_out, uniform(shared_address(shared.v[stage])));
    wgmma_commit();
}

/* All steps of one tile. not_finite: a step with hidden pairs had such a key. */
template <typename T, int D>
__device__ __forceinline__ void walk_keys(const sm90_arguments &x, queries_shared<D> &shared,
                                          stage_ring<queries_shared<D>::stages> &at,
                                          const query_work_sm90 &work,
                                          const query_operands<D> &own, float (&dq)[D / 2],
                                          bool &not_finite, int group)
{
    float s[step_keys / 2], dp[step_keys / 2];
    uint32_t left[step_keys / 16][4];
    const auto differentiate = [&](int stage) {
        wgmma_wait<1>();
        wgmma_hold(s);
        weigh_keys(s, own, x.scale_log2);
        settle_weights(s);
        wgmma_wait<0>();
        wgmma_hold(dp);
        differentiate_keys(s, dp, own);
        if (shared.last_key[stage] > own.all_see) {
            hide_keys_of_step(s, x.geometry, work.queries, shared.key_of_box[stage]);
            not_finite |= group_share_is_not_finite<T>(shared.k[stage], step_key_bytes<D>);
        }
        pack_sums<T>(left, s);
    };
    barrier_wait(&shared.full[at.stage], at.phase);
    await_turn(group);
    wgmma_fence();
    begin_scores_of_step<T>(s, dp, own, shared, at.stage);
    pass_turn(group);
    differentiate(at.stage);
    for (int n = 1; n < work.steps; n++) {
        const int before = at.stage;
        at.advance();
        barrier_wait(&shared.full[at.stage], at.phase);
        await_turn(group);
        wgmma_fence();
        multiply_ab<T>(dq, left, uniform(shared_address(shared.k[before])));
        wgmma_commit();
        begin_scores_of_step<T>(s, dp, own, shared, at.stage);
        pass_turn(group);
        wgmma_wait<2>();
        wgmma_hold(dq);
        release_stage(&shared.empty[before]);
        differentiate(at.stage);
    }
    await_turn(group);
    wgmma_fence();
    multiply_ab<T>(dq, left, uniform(shared_address(shared.k[at.stage])));
    wgmma_commit();
    pass_turn(group);
    wgmma_wait<0>();
    wgmma_hold(dq);
    release_stage(&shared.empty[at.stage]);
    at.advance();
}

template <typename T, int D>
__device__ void consume_keys(const sm90_arguments &x, queries_shared<D> &shared)
{
    const int thread = (int)threadIdx.x - 128, group = thread / 128;
    const int row_in_tile = thread / 32 * 16 + thread % 32 / 4;
    stage_ring<queries_shared<D>::stages> at;
    int turn = 0;
    if (group == 1)
        pass_turn(group);
    for (int64_t number = blockIdx.x; number < x.query_tiles; number += gridDim.x, turn ^= 1) {
        query_work_sm90 &work = shared.works[turn][group];
        if (thread % 128 == 0)
            find_queries(x, number, &work);
        named_barrier(1 + group, 128);
        bool not_finite = false;
        float dq[D / 2];
#pragma unroll
        for (int i = 0; i < D / 2; i++)
            dq[i] = 0;
        if (work.steps > 0) {
            query_operands<D> own;
            load_queries<T, D>(x, work, own, row_in_tile);
            walk_keys<T, D>(x, shared, at, work, own, dq, not_finite, group);
        }
        const bool left = named_barrier_or(1 + group, 128, not_finite);
        if (thread % 128 == 0)
            x.queries_left[2 * number + group] = left;
        if (!work.found || left)
            continue;
        const query_tile &tile = work.queries;
        const hpa_sequence &s = tile.sequence;
        const int64_t first = tile.begin + group * GROUP_ROWS;
        store_group_rows(row_at<T>(x.dq, s.batch, tile.head, s.q_start, first), x.dq.strides.token,
                         (int)hpa_min(GROUP_ROWS, tile.end - first), dq, x.scale, x.accumulate);
    }
}

template <typename T, int D>
__global__ void __launch_bounds__(queries_threads, 1)
    backward_queries_sm90_kernel(const __grid_constant__ sm90_arguments x,
                                 const __grid_constant__ CUtensorMap k_map,
                                 const __grid_constant__ CUtensorMap v_map)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(1024) unsigned char raw[];
    auto &shared = *reinterpret_cast<queries_shared<D> *>(raw);
    if (threadIdx.x == 0) {
        require_panel_alignment(raw);
        for (int stage = 0; stage < shared.stages; stage++) {
            barrier_init(&shared.full[stage], 1);
            barrier_init(&shared.empty[stage], 8); /* warps */
        }
        barrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x < 32)
            produce_keys<D>(x, shared, &k_map, &v_map);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        consume_keys<T, D>(x, shared);
    }
#endif
}

} // namespace
#endif
