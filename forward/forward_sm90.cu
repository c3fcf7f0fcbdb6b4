/* The forward pass on Hopper: f16 and bf16, head_dim 64 and 128, block_q 128 and 256.
 *
 * A tile is 128 queries of one head. One producer thread walks the row's list of kept blocks from its
 * end and fetches 128 keys at a time (128 / block_k blocks, one box each) into a ring of stages; two
 * warpgroups of 64 queries each take them out:
 *
 *     S = Q K^T      P = exp2(S * scale - highest)      O = O * rescale + P V
 *
 * with O, S and P in registers, and the products of the next S under way while P V and the
 * exponentials run. Causality and the sequence's end are looked at only in tiles that reach past the
 * first query's position. Blocks of threads stay and take tile after tile, so that the producer
 * fetches the next tile's queries and keys while this tile's sums are written. */
#include "core/cuda/launch.h"
#include "core/cuda/mma.cuh"
#include "core/cuda/reduce.cuh"
#include "core/cuda/tiling.h"
#include "core/cuda/tma.cuh"
#include "core/cuda/tma_map.h"
#include "core/cuda/wgmma.cuh"
#include "forward/kernels.h"

/* Compiled for an older architecture the kernel is empty, and its functions have no use. */
#pragma nv_diag_suppress 177

