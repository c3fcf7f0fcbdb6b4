/* dk and dv on Hopper: a thread block owns one key block of 64 or 128 keys (or one piece of a long
 * column, columns.cuh) and walks over the query blocks that keep it.
 *
 *     s^T = k q^T    dp^T = v dO^T    p = exp(scale s - lse)    ds = p (dp - delta)
 *     dv += p^T dO   dk += ds^T q
 *
 * One warp fetches 64 or 128 queries at a time, q, dO and their stats, into a ring of stages. Two
 * warpgroups of 64 keys each take them out: of 128 keys each has its half and both see every stage;
 * 64 keys they share, take every other stage, and add up in the end. Between the products p and ds
 * stay in registers, as left operands. */
#ifndef HPA_BACKWARD_KEYS_SM90_CUH
#define HPA_BACKWARD_KEYS_SM90_CUH

#include "backward/sm90.cuh"

namespace
{

inline constexpr int keys_threads = 128 + 256; /* producer, consumers */

/* Queries that one step multiplies with the 64 keys of a warpgroup. */
template <int D> inline constexpr int step_queries = 8192 / D;
inline constexpr int step_query_bytes = 16384;

/* A barrier tells its phases apart by their parity alone, so whoever waits for one of them must wait
 * for every one. Where each warpgroup takes every other of an odd number of stages, a stage has two
 * barriers in turns, which say that it is full: one for each warpgroup. */
template <int D, int halves> struct keys_shared {
    static constexpr int stages = 6 - halves;
    static constexpr int fillings = halves == 1 ? 2 * stages : stages; /* barriers that say so */
    static constexpr int key_bytes = GROUP_ROWS * D * 2;
    alignas(1024) unsigned char k[halves][key_bytes];
    alignas(1024) unsigned char v[halves][key_bytes];
    alignas(1024) unsigned char q[stages][step_query_bytes];
    alignas(1024) unsigned char d_out[stages][step_query_bytes];
    alignas(16) stats_pair stats[stages][step_queries<D>];
    uint64_t keys_full, full[fillings], empty[stages];
    int32_t first_query[stages]; /* or NO_MORE */
    column_work work;
    bool exists;
};

#define NO_MORE (-1) /* in place of a step's first query */

/* The sequence as the pairs of a key block see it. */
struct keys_view {
    int32_t first_key; /* of the key block */
    int32_t position;  /* key position of query 0 */
    int32_t queries;   /* of the sequence */
    bool causal;
};

template <int D, int halves>
__device__ __forceinline__ keys_view view_of(const hpa_geometry &g,
                                             const keys_shared<D, halves> &shared)
{
    const key_column &column = shared.work.column;
    const hpa_sequence &s = column.sequence;
    return {(int32_t)(column.key_block * g.block_k), (int32_t)(s.kv_length - s.q_length),
            (int32_t)s.q_length, g.causal};
}

/* The producer: one warp, whose lanes read the list and of which one fetches. */

template <int D, int halves> struct query_walk_sm90 {
    keys_shared<D, halves> &shared;
    const CUtensorMap *q_map, *d_out_map;
    stage_ring<keys_shared<D, halves>::stages> at;
    stage_ring<keys_shared<D, halves>::fillings> filling;
    const stats_pair *stats; /* of query 0 of the head under way */
    int first_token, head, batch;
};

template <int D, int halves>
__device__ __forceinline__ void start_head(query_walk_sm90<D, halves> &walk,
                                           const sm90_arguments &x, int64_t head)
{
    walk.stats = x.stats + slot_of_query(x.geometry, walk.shared.work.column.sequence, head, 0);
    walk.head = (int)head;
}

/* The step's queries. */
template <int D, int halves>
__device__ __forceinline__ void push_step(query_walk_sm90<D, halves> &walk, int32_t first)
{
    auto &shared = walk.shared;
    const int stage = walk.at.stage;
    uint64_t *full = &shared.full[walk.filling.stage];
    barrier_wait(&shared.empty[stage], walk.at.phase ^ 1);
    shared.first_query[stage] = first;
    barrier_arrive_expect(full, 2 * step_query_bytes + sizeof(shared.stats[0]));
    tma_load_rows(shared.q[stage], walk.q_map, full, walk.first_token + first, walk.head,
                  walk.batch);
    tma_load_rows(shared.d_out[stage], walk.d_out_map, full, walk.first_token + first, walk.head,
                  walk.batch);
    bulk_load(shared.stats[stage], walk.stats + first, sizeof(shared.stats[0]), full);
    walk.at.advance();
    walk.filling.advance();
}

/* Word that there are no more. */
template <int D, int halves>
__device__ __forceinline__ void push_end(query_walk_sm90<D, halves> &walk)
{
    auto &shared = walk.shared;
    barrier_wait(&shared.empty[walk.at.stage], walk.at.phase ^ 1);
    shared.first_query[walk.at.stage] = NO_MORE;
    barrier_arrive(&shared.full[walk.filling.stage]);
    walk.at.advance();
    walk.filling.advance();
}

/* The steps of one query block: those with a pair to count. */
template <int D, int halves>
__device__ __forceinline__ void push_block(query_walk_sm90<D, halves> &walk, int32_t block_q,
                                           const keys_view &view, int32_t block)
{
    const int32_t begin = block * block_q, end = min(begin + block_q, view.queries);
#pragma unroll 1
    for (int32_t first = begin; first < end; first += step_queries<D>)
        if (!view.causal || first + step_queries<D> - 1 + view.position >= view.first_key)
            push_step(walk, first);
}

template <int D, int halves>
__device__ void fetch_key_block(const sm90_arguments &x, keys_shared<D, halves> &shared,
                                const CUtensorMap *k_map, const CUtensorMap *v_map)
{
    using shape = keys_shared<D, halves>;
    const key_column &column = shared.work.column;
    const int batch = x.geometry.packed ? 0 : (int)column.sequence.batch;
    barrier_arrive_expect(&shared.keys_full, 2 * halves * shape::key_bytes);
    for (int half = 0; half < halves; half++) {
        const int key = (int)(column.sequence.kv_start + column.key_block * x.geometry.block_k) +
                        half * GROUP_ROWS;
        tma_load_rows(shared.k[half], k_map, &shared.keys_full, key, (int)column.kv_head, batch);
        tma_load_rows(shared.v[half], v_map, &shared.keys_full, key, (int)column.kv_head, batch);
    }
}

/* The group's lists end to end, entries work.begin ... work.end - 1; 32 are read at a time. */
template <int D, int halves>
__device__ void produce_queries(const sm90_arguments &x, keys_shared<D, halves> &shared,
                                const keys_view &view, const CUtensorMap *q_map,
                                const CUtensorMap *d_out_map)
{
    const hpa_geometry &g = x.geometry;
    const column_work &work = shared.work;
    const hpa_sequence &s = work.column.sequence;
    const int lane = (int)threadIdx.x % 32, query_blocks = (int)s.query_blocks;
    const int64_t first_head = work.column.kv_head * g.group;
    query_walk_sm90<D, halves> walk = {
        shared, q_map, d_out_map, {}, {}, nullptr, (int)s.q_start, 0, g.packed ? 0 : (int)s.batch};
    int64_t skip = work.begin, left = work.end - work.begin;
    for (int64_t head = first_head; left > 0 && head < first_head + g.group; head++) {
        const column_list list = list_of(g, x.mask, work.column, head);
        const int64_t begin = hpa_min(list.end, list.begin + skip);
        const int64_t end = hpa_min(list.end, begin + left);
        skip -= begin - list.begin;
        left -= end - begin;
        start_head(walk, x, head);
#pragma unroll 1
        for (int64_t at = begin; at < end; at += 32) {
            const int32_t mine = at + lane < end ? x.mask.column_rows[at + lane] : -1;
            const int count = (int)hpa_min(32, end - at);
#pragma unroll 1
            for (int n = 0; n < count; n++) {
                const int32_t block = __shfl_sync(0xffffffffu, mine, n);
                if (lane == 0 && block >= 0 && block < query_blocks)
                    push_block(walk, (int32_t)g.block_q, view, block);
                __syncwarp();
            }
        }
    }
    if (lane == 0) {
        push_end(walk);
        if (halves == 1) /* the other warpgroup waits for the stage after it */
            push_end(walk);
    }
}

/* The consumers: a thread has keys `row` and row + 8 of its warpgroup's 64. */

template <int D> struct key_sums {
    float dk[D / 2], dv[D / 2]; /* D columns of 64 rows over 128 threads */
    bool not_finite;            /* a step with hidden pairs had such a value */
};

/* lse or delta of the thread's two queries of each 8. Of a step of 64 they are loaded ahead, while
 * the products that they wait for are under way; for 128 registers do not suffice. */
template <int n, bool is_delta> struct query_stats {
    static constexpr bool is_ahead = n <= 32;
    const stats_pair *stats; /* of the thread's first query */
    float2 ahead[is_ahead ? n / 4 : 1];

    __device__ __forceinline__ explicit query_stats(const stats_pair *of_step)
        : stats(of_step + threadIdx.x % 4 * 2)
    {
        if constexpr (is_ahead)
#pragma unroll
            for (int c = 0; c < n / 4; c++) {
                ahead[c] = load(c);
                asm volatile("" : "+f"(ahead[c].x), "+f"(ahead[c].y)::"memory");
            }
    }
    __device__ __forceinline__ float2 load(int eight) const
    {
        const float4 pair = *reinterpret_cast<const float4 *>(stats + 8 * eight);
        return is_delta ? make_float2(pair.y, pair.w) : make_float2(pair.x, pair.z);
    }
    __device__ __forceinline__ float2 of(int eight) const
    {
        if constexpr (is_ahead)
            return ahead[eight];
        else
            return load(eight);
    }
};

/* p = exp(scale s - lse) in place of s. */
template <int n>
__device__ __forceinline__ void weigh_queries(float (&s)[n], const query_stats<n, false> &lse,
                                              float scale_log2)
{
#pragma unroll
    for (int c = 0; c < n / 4; c++) {
        const float2 pair = lse.of(c);
#pragma unroll
        for (int i = 0; i < 4; i++)
            s[4 * c + i] = weight_of(s[4 * c + i], scale_log2, i % 2 ? pair.y : pair.x);
    }
}

/* ds = p (dp - delta) in place of dp. */
template <int n>
__device__ __forceinline__ void differentiate_queries(float (&dp)[n], const float (&p)[n],
                                                      const query_stats<n, true> &delta)
{
#pragma unroll
    for (int c = 0; c < n / 4; c++) {
        const float2 pair = delta.of(c);
#pragma unroll
        for (int i = 0; i < 4; i++)
            dp[4 * c + i] = p[4 * c + i] * (dp[4 * c + i] - (i % 2 ? pair.y : pair.x));
    }
}

/* p or ds becomes 0 where the query does not see the key. */
template <int n>
__device__ __forceinline__ void hide_queries_of_step(float (&values)[n], const keys_view &view,
                                                     int32_t key, int32_t first_query)
{
    /* Of the thread's queries, counted from its first, `seen` see its key, from `from` on. */
    const int32_t first = first_query + (int)threadIdx.x % 4 * 2;
    int32_t from[2];
    uint32_t seen[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        from[half] = view.causal ? max(key + 8 * half - view.position - first, 0) : 0;
        seen[half] = (uint32_t)max(view.queries - first - from[half], 0);
    }
#pragma unroll
    for (int i = 0; i < n; i++)
        if ((uint32_t)(i / 4 * 8 + i % 2 - from[i / 2 % 2]) >= seen[i / 2 % 2])
            values[i] = 0;
}

/* First queries of the steps in which every pair of the warpgroup counts. */
struct whole_steps {
    int32_t begin, last;
};

/* A warpgroup's way along the ring of stages. */
template <int D, int halves> struct stage_walk {
    static constexpr int stride = 3 - halves; /* 64 keys: every other stage is the other's */
    stage_ring<keys_shared<D, halves>::fillings> at;
    uint32_t queries, full; /* addresses: of q in stage 0, of the first barrier */
    uint32_t q, next_q;     /* of q in this stage and in the next, uniform */
    int32_t first_query;
    int group;

    __device__ __forceinline__ static int stage_of(int filling)
    {
        constexpr int stages = keys_shared<D, halves>::stages;
        return filling < stages ? filling : filling - stages;
    }
};

/* Waits for the walk's next stage. */
template <int D, int halves> __device__ __forceinline__ void look_ahead(stage_walk<D, halves> &w)
{
    auto next = w.at;
    next.advance(w.stride);
    w.next_q = uniform(w.queries + w.stage_of(next.stage) * step_query_bytes);
    barrier_wait(w.full + next.stage * (uint32_t)sizeof(uint64_t), next.phase);
}

/* Hides pairs of a step's p or ds. */
template <int D, int halves, int n>
__device__ __forceinline__ void hide_pairs(const sm90_arguments &x, keys_shared<D, halves> &shared,
                                           const stage_walk<D, halves> &w, float (&values)[n])
{
    const keys_view view = view_of(x.geometry, shared);
    const int32_t row = (int)threadIdx.x % 128 / 32 * 16 + (int)threadIdx.x % 32 / 4;
    hide_queries_of_step(values, view, view.first_key + (halves - 1) * w.group * GROUP_ROWS + row,
                         w.first_query);
}

/* One stage: 64 keys with step_queries queries. Each product is begun as soon as its operands are
 * there: dv before dp is looked at, so that ds is made while it is under way. */
template <typename T, int D, int halves>
__device__ __forceinline__ void add_step(const sm90_arguments &x, keys_shared<D, halves> &shared,
                                         stage_walk<D, halves> &w, key_sums<D> &sums, uint32_t k,
                                         uint32_t v, const whole_steps &whole)
{
    constexpr int n = step_queries<D> / 2;
    const int stage = w.stage_of(w.at.stage);
    const uint32_t q = w.q, d_out = q + (uint32_t)sizeof(shared.q);
    const bool hides = w.first_query < whole.begin || w.first_query > whole.last;
    float p[n], ds[n];
    uint32_t left_p[n / 8][4], left_ds[n / 8][4];
    wgmma_fence();
    multiply_abt<T, D>(p, k, q);
    wgmma_commit();
    multiply_abt<T, D>(ds, v, d_out);
    wgmma_commit();
    const query_stats<n, false> lse(shared.stats[stage]);
    wgmma_wait<1>();
    wgmma_hold(p);
    weigh_queries(p, lse, x.scale_log2);
    if (hides)
        hide_pairs(x, shared, w, p);
    pack_sums<T>(left_p, p);
    wgmma_fence();
    multiply_ab<T>(sums.dv, left_p, d_out);
    wgmma_commit();
    const query_stats<n, true> delta(shared.stats[stage]);
    look_ahead(w);
    wgmma_wait<1>();
    wgmma_hold(ds);
    differentiate_queries(ds, p, delta);
    if (hides) {
        hide_pairs(x, shared, w, ds);
        const bool q_is = group_share_is_not_finite<T, step_query_bytes>(shared.q[stage]);
        const bool d_out_is = group_share_is_not_finite<T, step_query_bytes>(shared.d_out[stage]);
        sums.not_finite |= (int)q_is | (int)d_out_is;
    }
    pack_sums<T>(left_ds, ds);
    wgmma_fence();
    multiply_ab<T>(sums.dk, left_ds, q);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(sums.dv);
    wgmma_hold(sums.dk);
    leave_stage(w.full + (uint32_t)(sizeof(shared.full) + stage * sizeof(uint64_t)));
}

/* Adds the other warpgroup's share: the first warpgroup ends with all of dk, the second with dv. */
template <int D, int halves>
__device__ void join_groups(keys_shared<D, halves> &shared, key_sums<D> &sums, int group)
{
    float *exchange = reinterpret_cast<float *>(shared.q[0]) + threadIdx.x % 128;
    static_assert(sizeof(shared.q) >= 2 * GROUP_ROWS * D * sizeof(float));
    const int64_t other = (int64_t)GROUP_ROWS * D;
    named_barrier(1, 256); /* every stage is empty */
#pragma unroll
    for (int i = 0; i < D / 2; i++)
        exchange[group * other + 128 * i] = group == 0 ? sums.dv[i] : sums.dk[i];
    named_barrier(1, 256);
#pragma unroll
    for (int i = 0; i < D / 2; i++) {
        if (group == 0)
            sums.dk[i] += exchange[other + 128 * i];
        else
            sums.dv[i] += exchange[128 * i];
    }
}

/* To the gradient, or to the piece's own sums. */
template <typename T, int D>
__device__ void store_key_sums(const sm90_arguments &x, const column_work &work,
                               const float (&sums)[D / 2], const tensor_rows &to, float factor,
                               bool is_dv, int first_in_block)
{
    const hpa_sequence &s = work.column.sequence;
    const int64_t first_key = work.column.key_block * x.geometry.block_k + first_in_block;
    if (!to.data)
        return;
    if (work.sums < 0) {
        store_group_rows(row_at<T>(to, s.batch, work.column.kv_head, s.kv_start, first_key),
                         to.strides.token, (int)hpa_min(GROUP_ROWS, s.kv_length - first_key), sums,
                         factor, x.accumulate);
        return;
    }
    float *piece_sums = static_cast<float *>(x.plan.sums) + work.sums * x.plan.sums_each +
                        (is_dv * x.geometry.block_k + first_in_block) * D;
    const int lane = (int)threadIdx.x % 32, row = (int)threadIdx.x % 128 / 32 * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < D / 4; i++)
        *reinterpret_cast<float2 *>(piece_sums + (row + i % 2 * 8) * D + i / 2 * 8 + lane % 4 * 2) =
            make_float2(sums[2 * i] * factor, sums[2 * i + 1] * factor);
}

