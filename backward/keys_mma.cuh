/* dk and dv on the tensor cores of sm_80: a thread block owns up to 64 keys of one key block and walks
 * over the query blocks that keep it, in all query heads of the group (columns.cuh).
 *
 *     s^T = k q^T    dp^T = v dO^T    p = exp(scale s - lse)    ds = p (dp - delta)
 *     dv += p^T dO   dk += ds^T q */
#ifndef HPA_BACKWARD_KEYS_MMA_CUH
#define HPA_BACKWARD_KEYS_MMA_CUH

#include "backward/mma.cuh"
#include "core/cuda/store.cuh"
#include "core/cuda/visible.cuh"

namespace
{

/* A warp multiplies 16 step_parts queries at a time. Two parts keep more products under way; one part
 * leaves registers to hold the keys in, and more steps for the warps of a narrow key block. */
template <int D, int parts_of_step> struct keys_shape {
    static constexpr int queries = D <= 128 ? 64 : 32; /* of a tile */
    static constexpr int parts = queries / PART_TOKENS;
    static constexpr int query_tile_bytes = queries * tile_row_bytes<D>;
    static constexpr int max_warps = 4;
    static constexpr int step_parts = parts_of_step;
    static constexpr int steps = parts / step_parts;
    static constexpr bool keys_in_registers = D <= (step_parts == 1 ? 128 : 96);

    /* Warps that own 16 keys each, and warps that share the queries of a tile with them. */
    static int key_warps(const hpa_geometry *g, int64_t device_shared_bytes)
    {
        int warps = (int)hpa_min(max_warps, g->block_k / 16);
        while (warps > 1 && (int64_t)shared_bytes(warps) > device_shared_bytes)
            warps /= 2;
        return warps;
    }
    static int query_warps(int key_warps)
    {
        return (int)hpa_min(max_warps / key_warps, steps);
    }
    static size_t shared_bytes(int key_warps)
    {
        return (size_t)(2 * 16 * key_warps * tile_row_bytes<D> + 4 * query_tile_bytes) +
               2 * queries * sizeof(stats_pair);
    }
};

/* Which query head and which parts of its query blocks each tile holds. One warp walks over the
 * group's lists; entries arrive as in gather.cuh. */
template <int parts> struct query_walk {
    gather_ring<parts> ring;
    int32_t inside[GATHER_SLOTS][parts]; /* part of its block; -1: none */
    int32_t head[GATHER_SLOTS];          /* -1: past the last tile */
    int64_t at, end;                     /* what is left of the list under way, in column_rows */
    int64_t skip, left;                  /* entries before and of this thread block's share */
    int32_t next_head, part;
};

template <int parts>
__device__ __forceinline__ void start_walk(query_walk<parts> *walk, const column_work &work,
                                           int64_t group)
{
    walk->at = walk->end = 0;
    walk->skip = work.begin;
    walk->left = work.end - work.begin;
    walk->next_head = (int32_t)(work.column.kv_head * group);
    walk->part = 0;
}

/* The next head's list, less what belongs to other thread blocks. */
template <int parts>
__device__ __forceinline__ void next_list(query_walk<parts> *walk, const hpa_geometry &g,
                                          const hpa_mask &m, const key_column &column)
{
    const column_list list = list_of(g, m, column, walk->next_head++);
    const int64_t skipped = hpa_min(walk->skip, list.end - list.begin);
    walk->skip -= skipped;
    walk->at = list.begin + skipped;
    walk->end = hpa_min(list.end, walk->at + walk->left);
    walk->left -= walk->end - walk->at;
}

/* Begins the entries of tile t: the first warp, whole. */
template <int parts>
__device__ __forceinline__ void walk_on(query_walk<parts> *walk, const hpa_geometry &g,
                                        const hpa_mask &m, const key_column &column, int32_t t)
{
    const int slot = t % GATHER_SLOTS, n = (int)threadIdx.x;
    const int32_t last_head = (int32_t)((column.kv_head + 1) * g.group);
    if (n == 0) {
        while (walk->at == walk->end && walk->left > 0 && walk->next_head < last_head)
            next_list(walk, g, m, column);
        walk->head[slot] = walk->at < walk->end ? walk->next_head - 1 : -1;
    }
    __syncwarp();
    const int32_t parts_per_block = (int32_t)g.block_q / PART_TOKENS;
    const int32_t part = walk->part + n;
    const int64_t entry = walk->at + part / parts_per_block;
    const bool exists = entry < walk->end;
    if (n < parts) {
        walk->inside[slot][n] = exists ? part % parts_per_block : -1;
        copy_async_4(shared_address(&walk->ring.block[slot][n]),
                     m.column_rows + (exists ? entry : 0), exists);
    }
    __syncwarp();
    if (n == parts) {
        walk->at = exists ? entry : walk->end;
        walk->part = exists ? part % parts_per_block : 0;
    }
    __syncwarp();
}

template <int parts>
__device__ __forceinline__ void find_query_parts(query_walk<parts> *walk, const hpa_geometry &g,
                                                 const hpa_sequence &s, int32_t t)
{
    if (threadIdx.x >= parts)
        return;
    const int slot = t % GATHER_SLOTS;
    const int32_t inside = walk->inside[slot][threadIdx.x];
    const int32_t block = walk->ring.block[slot][threadIdx.x];
    walk->ring.first[slot][threadIdx.x] = inside >= 0 && block >= 0 && block < s.query_blocks
                                              ? block * (int32_t)g.block_q + inside * PART_TOKENS
                                              : NO_TOKEN;
}

/* The rows of 16 keys as a left operand: from registers, or from the tile each time. */
template <int D, bool held> struct key_operand {
    uint32_t left[held ? D / 16 : 1][4];
    uint32_t lane;
};

template <int D, bool held>
__device__ __forceinline__ void hold_keys(key_operand<D, held> &keys, uint32_t tile_lane)
{
    keys.lane = tile_lane;
    if constexpr (held)
#pragma unroll
        for (int d = 0; d < D / 16; d++)
            load_matrices(keys.left[d], tile_lane + part_offset<D>(0, d));
}

/* What one step multiplies: 16 keys x 8 tiles queries. */
template <int tiles> using key_scores = float[tiles][4];

template <int tiles> __device__ __forceinline__ void set_zero(key_scores<tiles> &sums)
{
#pragma unroll
    for (int i = 0; i < 4 * tiles; i++)
        sums[i / 4][i % 4] = 0;
}

/* sums += keys(16 x 16) * queries(8 tiles x 16)^T, columns 16 d ... of their tiles */
template <typename T, int D, bool held, int tiles>
__device__ __forceinline__ void multiply_columns(key_scores<tiles> &sums,
                                                 key_operand<D, held> &keys,
                                                 uint32_t queries_lane_across, int d)
{
    if constexpr (!held)
        load_matrices(keys.left[0], keys.lane + part_offset<D>(0, d));
#pragma unroll
    for (int part = 0; part < tiles / 2; part++) {
        uint32_t right[4];
        load_matrices(right, queries_lane_across + part_offset<D>(part, d));
        multiply_add<T>(sums[2 * part], keys.left[held ? d : 0], right[0], right[1]);
        multiply_add<T>(sums[2 * part + 1], keys.left[held ? d : 0], right[2], right[3]);
    }
}

/* s^T = k q^T and dp^T = v dO^T side by side, because a product waits for the one before it on the
 * same sums: two chains of them keep the tensor cores busier than one after the other. */
template <typename T, int D, bool held, int tiles>
__device__ __forceinline__ void multiply_keys(key_scores<tiles> &s, key_scores<tiles> &dp,
                                              key_operand<D, held> &k, key_operand<D, held> &v,
                                              uint32_t q_lane_across, uint32_t d_out_lane_across,
                                              bool wants_dp)
{
    set_zero(s);
    set_zero(dp);
    if (wants_dp) {
#pragma unroll
        for (int d = 0; d < D / 16; d++) {
            multiply_columns<T>(s, k, q_lane_across, d);
            multiply_columns<T>(dp, v, d_out_lane_across, d);
        }
    } else {
#pragma unroll
        for (int d = 0; d < D / 16; d++)
            multiply_columns<T>(s, k, q_lane_across, d);
    }
}

/* What a lane needs to know of its keys g and g + 8, and of the sequence. */
struct key_rows {
    int32_t key;      /* of row g */
    int32_t position; /* key position of query 0 */
    int32_t queries;  /* of the sequence */
    bool causal;
};

__device__ __forceinline__ bool sees_key(const key_rows &rows, int32_t query, int row)
{
    return query < rows.queries && (!rows.causal || rows.key + row <= query + rows.position);
}

/* p^T and ds^T become 0 where the query does not see the key. */
template <int tiles>
__device__ __forceinline__ void hide_queries(key_scores<tiles> &p, key_scores<tiles> &ds,
                                             const int32_t *first, const key_rows &rows)
{
#pragma unroll
    for (int c = 0; c < tiles; c++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int column = 8 * c + (int)(threadIdx.x % 4) * 2 + i % 2;
            if (!sees_key(rows, token_of(first, column), i / 2 * 8))
                p[c][i] = ds[c][i] = 0;
        }
}

/* p^T = exp(scale s^T - lse) in place of s^T, ds^T = p^T (dp^T - delta) in place of dp^T. stats: of
 * the step's queries. */
template <int tiles>
__device__ __forceinline__ void differentiate_step(key_scores<tiles> &p, key_scores<tiles> &ds,
                                                   const stats_pair *stats, float scale_log2)
{
#pragma unroll
    for (int c = 0; c < tiles; c++) {
        const float4 pair = *reinterpret_cast<const float4 *>(stats + 8 * c + threadIdx.x % 4 * 2);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            p[c][i] = exp2_fast(fmaf(p[c][i], scale_log2, i % 2 ? -pair.z : -pair.x));
            ds[c][i] = p[c][i] * (ds[c][i] - (i % 2 ? pair.w : pair.y));
        }
    }
}