namespace
{

constexpr int tile_queries = 128;
constexpr int tile_keys = 128;
constexpr int group_queries = 64; /* of one warpgroup */
constexpr int consumer_threads = 256;
constexpr int consumer_warps = consumer_threads / 32;
constexpr int threads = 128 + consumer_threads;
constexpr int most_boxes = tile_keys / 16;   /* blocks of keys in a tile */
constexpr int panel_bytes = tile_keys * 128; /* 128 rows of 64 elements; queries likewise */

#define LN_2 0.693147180559945309f

struct forward_arguments {
    hpa_geometry geometry;
    hpa_mask mask;
    tensor_rows q, k, v, out, lse;
    int64_t tiles; /* of queries */
    int tiles_per_block;
    int boxes; /* blocks of keys in a tile of keys */
    int block_k;
    float scale_log2; /* of the scores, for powers of 2 */
};

/* A tile's queries, and the key blocks that they keep. */
struct tile_view {
    query_tile queries;
    const int32_t *blocks; /* ascending */
    int length;            /* kept blocks */
    int key_tiles;
    bool found;
};

template <int head_dim> struct shared_memory {
    static constexpr int stages = head_dim == 128 ? 2 : 4;
    static constexpr int operand_bytes = head_dim / HPA_TMA_COLUMNS * panel_bytes;
    alignas(1024) unsigned char q[operand_bytes];
    alignas(1024) unsigned char k[stages][operand_bytes];
    alignas(1024) unsigned char v[stages][operand_bytes];
    uint64_t q_full, q_empty;
    uint64_t k_full[stages], k_empty[stages], v_full[stages], v_empty[stages];
    int32_t key_of_box[2 * stages][most_boxes]; /* first key of each box; -1: no block */
    tile_view tiles[2][2];                      /* of each warpgroup, this one and the one before */
};

__device__ __forceinline__ void find_tile(const forward_arguments &x, int64_t work, tile_view *t)
{
    const hpa_geometry &g = x.geometry;
    t->found = find_query_tile(g, x.mask, work, x.tiles_per_block, tile_queries, &t->queries);
    t->length = t->key_tiles = 0;
    if (!t->found)
        return;
    const int64_t row = t->queries.mask_row;
    t->blocks = x.mask.row_blocks + row * g.capacity;
    t->length = max(0, min(x.mask.row_length[row], (int)g.capacity));
    t->key_tiles = (t->length + x.boxes - 1) / x.boxes;
}

/* Position in a ring of stages. */
template <int stages> struct ring {
    int stage = 0;
    uint32_t phase = 0;
    /* Keys are fetched ahead of values, so their boxes' names live for two rounds. */
    __device__ __forceinline__ int names() const
    {
        return stage + (int)phase * stages;
    }
    __device__ __forceinline__ void advance()
    {
        if (++stage == stages) {
            stage = 0;
            phase ^= 1;
        }
    }
};

/* The producer: one thread. */

/* Packed tensors have no batch. */
__device__ __forceinline__ int map_batch(const forward_arguments &x, const tile_view &t)
{
    return x.geometry.packed ? 0 : (int)t.queries.sequence.batch;
}

template <int head_dim>
__device__ void fetch_queries(const forward_arguments &x, shared_memory<head_dim> &shared,
                              const CUtensorMap *map, const tile_view &t)
{
    barrier_arrive_expect(&shared.q_full, shared.operand_bytes);
    for (int panel = 0; panel < head_dim / HPA_TMA_COLUMNS; panel++)
        tma_load(shared.q + panel * panel_bytes, map, &shared.q_full, panel * HPA_TMA_COLUMNS,
                 (int)(t.queries.sequence.q_start + t.queries.begin), (int)t.queries.head,
                 map_batch(x, t));
}

/* Boxes of one tile of K or V. A box without a block repeats the first: its scores are hidden, and
 * what is read is finite when the row's own keys are. */
template <int head_dim>
__device__ void fetch_keys(const forward_arguments &x, unsigned char *operand,
                           const CUtensorMap *map, uint64_t *full, const tile_view &t,
                           const int32_t *key_of_box)
{
    const int kv_head = (int)(t.queries.head / x.geometry.group);
    const int kv_start = (int)t.queries.sequence.kv_start;
    barrier_arrive_expect(full, shared_memory<head_dim>::operand_bytes);
    for (int box = 0; box < x.boxes; box++) {
        const int key = key_of_box[box] < 0 ? key_of_box[0] : key_of_box[box];
        for (int panel = 0; panel < head_dim / HPA_TMA_COLUMNS; panel++)
            tma_load(operand + panel * panel_bytes + box * x.block_k * 128, map, full,
                     panel * HPA_TMA_COLUMNS, kv_start + key, kv_head, map_batch(x, t));
    }
}

/* Tile n from the end of the list; the first tile takes what the others leave over. */
__device__ __forceinline__ void name_boxes(const forward_arguments &x, const tile_view &t, int n,
                                           int32_t *key_of_box)
{
    const int left_over = t.length - (t.key_tiles - 1) * x.boxes;
    const int count = n == 0 ? left_over : x.boxes;
    const int32_t *blocks = t.blocks + t.length - left_over - n * x.boxes;
    for (int box = 0; box < x.boxes; box++)
        key_of_box[box] = box < count ? blocks[box] * x.block_k : -1;
}

template <int head_dim>
__device__ void produce(const forward_arguments &x, shared_memory<head_dim> &shared,
                        const CUtensorMap *q_map, const CUtensorMap *k_map,
                        const CUtensorMap *v_map)
{
    ring<shared_memory<head_dim>::stages> k_at, v_at;
    uint32_t q_phase = 0;
    for (int64_t work = blockIdx.x; work < x.tiles; work += gridDim.x) {
        tile_view t;
        find_tile(x, work, &t);
        if (t.length == 0)
            continue;
        barrier_wait(&shared.q_empty, q_phase ^ 1);
        fetch_queries<head_dim>(x, shared, q_map, t);
        q_phase ^= 1;
        for (int n = 0; n <= t.key_tiles; n++) {
            if (n < t.key_tiles) {
                barrier_wait(&shared.k_empty[k_at.stage], k_at.phase ^ 1);
                name_boxes(x, t, n, shared.key_of_box[k_at.names()]);
                fetch_keys<head_dim>(x, shared.k[k_at.stage], k_map, &shared.k_full[k_at.stage], t,
                                     shared.key_of_box[k_at.names()]);
                k_at.advance();
            }
            if (n > 0) {
                barrier_wait(&shared.v_empty[v_at.stage], v_at.phase ^ 1);
                fetch_keys<head_dim>(x, shared.v[v_at.stage], v_map, &shared.v_full[v_at.stage], t,
                                     shared.key_of_box[v_at.names()]);
                v_at.advance();
            }
        }
    }
}

/* The consumers: a warpgroup each. A thread has row_in_tile and the row 8 below it. */

/* This warp has read what the barrier guards. */
__device__ __forceinline__ void release(uint64_t *barrier)
{
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        barrier_arrive(barrier);
}

/* Barriers 4 and 5 are those of a warpgroup alone. */
__device__ __forceinline__ void await_group()
{
    asm volatile("bar.sync %0, 128;" ::"r"(3 + threadIdx.x / 128) : "memory");
}

/* The two warpgroups begin their products in turns, so that one's exponentials run under the
 * other's products. */
__device__ __forceinline__ void await_turn(int group)
{
    asm volatile("bar.sync %0, 256;" ::"r"(2 + group) : "memory");
}

__device__ __forceinline__ void pass_turn(int group)
{
    asm volatile("bar.arrive %0, 256;" ::"r"(3 - group) : "memory");
}

template <int head_dim> struct sums {
    float o[head_dim / 2]; /* head_dim columns of 64 rows over 128 threads */
    float highest[2];      /* of this thread's two rows, scaled to base 2 */
    float total[2];        /* this thread's share of the sum of weights */
    bool not_finite;       /* this thread saw such a value in a tile with hidden pairs */
};

/* S = Q K^T, begun and not waited for. */
template <typename T, int head_dim>
__device__ __forceinline__ void begin_scores(float (&s)[64], uint32_t q, uint32_t k)
{
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < head_dim / 16; step++) {
        const uint32_t at = step / 4 * panel_bytes + step % 4 * 32;
        wgmma_abt<T>(s, wgmma_panel(q + at, 0), wgmma_panel(k + at, 0), step > 0);
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
        wgmma_ab<T>(o, p[step], wgmma_panel(v + step * 16 * 128, panel_bytes));
    wgmma_commit();
}

/* The key in a column of the tile; one past every key where there is no block. */
__device__ __forceinline__ int key_of_column(const forward_arguments &x, const int32_t *key_of_box,
                                             int column)
{
    const int first = key_of_box[column / x.block_k];
    return first < 0 ? INT_MAX - 1 : first + column % x.block_k;
}

/* Hides what causality, the sequence's end and missing blocks forbid. */
__device__ __forceinline__ void hide_scores(const forward_arguments &x, float (&s)[64],
                                            const int32_t *key_of_box, const int (&last_key)[2])
{
#pragma unroll
    for (int n = 0; n < 16; n++) {
        const int key = key_of_column(x, key_of_box, n * 8 + (int)threadIdx.x % 4 * 2);
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (key + i % 2 > last_key[i / 2])
                s[4 * n + i] = -INFINITY;
    }
}

/* Whether some score of the tile must be hidden from the warpgroup's first query. */
__device__ __forceinline__ bool must_hide(const forward_arguments &x, const int32_t *key_of_box,
                                          int first_last_key)
{
    const int last_box = key_of_box[x.boxes - 1];
    return last_box < 0 || last_box + x.block_k - 1 > first_last_key;
}

/* s becomes weights; highest and total go on; rescale is what older sums are to be multiplied by. */
template <int head_dim>
__device__ __forceinline__ void online_softmax(float (&s)[64], sums<head_dim> &a,
                                               float (&rescale)[2], float scale_log2)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float highest = s[2 * r];
#pragma unroll
        for (int n = 0; n < 16; n++)
            highest = fmaxf(highest, fmaxf(s[4 * n + 2 * r], s[4 * n + 2 * r + 1]));
        highest = fmaxf(a.highest[r], lanes_max<4>(highest) * scale_log2);
        /* A row that has seen no key yet: exp2(-inf - 0) is 0, where -inf - -inf would be NaN. */
        const float shift = highest == -INFINITY ? 0.f : highest;
        rescale[r] = exp2_fast(a.highest[r] - shift);
        a.highest[r] = highest;
        float total = 0;
#pragma unroll
        for (int n = 0; n < 16; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float &score = s[4 * n + 2 * r + i];
                score = exp2_fast(fmaf(score, scale_log2, -shift));
                total += score;
            }
        a.total[r] = a.total[r] * rescale[r] + total;
    }
}