template <typename T, int D, int halves>
__device__ void consume_queries(const sm90_arguments &x, keys_shared<D, halves> &shared,
                                const keys_view &view)
{
    const int group = (int)uniform(threadIdx.x / 128) - 1;
    const int half = halves == 1 ? 0 : group;
    const uint32_t k = uniform(shared_address(shared.k[half]));
    const uint32_t v = uniform(shared_address(shared.v[half]));
    const int32_t last_key = view.first_key + half * GROUP_ROWS + GROUP_ROWS - 1;
    const whole_steps whole = {view.causal ? last_key - view.position : 0,
                               view.queries - step_queries<D>};
    key_sums<D> sums;
#pragma unroll
    for (int i = 0; i < D / 2; i++)
        sums.dk[i] = sums.dv[i] = 0;
    sums.not_finite = false;
    stage_walk<D, halves> w = {
        .queries = kept_address(shared.q), .full = kept_address(shared.full), .group = group};
    if (halves == 1 && group == 1)
        w.at.advance();
    barrier_wait(&shared.keys_full, 0);
    barrier_wait(&shared.full[w.at.stage], w.at.phase);
    w.first_query = shared.first_query[w.stage_of(w.at.stage)];
    w.q = uniform(w.queries + w.stage_of(w.at.stage) * step_query_bytes);
    while (w.first_query != NO_MORE) {
        add_step<T, D, halves>(x, shared, w, sums, k, v, whole);
        w.at.advance(w.stride);
        w.q = w.next_q;
        w.first_query = shared.first_query[w.stage_of(w.at.stage)];
    }
    const bool left = named_barrier_or(2, 256, sums.not_finite);
    if (threadIdx.x == 128)
        x.keys_left[work_index()] = left;
    if (left)
        return;
    if constexpr (halves == 1)
        join_groups(shared, sums, group);
    if (halves == 2 || group == 0)
        store_key_sums<T, D>(x, shared.work, sums.dk, x.dk, x.scale, false, half * GROUP_ROWS);
    if (halves == 2 || group == 1)
        store_key_sums<T, D>(x, shared.work, sums.dv, x.dv, 1, true, half * GROUP_ROWS);
}