/* sums(16 keys x D) += weights(16 keys x queries) * queries(x D), the step's part of a tile */
template <typename T, int D, int tiles>
__device__ __forceinline__ void add_queries(float (&sums)[1][D / 8][4],
                                            const key_scores<tiles> &weights, uint32_t queries_lane)
{
#pragma unroll
    for (int part = 0; part < tiles / 2; part++) {
        uint32_t left[4];
        sums_to_left<T>(left, weights[2 * part], weights[2 * part + 1]);
        multiply_rows<T, D>(sums[0], left, queries_lane, part);
    }
}

/* Values of q or dO that are not finite reach the keys that their queries see, and no others. */
template <typename T, int D, int queries>
__device__ __forceinline__ void set_apart_queries(float (&sums)[1][D / 8][4], uint32_t tile,
                                                  const int32_t *first, const key_rows &rows)
{
#pragma unroll 1
    for (int n = 0; n < queries; n++)
        add_not_finite<T, D, 1>(sums, tile + n * tile_row_bytes<D>, [&](int row) {
            return sees_key(rows, token_of(first, n), 8 * row);
        });
}

/* 16 x D sums in f32 at `to`: a piece's share of a split column. */
template <int D>
__device__ __forceinline__ void store_sums(float *to, const float (&sums)[1][D / 8][4],
                                           float factor)
{
    const int lane = (int)(threadIdx.x % 32);
#pragma unroll
    for (int c = 0; c < D / 8; c++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            *reinterpret_cast<float2 *>(to + (8 * half + lane / 4) * D + 8 * c + lane % 4 * 2) =
                make_float2(sums[0][c][2 * half] * factor, sums[0][c][2 * half + 1] * factor);
}

/* Adds the sums of the warps that shared the queries, in their order, into those of the first. */
template <int D>
__device__ __forceinline__ void join_warps(float (&sums)[1][D / 8][4], float *shared, int key_warps,
                                           int query_warps)
{
    const int warp = (int)(threadIdx.x / 32), lane = (int)(threadIdx.x % 32);
    for (int from = 1; from < query_warps; from++) {
        __syncthreads();
        float *mine = shared + warp % key_warps * 16 * D + lane;
        if (warp / key_warps == from)
#pragma unroll
            for (int i = 0; i < D / 2; i++)
                mine[32 * i] = sums[0][i / 4][i % 4];
        __syncthreads();
        if (warp / key_warps == 0)
#pragma unroll
            for (int i = 0; i < D / 2; i++)
                sums[0][i / 4][i % 4] += mine[32 * i];
    }
    __syncthreads();
}

/* What a thread block finds out once about its keys; in shared memory. */
template <int parts> struct key_work {
    column_work column;
    query_walk<parts> walk;
    bool exists;
};

/* Finds the work of this thread block and begins the first entries; false where there is none. Every
 * thread calls. */
template <int parts>
__device__ __forceinline__ bool claim_keys(key_work<parts> *work, const backward_arguments &x)
{
    if (threadIdx.x == 0) {
        work->exists = find_column_work(x.geometry, x.mask, x.plan,
                                        work_index() / x.tiles_per_block, &work->column);
        if (work->exists)
            start_walk(&work->walk, work->column, x.geometry.group);
    }
    __syncthreads();
    if (!work->exists)
        return false;
    if (threadIdx.x < 32)
        for (int32_t t = 0; t < 3; t++)
            walk_on(&work->walk, x.geometry, x.mask, work->column.column, t);
    copy_async_wait();
    __syncthreads();
    find_query_parts(&work->walk, x.geometry, work->column.column.sequence, 0);
    find_query_parts(&work->walk, x.geometry, work->column.column.sequence, 1);
    return true;
}

/* Who does what: warps that own 16 keys each, times warps that share the queries of a tile. */
struct key_share {
    int key_warps, query_warps;
    int warp_key;                    /* first key of the warp, counted from the thread block's */
    int query_warp;                  /* which of query_warps */
    int64_t key_in_block, first_key; /* of the thread block, in its key block and in the sequence */
};

__device__ __forceinline__ key_share share_of(const backward_arguments &x, const key_column &column)
{
    key_share share;
    const int warp = (int)(threadIdx.x / 32);
    share.key_warps = x.tile_tokens / 16;
    share.query_warps = (int)(blockDim.x / 32) / share.key_warps;
    share.warp_key = warp % share.key_warps * 16;
    share.query_warp = warp / share.key_warps;
    share.key_in_block = work_index() % x.tiles_per_block * x.tile_tokens;
    share.first_key = column.key_block * x.geometry.block_k + share.key_in_block;
    return share;
}

/* Tile t of queries: q, dO and the stats of each. */
struct query_tiles {
    uint32_t first;    /* q, dO, q, dO */
    stats_pair *stats; /* [2][queries] */
};

template <typename shape>
__device__ __forceinline__ uint32_t queries_at(const query_tiles &tiles, int32_t t)
{
    return tiles.first + t % 2 * (2 * shape::query_tile_bytes);
}

template <typename T, int D, typename shape>
__device__ __forceinline__ void copy_queries(const query_tiles &tiles, const backward_arguments &x,
                                             const hpa_sequence &s,
                                             const query_walk<shape::parts> &walk, int32_t t)
{
    const int64_t head = walk.head[t % GATHER_SLOTS];
    if (head < 0)
        return;
    const int32_t *first = walk.ring.first[t % GATHER_SLOTS];
    copy_gathered<D, shape::parts>(
        queries_at<shape>(tiles, t), queries_at<shape>(tiles, t) + shape::query_tile_bytes,
        row_at<const T>(x.q, s.batch, head, s.q_start, 0), x.q.strides.token,
        row_at<const T>(x.d_out, s.batch, head, s.q_start, 0), x.d_out.strides.token, first,
        (int32_t)s.q_length);
    for (int n = (int)threadIdx.x; n < shape::queries; n += (int)blockDim.x) {
        const int32_t query = token_of(first, n);
        const bool exists = query < s.q_length;
        copy_async_8(shared_address(tiles.stats + t % 2 * shape::queries + n),
                     x.stats + slot_of_query(x.geometry, s, head, exists ? query : 0), exists);
    }
}

/* Queries with values that are not finite, q for dk and dO for dv, in the steps that the warps of the
 * thread block are at; every thread calls. */
template <typename T, int D, typename shape>
__device__ __forceinline__ void
set_apart_step(float (&dk)[1][D / 8][4], float (&dv)[1][D / 8][4], bool wants_dk, bool wants_dv,
               uint32_t q_step, const int32_t *first, const key_rows &rows, const key_share &share)
{
    constexpr int queries = PART_TOKENS * shape::step_parts;
    __syncthreads(); /* every warp has read the queries as they are */
    if (wants_dk)
        set_apart_queries<T, D, queries>(dk, q_step, first, rows);
    if (wants_dv)
        set_apart_queries<T, D, queries>(dv, q_step + shape::query_tile_bytes, first, rows);
    __syncthreads();
    const uint32_t steps = q_step - part_offset<D>(share.query_warp * shape::step_parts, 0);
    make_share_finite<T, D>(steps, queries * share.query_warps);
    make_share_finite<T, D>(steps + shape::query_tile_bytes, queries * share.query_warps);
    __syncthreads();
}

/* factor * sums of the warp's keys, to the gradient or to the piece's own sums. */
template <typename T, int D>
__device__ __forceinline__ void store_keys(const backward_arguments &x, const column_work &work,
                                           const key_share &share, float (&sums)[1][D / 8][4],
                                           const tensor_rows &to, float factor, bool is_dv,
                                           uint32_t k_tile, float *joint)
{
    join_warps<D>(sums, joint, share.key_warps, share.query_warps);
    if (share.query_warp != 0)
        return;
    const hpa_sequence &s = work.column.sequence;
    const float factors[1][2] = {{factor, factor}};
    if (work.sums < 0)
        store_rows<T, D, 1>(row_at<T>(to, s.batch, work.column.kv_head, s.kv_start,
                                      share.first_key + share.warp_key),
                            to.strides.token, (int)(s.kv_length - share.first_key) - share.warp_key,
                            sums, factors, x.accumulate,
                            k_tile + share.warp_key * tile_row_bytes<D>);
    else
        store_sums<D>(static_cast<float *>(x.plan.sums) + work.sums * x.plan.sums_each +
                          (is_dv * x.geometry.block_k + share.key_in_block + share.warp_key) * D,
                      sums, factor);
}

template <typename T, int D, int step_parts, bool has_dk, bool has_dv>
__global__ void __launch_bounds__(32 * keys_shape<D, step_parts>::max_warps, D <= 128 ? 2 : 1)
    backward_keys_kernel(const __grid_constant__ backward_arguments x)
{
    using shape = keys_shape<D, step_parts>;
    extern __shared__ __align__(16) unsigned char shared[];
    const hpa_geometry &g = x.geometry;
    __shared__ key_work<shape::parts> work;
    if (x.only && !x.only[work_index() / x.tiles_per_block])
        return;
    if (!claim_keys(&work, x))
        return;
    const key_column &column = work.column.column;
    const hpa_sequence &s = column.sequence;
    const key_share share = share_of(x, column);
    const uint32_t key_bytes = x.tile_tokens * tile_row_bytes<D>;
    const uint32_t k_tile = shared_address(shared), v_tile = k_tile + key_bytes;
    const query_tiles tiles = {
        v_tile + key_bytes,
        reinterpret_cast<stats_pair *>(shared + 2 * key_bytes + 4 * shape::query_tile_bytes)};
    copy_rows<D>(k_tile, x.tile_tokens,
                 row_at<const T>(x.k, s.batch, column.kv_head, s.kv_start, 0), x.k.strides.token,
                 share.first_key, s.kv_length);
    copy_rows<D>(v_tile, x.tile_tokens,
                 row_at<const T>(x.v, s.batch, column.kv_head, s.kv_start, 0), x.v.strides.token,
                 share.first_key, s.kv_length);
    copy_async_wait();
    __syncthreads();
    copy_queries<T, D, shape>(tiles, x, s, work.walk, 0);
    key_operand<D, shape::keys_in_registers> k, v;
    hold_keys(k, k_tile + share.warp_key * tile_row_bytes<D> + lane_offset<D>());
    if constexpr (has_dk)
        hold_keys(v, v_tile + share.warp_key * tile_row_bytes<D> + lane_offset<D>());

    const key_rows rows = {(int32_t)share.first_key + share.warp_key + (int)(threadIdx.x % 32 / 4),
                           (int32_t)(s.kv_length - s.q_length), (int32_t)s.q_length, g.causal};
    /* Queries that see every key of the thread block begin here ... */
    const int32_t last_key = (int32_t)hpa_min(share.first_key + x.tile_tokens, s.kv_length) - 1;
    const int32_t all_seen_from = g.causal ? last_key - rows.position : 0;
    /* ... and those that see some key of the warp here. */
    const int32_t some_seen_from =
        g.causal ? (int32_t)share.first_key + share.warp_key - rows.position : 0;
    const bool wants_dk = has_dk && x.dk.data, wants_dv = has_dv && x.dv.data;
    float dk[1][D / 8][4] = {}, dv[1][D / 8][4] = {};
    for (int32_t t = 0; work.walk.head[t % GATHER_SLOTS] >= 0; t++) {
        copy_async_wait();
        __syncthreads();
        find_query_parts(&work.walk, g, s, t + 2);
        if (threadIdx.x < 32)
            walk_on(&work.walk, g, x.mask, column, t + 3);
        copy_queries<T, D, shape>(tiles, x, s, work.walk, t + 1);
        const uint32_t q_tile = queries_at<shape>(tiles, t);
        const int32_t *first = work.walk.ring.first[t % GATHER_SLOTS];
        const bool apart = g.causal && any_part_begins_before<shape::parts>(first, all_seen_from) &&
                           __syncthreads_or(share_is_not_finite<T, D>(q_tile, 2 * shape::queries));
        for (int step = share.query_warp; step < shape::steps; step += share.query_warps) {
            const int32_t *step_first = first + step * step_parts;
            const bool masked = any_part_begins_before<step_parts>(step_first, all_seen_from) ||
                                any_part_reaches<step_parts>(step_first, rows.queries);
            if (masked && !apart &&
                !any_part_meets<step_parts>(step_first, some_seen_from, rows.queries))
                continue;
            const uint32_t q_step = q_tile + part_offset<D>(step * step_parts, 0);
            const uint32_t d_out_step = q_step + shape::query_tile_bytes;
            key_scores<2 * step_parts> p, ds;
            multiply_keys<T>(p, ds, k, v, q_step + lane_offset_across<D>(),
                             d_out_step + lane_offset_across<D>(), wants_dk);
            differentiate_step(
                p, ds, tiles.stats + t % 2 * shape::queries + step * step_parts * PART_TOKENS,
                x.scale_log2);
            if (masked)
                hide_queries(p, ds, step_first, rows);
            if (apart)
                set_apart_step<T, D, shape>(dk, dv, wants_dk, wants_dv, q_step, step_first, rows,
                                            share);
            if (wants_dv)
                add_queries<T, D>(dv, p, d_out_step + lane_offset<D>());
            if (wants_dk)
                add_queries<T, D>(dk, ds, q_step + lane_offset<D>());
        }
    }
    copy_async_wait();
    __syncthreads();
    float *joint = reinterpret_cast<float *>(shared + 2 * key_bytes);
    if (wants_dk)
        store_keys<T, D>(x, work.column, share, dk, x.dk, x.scale, false, k_tile, joint);
    if (wants_dv)
        store_keys<T, D>(x, work.column, share, dv, x.dv, 1, true, k_tile, joint);
}

} // namespace
#endif