/* The weights as the left operand of P V. */
template <typename T>
__device__ __forceinline__ void pack_weights(uint32_t (&p)[8][4], const float (&s)[64])
{
#pragma unroll
    for (int step = 0; step < 8; step++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            p[step][i] = pack<T>(s[8 * step + 2 * i], s[8 * step + 2 * i + 1]);
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
                                      const int32_t *key_of_box, int kv_length)
{
    const int thread = threadIdx.x % 128;
    for (int row = 0; row < tile_keys; row++) {
        const int first = key_of_box[row / x.block_k];
        const int key = (first < 0 ? key_of_box[0] : first) + row % x.block_k;
        if (key >= kv_length && thread < head_dim / 8)
            *reinterpret_cast<uint4 *>(v + thread / 8 * panel_bytes + row * 128 + thread % 8 * 16) =
                make_uint4(0, 0, 0, 0);
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    await_group();
}

/* Does this thread's row of a tile of V hold an element that is not finite? */
template <typename T, int head_dim>
__device__ __forceinline__ bool share_is_not_finite(const unsigned char *v)
{
    const int row = threadIdx.x % 128;
    bool found = false;
#pragma unroll
    for (int n = 0; n < head_dim / 8; n++) {
        const uint4 chunk = *reinterpret_cast<const uint4 *>(v + n / 8 * panel_bytes + row * 128 +
                                                             (n + row) % 8 * 16);
        found |= finite_or_zero<T>(chunk.x) != chunk.x || finite_or_zero<T>(chunk.y) != chunk.y ||
                 finite_or_zero<T>(chunk.z) != chunk.z || finite_or_zero<T>(chunk.w) != chunk.w;
    }
    return found;
}

/* One row by one warp, from global memory, key by key: a weight of 0 in a product of tiles does not
 * keep a NaN away from a row that does not see its key, so a tile that met one is done again so. */
template <typename T, int head_dim>
__device__ void attend_row(const forward_arguments &x, const tile_view &t, int64_t query)
{
    constexpr int share = head_dim / 32; /* columns of a lane */
    const hpa_sequence &s = t.queries.sequence;
    const int lane = threadIdx.x % 32;
    const int64_t head = t.queries.head, kv_head = head / x.geometry.group;
    const T *q = row_at<const T>(x.q, s.batch, head, s.q_start, query) + lane * share;
    const int64_t visible = visible_keys(x.geometry, s, query);
    float o[share] = {}, highest = -INFINITY, total = 0;
    bool sees = false;
    for (int n = 0; n < t.length; n++)
        for (int64_t key = (int64_t)t.blocks[n] * x.block_k;
             key < hpa_min(visible, (int64_t)(t.blocks[n] + 1) * x.block_k); key++) {
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
__device__ void attend_rows(const forward_arguments &x, const tile_view &t, int first_row)
{
    for (int row = first_row; row < first_row + 16; row++)
        if (t.queries.begin + row < t.queries.end)
            attend_row<T, head_dim>(x, t, t.queries.begin + row);
}

/* Does any thread of the warpgroup say so? */
__device__ __forceinline__ bool any_of_group(bool mine)
{
    int any;
    asm volatile("{\n"
                 ".reg .pred mine, all;\n"
                 "setp.ne.b32 mine, %1, 0;\n"
                 "barrier.cta.red.or.pred all, %2, 128, mine;\n"
                 "selp.b32 %0, 1, 0, all;\n"
                 "}\n"
                 : "=r"(any)
                 : "r"((int)mine), "r"(3 + threadIdx.x / 128)
                 : "memory");
    return any;
}

/* What a thread needs to know of the keys that its rows see. */
struct visible_keys_of_thread {
    int last_key[2];    /* of its two rows; -1 or less: none */
    int first_last_key; /* of its warpgroup's first row */
    int keys;           /* that there are */
};

__device__ __forceinline__ visible_keys_of_thread see(const forward_arguments &x,
                                                      const tile_view &t, int row_in_tile)
{
    const hpa_geometry &g = x.geometry;
    const hpa_sequence &s = t.queries.sequence;
    const int64_t query = t.queries.begin + row_in_tile;
    const int64_t first = t.queries.begin + row_in_tile / group_queries * group_queries;
    return {{(int)visible_keys(g, s, query) - 1, (int)visible_keys(g, s, query + 8) - 1},
            (int)visible_keys(g, s, first) - 1,
            (int)s.kv_length};
}

/* A row without weights sees no key, so O = 0 and lse = -inf; or else its scores are all -inf, which
 * takes infinities in q or k, and it is NaN. */
template <typename T, int head_dim>
__device__ void write_tile(const forward_arguments &x, const tile_view &t, const sums<head_dim> &a,
                           const visible_keys_of_thread &seen, int row_in_tile)
{
    const int pair = threadIdx.x % 4 * 2;
    const query_tile &tile = t.queries;
    const hpa_sequence &s = tile.sequence;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int64_t query = tile.begin + row_in_tile + 8 * r;
        const float total = lanes_sum<4>(a.total[r]);
        if (query >= tile.end)
            continue;
        const bool sees = t.length > 0 && t.blocks[0] * x.block_k <= seen.last_key[r];
        const float inverse = !sees ? 0 : total == 0 ? NAN : 1 / total;
        T *out = row_at<T>(x.out, s.batch, tile.head, s.q_start, query);
#pragma unroll
        for (int n = 0; n < head_dim / 8; n++)
            *reinterpret_cast<uint32_t *>(out + 8 * n + pair) =
                pack<T>(a.o[4 * n + 2 * r] * inverse, a.o[4 * n + 2 * r + 1] * inverse);
        if (pair == 0)
            *row_at<float>(x.lse, s.batch, tile.head, s.q_start, query) =
                !sees        ? -INFINITY
                : total == 0 ? NAN
                             : (a.highest[r] + log2f(total)) * LN_2;
    }
}

/* One tile: the scores of key tile n + 1 are under way while key tile n is weighed and added. */
template <typename T, int head_dim>
__device__ __forceinline__ void attend(const forward_arguments &x, shared_memory<head_dim> &shared,
                                       ring<shared_memory<head_dim>::stages> &at, int key_tiles,
                                       sums<head_dim> &a, const visible_keys_of_thread &seen,
                                       int group)
{
    using position_in_ring = ring<shared_memory<head_dim>::stages>;
    const uint32_t q = shared_address(shared.q) + group * group_queries * 128;
    float s[64], rescale[2];
    uint32_t p[8][4];
    bool hidden; /* some pairs of the tile that was weighed last */

    auto weigh = [&](const position_in_ring &now) {
        const int32_t *key_of_box = shared.key_of_box[now.names()];
        hidden = must_hide(x, key_of_box, seen.first_last_key);
        if (hidden)
            hide_scores(x, s, key_of_box, seen.last_key);
        online_softmax<head_dim>(s, a, rescale, x.scale_log2);
    };
    auto await_values = [&](const position_in_ring &now) {
        unsigned char *v = shared.v[now.stage];
        const int32_t *key_of_box = shared.key_of_box[now.names()];
        barrier_wait(&shared.v_full[now.stage], now.phase);
        if (!hidden)
            return;
        const int last_box = key_of_box[x.boxes - 1];
        if (group == 0 && (last_box < 0 || last_box + x.block_k > seen.keys))
            clear_values_past_end<head_dim>(x, v, key_of_box, seen.keys);
        a.not_finite |= share_is_not_finite<T, head_dim>(v);
    };

    barrier_wait(&shared.k_full[at.stage], at.phase);
    begin_scores<T, head_dim>(s, q, shared_address(shared.k[at.stage]));
    wgmma_wait<0>();
    wgmma_hold(s);
    release(&shared.k_empty[at.stage]);
    weigh(at);
    pack_weights<T>(p, s);
    for (int n = 1; n < key_tiles; n++) {
        const position_in_ring before = at;
        at.advance();
        barrier_wait(&shared.k_full[at.stage], at.phase);
        await_turn(group);
        begin_scores<T, head_dim>(s, q, shared_address(shared.k[at.stage]));
        rescale_rows(a.o, rescale);
        await_values(before);
        begin_values<T, head_dim>(a.o, p, shared_address(shared.v[before.stage]));
        pass_turn(group);
        wgmma_wait<1>();
        wgmma_hold(s);
        release(&shared.k_empty[at.stage]);
        weigh(at);
        wgmma_wait<0>();
        wgmma_hold(a.o);
        release(&shared.v_empty[before.stage]);
        pack_weights<T>(p, s);
    }
    release(&shared.q_empty);
    rescale_rows(a.o, rescale);
    if (key_tiles == 1) /* the tile that reaches past the end has had no turn yet */
        await_turn(group);
    await_values(at);
    begin_values<T, head_dim>(a.o, p, shared_address(shared.v[at.stage]));
    if (key_tiles == 1)
        pass_turn(group);
    wgmma_wait<0>();
    wgmma_hold(a.o);
    release(&shared.v_empty[at.stage]);
    at.advance();
}

template <typename T, int head_dim>
__device__ void consume(const forward_arguments &x, shared_memory<head_dim> &shared)
{
    const int thread = threadIdx.x - 128, group = thread / 128;
    const int row_in_tile = thread / 32 * 16 + thread % 32 / 4;
    ring<shared_memory<head_dim>::stages> at;
    uint32_t q_phase = 0;
    if (group == 1)
        pass_turn(group);
    int turn = 0;
    for (int64_t work = blockIdx.x; work < x.tiles; work += gridDim.x, turn ^= 1) {
        tile_view &t = shared.tiles[turn][group]; /* shared, to leave the registers to the sums */
        if (thread % 128 == 0)
            find_tile(x, work, &t);
        await_group();
        if (!t.found)
            continue;
        const visible_keys_of_thread seen = see(x, t, row_in_tile);
        sums<head_dim> a;
#pragma unroll
        for (int i = 0; i < head_dim / 2; i++)
            a.o[i] = 0;
        a.highest[0] = a.highest[1] = -INFINITY;
        a.total[0] = a.total[1] = 0;
        a.not_finite = false;
        if (t.length > 0) {
            barrier_wait(&shared.q_full, q_phase);
            q_phase ^= 1;
            attend<T, head_dim>(x, shared, at, t.key_tiles, a, seen, group);
        }
        if (any_of_group(a.not_finite))
            attend_rows<T, head_dim>(x, t, thread / 32 * 16);
        else
            write_tile<T, head_dim>(x, t, a, seen, row_in_tile);
    }
}

template <int head_dim> __device__ void init_barriers(shared_memory<head_dim> &shared)
{
    barrier_init(&shared.q_full, 1);
    barrier_init(&shared.q_empty, consumer_warps);
    for (int stage = 0; stage < shared.stages; stage++) {
        barrier_init(&shared.k_full[stage], 1);
        barrier_init(&shared.v_full[stage], 1);
        barrier_init(&shared.k_empty[stage], consumer_warps);
        barrier_init(&shared.v_empty[stage], consumer_warps);
    }
    barrier_init_fence();
}

template <typename T, int head_dim>
__global__ void __launch_bounds__(threads, 1)
    forward_sm90_kernel(const __grid_constant__ forward_arguments x,
                        const __grid_constant__ CUtensorMap q_map,
                        const __grid_constant__ CUtensorMap k_map,
                        const __grid_constant__ CUtensorMap v_map)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ unsigned char raw[];
    auto &shared = *reinterpret_cast<shared_memory<head_dim> *>(
        (reinterpret_cast<uintptr_t>(raw) + 1023) / 1024 * 1024);
    if (threadIdx.x == 0)
        init_barriers<head_dim>(shared);
    __syncthreads();
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == 0)
            produce<head_dim>(x, shared, &q_map, &k_map, &v_map);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        consume<T, head_dim>(x, shared);
    }
#endif
}