template <typename T, int D, int halves>
__global__ void __launch_bounds__(keys_threads, 1)
    backward_keys_sm90_kernel(const __grid_constant__ sm90_arguments x,
                              const __grid_constant__ CUtensorMap q_map,
                              const __grid_constant__ CUtensorMap d_out_map,
                              const __grid_constant__ CUtensorMap k_map,
                              const __grid_constant__ CUtensorMap v_map)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(1024) unsigned char raw[];
    auto &shared = *reinterpret_cast<keys_shared<D, halves> *>(raw);
    if (threadIdx.x == 0) {
        require_panel_alignment(raw);
        shared.exists = find_column_work(x.geometry, x.mask, x.plan, work_index(), &shared.work);
        barrier_init(&shared.keys_full, 1);
        for (int filling = 0; filling < shared.fillings; filling++)
            barrier_init(&shared.full[filling], 1);
        for (int stage = 0; stage < shared.stages; stage++)
            barrier_init(&shared.empty[stage], 128 * halves);
        barrier_init_fence();
    }
    __syncthreads();
    if (!shared.exists) {
        if (threadIdx.x == 0 && work_index() < x.plan.most_pieces + x.plan.columns)
            x.keys_left[work_index()] = 0;
        return;
    }
    const keys_view view = view_of(x.geometry, shared);
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x == 0)
            fetch_key_block(x, shared, &k_map, &v_map);
        if (threadIdx.x < 32)
            produce_queries(x, shared, view, &q_map, &d_out_map);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        consume_queries<T, D, halves>(x, shared, view);
    }
#endif
}

} // namespace
#endif
