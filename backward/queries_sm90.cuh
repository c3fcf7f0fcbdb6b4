/* dq on Hopper: 128 queries of one head at a time, over the key blocks that their row keeps.
 *
 *     s = q k^T    dp = dO v^T    p = exp(scale s - lse)    ds = p (dp - delta)    dq += ds k
 *
 * One thread plans: it finds the next tile and writes down what the others need to know of it.
 * One warp fetches 64 keys at a time, k and v, into a ring of stages, from the end of the row's
 * list. Two warpgroups of 64 queries each take them out. Before a tile's keys come its dO, O and q,
 * a stage for each. q and dO are kept in registers as left operands, which spares shared memory
 * their reading, as it does with ds. Of dO and O two more warps make delta, while the tile before is
 * under way, and leave it in scratch with lse, for dk and dv too. Thread blocks stay and take the
 * next tile whenever one is done: which of them has a tile does not matter to its sums. */
#ifndef HPA_BACKWARD_QUERIES_SM90_CUH
#define HPA_BACKWARD_QUERIES_SM90_CUH

#include "backward/sm90.cuh"

namespace
{

inline constexpr int tile_queries = 128;
inline constexpr int queries_threads = 128 + 256; /* planner, producer and stats, consumers */
inline constexpr int stats_threads = 64;          /* of two rows each */
inline constexpr int step_keys = 64; /* that one step multiplies with the queries */
template <int D> inline constexpr int step_key_bytes = step_keys * D * 2;
inline constexpr int most_boxes = 4; /* blocks of keys in a step */
inline constexpr int query_jobs = 2; /* tiles of queries: this one and the next */

/* A tile of queries as the planner describes it. The boxes of keys that it walks over are blocks,
 * or halves of blocks longer than a step. */
struct query_job {
    int64_t number;
    void *dq; /* its first row, as are ... */
    const float *lse, *d_lse; /* NULL: lse has no gradient */
    stats_pair *stats;
    const int32_t *blocks; /* that it keeps, ascending */
    int boxes, steps;
    int rows;       /* queries; 0: there are no more tiles */
    int first_sees; /* keys that the first query sees, before the limit of ... */
    int keys;       /* ... how many there are */
    int token, head, kv_token, kv_head, batch; /* of the first query, of key 0 */
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
    uint64_t job_full[query_jobs], job_empty[query_jobs], sent[query_jobs], stats_full[query_jobs];
    query_job job[query_jobs];
    alignas(16) stats_pair stats[query_jobs][tile_queries];
};

/* The planner: one thread. */

template <typename T>
__device__ __forceinline__ bool plan_queries(const sm90_arguments &x, int64_t number,
                                             query_job *job)
{
    const hpa_geometry &g = x.geometry;
    query_tile tile;
    if (!find_query_tile(g, x.mask, number, x.tiles_per_block, tile_queries, &tile))
        return false;
    const hpa_sequence &s = tile.sequence;
    const key_boxes boxes = key_boxes_of(g);
    job->number = number;
    job->dq = row_at<T>(x.dq, s.batch, tile.head, s.q_start, tile.begin);
    job->lse = row_at<const float>(x.lse, s.batch, tile.head, s.q_start, tile.begin);
    job->d_lse = x.d_lse.data
                     ? row_at<const float>(x.d_lse, s.batch, tile.head, s.q_start, tile.begin)
                     : nullptr;
    job->stats = x.stats + slot_of_query(g, s, tile.head, tile.begin);
    job->blocks = x.mask.row_blocks + tile.mask_row * g.capacity;
    job->boxes =
        max(0, min(x.mask.row_length[tile.mask_row], (int)g.capacity)) * boxes.per_block;
    job->steps = (job->boxes + boxes.per_step - 1) / boxes.per_step;
    job->rows = (int)(tile.end - tile.begin);
    job->first_sees = (int)(g.causal ? hpa_key_position(&s, tile.begin) + 1 : s.kv_length);
    job->keys = (int)s.kv_length;
    job->token = (int)(s.q_start + tile.begin);
    job->head = (int)tile.head;
    job->kv_token = (int)s.kv_start;
    job->kv_head = (int)(tile.head / g.group);
    job->batch = g.packed ? 0 : (int)s.batch;
    return true;
}

template <typename T, int D>
__device__ void plan_all_queries(const sm90_arguments &x, queries_shared<D> &shared)
{
    stage_ring<query_jobs> at;
    bool last = false;
    while (!last) {
        barrier_wait(&shared.job_empty[at.stage], at.phase ^ 1);
        const auto number = (int64_t)atomicAdd(x.next_query_tile, 1ull);
        query_job &job = shared.job[at.stage];
        last = number >= x.query_tiles;
        if (last) {
            job.rows = 0;
        } else if (!plan_queries<T>(x, number, &job)) {
            x.queries_left[2 * number] = x.queries_left[2 * number + 1] = 0;
            continue;
        }
        barrier_arrive(&shared.job_full[at.stage]);
        at.advance();
    }
}

/* The producer: one warp, whose lanes look up the boxes of the next steps and of which one lane fetches
 * them. Each step is little work: the consumers are done with one in a microsecond. */

struct key_walk {
    const int32_t *blocks;
    int boxes, steps, per_step; /* of the tile; boxes of a step */
    int block_shift, box_shift; /* log2: tokens in a block, tokens in a box */
    int first_token, kv_head, batch;
};

__device__ __forceinline__ key_walk key_walk_of(const sm90_arguments &x, const query_job &job)
{
    const key_boxes boxes = key_boxes_of(x.geometry);
    return {job.blocks,
            job.boxes,
            job.steps,
            boxes.per_step,
            __ffs((int)x.geometry.block_k) - 1,
            __ffs(boxes.tokens) - 1,
            job.kv_token,
            job.kv_head,
            job.batch};
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

/* A stage of dO, O or q: 64 rows of the tile for each warpgroup, in the places of k and v. */
template <int D>
__device__ __forceinline__ void fetch_queries(queries_shared<D> &shared,
                                              stage_ring<queries_shared<D>::stages> &at,
                                              const query_job &job, const CUtensorMap *map)
{
    if (threadIdx.x == 0) {
        uint64_t *full = &shared.full[at.stage];
        barrier_wait(&shared.empty[at.stage], at.phase ^ 1);
        barrier_arrive_expect(full, 2 * step_key_bytes<D>);
        tma_load_rows(shared.k[at.stage], map, full, job.token, job.head, job.batch);
        tma_load_rows(shared.v[at.stage], map, full, job.token + GROUP_ROWS, job.head, job.batch);
    }
    at.advance();
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
                             const CUtensorMap *q_map, const CUtensorMap *out_map,
                             const CUtensorMap *d_out_map, const CUtensorMap *k_map,
                             const CUtensorMap *v_map)
{
    stage_ring<queries_shared<D>::stages> at;
    for (stage_ring<query_jobs> job_at;; job_at.advance()) {
        barrier_wait(&shared.job_full[job_at.stage], job_at.phase);
        const query_job &job = shared.job[job_at.stage];
        if (job.rows == 0)
            return;
        const key_walk walk = key_walk_of(x, job);
        if (walk.steps > 0) {
            fetch_queries(shared, at, job, d_out_map);
            fetch_queries(shared, at, job, out_map);
            fetch_queries(shared, at, job, q_map);
            __syncwarp();
        }
        if (threadIdx.x == 0)
            barrier_arrive(&shared.sent[job_at.stage]);
        leave_stage(&shared.job_empty[job_at.stage]);
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

/* The stats: two warps, each for the 64 rows in the places of k or of v. A lane has two rows. They
 * see few of the stages, and a barrier tells its phases apart by their parity alone: so before they
 * wait for a stage they wait until the producer has begun to fill it. */

template <typename T>
__device__ __forceinline__ void add_products(float &sum, const uint4 &a, const uint4 &b)
{
    const uint32_t words_a[4] = {a.x, a.y, a.z, a.w}, words_b[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
    for (int n = 0; n < 4; n++) {
        const float2 x = unpack<T>(words_a[n]), y = unpack<T>(words_b[n]);
        sum = fma(x.y, y.y, fma(x.x, y.x, sum));
    }
}

/* o . dO (row_stats.cuh). o, d_out: tiles of 64 rows. */
template <typename T, int D>
__device__ __forceinline__ float product_of_rows(const unsigned char *o,
                                                 const unsigned char *d_out, int row)
{
    float sums[ROW_SUMS] = {};
#pragma unroll 1
    for (int first = 0; first < D / 8; first += ROW_SUMS)
#pragma unroll
        for (int n = 0; n < ROW_SUMS; n++) {
            const int eight = first + n;
            const int at =
                eight / 8 * (GROUP_ROWS * 128) + row * 128 + (eight % 8 ^ row % 8) * 16;
            add_products<T>(sums[n], *reinterpret_cast<const uint4 *>(o + at),
                            *reinterpret_cast<const uint4 *>(d_out + at));
        }
    return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

template <typename T, int D>
__device__ void find_all_stats(const sm90_arguments &x, queries_shared<D> &shared)
{
    constexpr int stages = queries_shared<D>::stages;
    const int thread = (int)threadIdx.x - 64, rows = thread / 32 * GROUP_ROWS;
    stage_ring<stages> at;
    for (stage_ring<query_jobs> job_at;; job_at.advance()) {
        barrier_wait(&shared.job_full[job_at.stage], job_at.phase);
        const query_job &job = shared.job[job_at.stage];
        if (job.rows == 0)
            return;
        barrier_wait(&shared.sent[job_at.stage], job_at.phase);
        if (job.steps > 0) {
            stage_ring<stages> out_at = at;
            out_at.advance();
            barrier_wait(&shared.full[at.stage], at.phase);
            barrier_wait(&shared.full[out_at.stage], out_at.phase);
            const unsigned char *d_out = rows ? shared.v[at.stage] : shared.k[at.stage];
            const unsigned char *o = rows ? shared.v[out_at.stage] : shared.k[out_at.stage];
#pragma unroll 1
            for (int row = thread % 32; row < GROUP_ROWS; row += 32) {
                const int in_tile = rows + row;
                float delta = product_of_rows<T, D>(o, d_out, row);
                if (in_tile < job.rows) {
                    if (job.d_lse)
                        delta -= job.d_lse[in_tile * x.d_lse.strides.token];
                    const stats_pair pair =
                        stats_of(job.lse[in_tile * x.lse.strides.token], delta, LSE_FACTOR);
                    shared.stats[job_at.stage][in_tile] = pair;
                    job.stats[in_tile] = pair;
                }
            }
            const int next = at.stage + 3 + job.steps;
            at = {next % stages, at.phase ^ (next / stages & 1)};
        }
        barrier_arrive(&shared.stats_full[job_at.stage]);
        leave_stage(&shared.job_empty[job_at.stage]);
    }
}

/* The consumers: a thread has queries `row` and row + 8 of its warpgroup's 64. */

template <int D> struct query_operands {
    uint32_t q[D / 16][4], d_out[D / 16][4];
    stats_pair stats[2];
    int all_see; /* last key that the warpgroup's first row sees */
};

__device__ __forceinline__ int last_key_of(const sm90_arguments &x, const query_job &job, int row)
{
    const int64_t sees = (int64_t)job.first_sees + (x.geometry.causal ? row : 0);
    return (int)hpa_min(sees, job.keys) - 1;
}

/* A warpgroup's way along the ring of stages. */
template <int D> struct ring_walk {
    stage_ring<queries_shared<D>::stages> at;
    uint32_t keys, full, empty; /* addresses: of k in stage 0, of the barriers of stage 0 */
    uint32_t k, next_k;         /* of k in this stage and in the next, uniform */
    int group;
    bool not_finite; /* a step with hidden pairs had such a key */
};

/* The warpgroup's rows of the walk's stage, as left operand. The stage is not left yet. */
template <int D>
__device__ __forceinline__ void take_left(queries_shared<D> &shared, ring_walk<D> &w,
                                          uint32_t (&left)[D / 16][4])
{
    const uint32_t lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane % 16;
    const uint32_t rows = w.keys + w.at.stage * step_key_bytes<D> +
                          w.group * (uint32_t)sizeof(shared.k) + row * 128;
    barrier_wait(w.full + w.at.stage * (uint32_t)sizeof(uint64_t), w.at.phase);
#pragma unroll
    for (int d = 0; d < D / 16; d++)
        load_matrices(left[d], rows + d / 4 * (GROUP_ROWS * 128) +
                                   ((d % 4 * 2 + lane / 16) ^ row % 8) * 16);
}

template <int D> __device__ __forceinline__ void leave_and_advance(ring_walk<D> &w)
{
    leave_stage(w.empty + w.at.stage * (uint32_t)sizeof(uint64_t));
    w.at.advance();
}

/* Once the stats are there, dO and O have been read by their warps, too. */
template <int D>
__device__ __forceinline__ void take_queries(const sm90_arguments &x, const query_job &job,
                                             const stage_ring<query_jobs> &job_at,
                                             queries_shared<D> &shared, ring_walk<D> &w,
                                             query_operands<D> &own, int row)
{
    take_left(shared, w, own.d_out);
    barrier_wait(&shared.stats_full[job_at.stage], job_at.phase);
    own.stats[0] = shared.stats[job_at.stage][row];
    own.stats[1] = shared.stats[job_at.stage][row + 8];
    leave_and_advance(w);
    leave_and_advance(w);
    take_left(shared, w, own.q);
    leave_and_advance(w);
    own.all_see = last_key_of(x, job, row / GROUP_ROWS * GROUP_ROWS);
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
__device__ __forceinline__ void hide_keys_of_step(float (&ds)[n], const sm90_arguments &x,
                                                  const query_job &job, const int32_t *key_of_box)
{
    const int tokens = key_boxes_of(x.geometry).tokens, box_shift = __ffs(tokens) - 1;
    const int row = (int)(threadIdx.x - 128) / 32 * 16 + (int)threadIdx.x % 32 / 4;
    const int last_key[2] = {last_key_of(x, job, row), last_key_of(x, job, row + 8)};
#pragma unroll
    for (int c = 0; c < n / 4; c++) {
        const int column = c * 8 + (int)threadIdx.x % 4 * 2;
        const int first = key_of_box[column >> box_shift];
        const int key = first < 0 ? INT_MAX - 1 : first + (column & (tokens - 1));
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (key + i % 2 > last_key[i / 2])
                ds[4 * c + i] = 0;
    }
}

/* Waits for the stage after this one, if there is to be one. weights: to be made before. The
 * compiler would sink their making below the wait for the very products that are to hide it, so the
 * address of the next stage hangs on them: their sign bit, which no weight has set, is added where
 * panels drop it. */
template <int D, int n>
__device__ __forceinline__ void look_ahead(ring_walk<D> &w, const float (&weights)[n], bool more)
{
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < n; i++)
        bits |= __float_as_uint(weights[i]);
    auto next = w.at;
    next.advance();
    w.next_k = uniform(w.keys + next.stage * step_key_bytes<D> + (bits >> 31));
    if (more)
        barrier_wait(w.full + next.stage * (uint32_t)sizeof(uint64_t), next.phase);
}

/* All steps of one tile. A step's scores are begun before dq of the step before is added, and
 * weighed while that and dp are under way. */
template <typename T, int D>
__device__ __forceinline__ void walk_keys(const sm90_arguments &x, queries_shared<D> &shared,
                                          ring_walk<D> &w, const query_job &job, int steps,
                                          const query_operands<D> &own, float (&dq)[D / 2])
{
    float s[step_keys / 2], dp[step_keys / 2];
    uint32_t left[step_keys / 16][4];
    const auto begin_s = [&]() {
        multiply_abt<T, D>(s, own.q, w.k);
        wgmma_commit();
    };
    const auto begin_dp = [&]() {
        multiply_abt<T, D>(dp, own.d_out, w.k + (uint32_t)sizeof(shared.k));
        wgmma_commit();
    };
    const auto begin_dq = [&](uint32_t k) {
        multiply_ab<T>(dq, left, k);
        wgmma_commit();
    };
    const auto weigh = [&]() {
        wgmma_hold(s);
        weigh_keys(s, own, x.scale_log2);
        wgmma_hold(s);
    };
    const auto differentiate = [&]() {
        wgmma_hold(dp);
        differentiate_keys(s, dp, own);
        if (shared.last_key[w.at.stage] > own.all_see) {
            hide_keys_of_step(s, x, job, shared.key_of_box[w.at.stage]);
            w.not_finite |=
                group_share_is_not_finite<T, step_key_bytes<D>>(shared.k[w.at.stage]);
        }
        pack_sums<T>(left, s);
    };
    const auto release = [&](int stage) {
        leave_stage(w.empty + stage * (uint32_t)sizeof(uint64_t));
    };
    barrier_wait(&shared.full[w.at.stage], w.at.phase);
    w.k = uniform(w.keys + w.at.stage * step_key_bytes<D>);
    await_turn(w.group);
    wgmma_fence();
    begin_s();
    begin_dp();
    pass_turn(w.group);
    wgmma_wait<1>();
    weigh();
    look_ahead(w, s, steps > 1);
    wgmma_wait<0>();
    differentiate();
    for (int n = 1; n < steps; n++) {
        const int before = w.at.stage;
        const uint32_t k_before = w.k;
        w.at.advance();
        w.k = w.next_k;
        await_turn(w.group);
        wgmma_fence();
        begin_s();
        begin_dq(k_before);
        begin_dp();
        pass_turn(w.group);
        wgmma_wait<2>();
        weigh();
        look_ahead(w, s, n + 1 < steps);
        wgmma_wait<0>();
        wgmma_hold(dq);
        release(before);
        differentiate();
    }
    await_turn(w.group);
    wgmma_fence();
    begin_dq(w.k);
    pass_turn(w.group);
    wgmma_wait<0>();
    wgmma_hold(dq);
    release(w.at.stage);
    w.at.advance();
}

template <typename T, int D>
__device__ void consume_keys(const sm90_arguments &x, queries_shared<D> &shared)
{
    const int thread = (int)threadIdx.x - 128, group = (int)uniform((uint32_t)thread / 128);
    const int row = thread / 32 * 16 + thread % 32 / 4;
    ring_walk<D> w = {.keys = kept_address(shared.k),
                      .full = kept_address(shared.full),
                      .empty = kept_address(shared.empty),
                      .group = group};
    if (group == 1)
        pass_turn(group);
    for (stage_ring<query_jobs> job_at;; job_at.advance()) {
        barrier_wait(&shared.job_full[job_at.stage], job_at.phase);
        const query_job &job = shared.job[job_at.stage];
        const int rows = (int)uniform((uint32_t)job.rows);
        if (rows == 0)
            return;
        w.not_finite = false;
        float dq[D / 2];
#pragma unroll
        for (int i = 0; i < D / 2; i++)
            dq[i] = 0;
        const int steps = (int)uniform((uint32_t)job.steps);
        if (steps > 0) {
            query_operands<D> own;
            take_queries(x, job, job_at, shared, w, own, row);
            walk_keys<T, D>(x, shared, w, job, steps, own, dq);
        }
        const bool left = named_barrier_or(1 + group, 128, w.not_finite);
        if (thread % 128 == 0)
            x.queries_left[2 * job.number + group] = left;
        if (!left)
            store_group_rows(static_cast<T *>(job.dq) + group * GROUP_ROWS * x.dq.strides.token,
                             x.dq.strides.token, rows - group * GROUP_ROWS, dq, x.scale,
                             x.accumulate);
        leave_stage(&shared.job_empty[job_at.stage]);
    }
}

template <typename T, int D>
__global__ void __launch_bounds__(queries_threads, 1)
    backward_queries_sm90_kernel(const __grid_constant__ sm90_arguments x,
                                 const __grid_constant__ CUtensorMap q_map,
                                 const __grid_constant__ CUtensorMap out_map,
                                 const __grid_constant__ CUtensorMap d_out_map,
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
            barrier_init(&shared.empty[stage], 256); /* consumers */
        }
        for (int stage = 0; stage < query_jobs; stage++) {
            barrier_init(&shared.job_full[stage], 1);
            barrier_init(&shared.job_empty[stage], 256 + 32 + stats_threads); /* and the producer */
            barrier_init(&shared.sent[stage], 1);
            barrier_init(&shared.stats_full[stage], stats_threads);
        }
        barrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x < 32)
            produce_keys<D>(x, shared, &q_map, &out_map, &d_out_map, &k_map, &v_map);
        else if (threadIdx.x >= 64)
            find_all_stats<T>(x, shared);
        else if (threadIdx.x == 32)
            plan_all_queries<T>(x, shared);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        consume_keys<T, D>(x, shared);
    }
#endif
}

} // namespace
#endif