size_t forward_sm90_scratch(const hpa_plan *plan)
{
    (void)plan;
    return 0;
}

/* The copy engine walks strides of whole 16 bytes above 0, and the results are written in pairs. */
bool can_be_copied(const hpa_tensor *tensor)
{
    bool can = rows_are_aligned(tensor);
    for (int32_t n = 0; n < tensor->ndim - 1; n++)
        can &= tensor->shape[n] <= 1 || tensor->stride[n] > 0;
    return can;
}

/* Tensors that the copy engine cannot walk go to the kernel of the older architectures. */
template <typename T, int head_dim>
hpa_status launch_forward_sm90(const hpa_plan *plan, const void *mask, const hpa_inputs *in,
                               const hpa_outputs *out, const hpa_exec *exec, const char *name,
                               const hpa_forward_kernel *otherwise)
{
    if (!can_be_copied(&in->q) || !can_be_copied(&in->k) || !can_be_copied(&in->v) ||
        !rows_are_aligned(&out->out))
        return otherwise->run(plan, mask, in, out, exec);
    const hpa_geometry *g = &plan->geometry;
    const int tiles_per_block = (int)(g->block_q / tile_queries);
    const forward_arguments x = {*g,
                                 hpa_mask_view_const(g, mask),
                                 rows_of(&in->q, g->packed),
                                 rows_of(&in->k, g->packed),
                                 rows_of(&in->v, g->packed),
                                 rows_of(&out->out, g->packed),
                                 rows_of(&out->lse, g->packed),
                                 g->heads_q * g->row_slots * tiles_per_block,
                                 tiles_per_block,
                                 tile_keys / (int)g->block_k,
                                 (int)g->block_k,
                                 scale_log2_of(g)};
    if (x.tiles == 0 || g->total_q == 0)
        return HPA_OK;
    if (g->total_kv == 0) /* no key to describe a tensor map of */
        return otherwise->run(plan, mask, in, out, exec);
    CUtensorMap q_map, k_map, v_map;
    HPA_TRY(hpa_tma_map_of(&q_map, "in.q", &in->q, g->packed, tile_queries));
    HPA_TRY(hpa_tma_map_of(&k_map, "in.k", &in->k, g->packed, (uint32_t)g->block_k));
    HPA_TRY(hpa_tma_map_of(&v_map, "in.v", &in->v, g->packed, (uint32_t)g->block_k));
    int32_t before;
    HPA_TRY(hpa_cuda_enter(plan->cuda.id, &before));
    return hpa_cuda_leave(
        before, hpa_cuda_launch(name, forward_sm90_kernel<T, head_dim>,
                                dim3((unsigned)hpa_min(x.tiles, plan->cuda.multiprocessors)),
                                dim3(threads), sizeof(shared_memory<head_dim>) + 1024,
                                hpa_cuda_stream(exec), x, q_map, k_map, v_map));
}

} // namespace

#define DEFINE_KERNEL(dtype, name, type, head_dim)                                          \
    static hpa_status run_##name##_##head_dim(const hpa_plan *plan, const void *mask,       \
                                              const hpa_inputs *in, const hpa_outputs *out, \
                                              const hpa_exec *exec)                         \
    {                                                                                       \
        return launch_forward_sm90<type, head_dim>(plan, mask, in, out, exec,               \
                                                   "forward_sm90_" #name "_" #head_dim,     \
                                                   &hpa_forward_mma_##name##_##head_dim);   \
    }                                                                                       \
    extern "C" const hpa_forward_kernel hpa_forward_sm90_##name##_##head_dim = {            \
        "forward_sm90_" #name "_" #head_dim, forward_sm90_scratch, run_##name##_##head_dim};
HPA_SM90_INSTANCES(DEFINE_KERNEL)
