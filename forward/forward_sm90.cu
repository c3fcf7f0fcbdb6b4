/* The forward pass on Hopper: f16 and bf16, head_dim 64 and 128, block_q 128 and 256.
 *
 * A tile is 128 queries of one head. Blocks of threads stay and take tile after tile. In each, one
 * warp plans: it finds the next tile and writes down what the others need to know of it. One warp
 * fetches: it walks the row's list of kept blocks from its end, 128 keys at a time (128 / block_k
 * blocks, one box each), into a ring of stages. Two warpgroups of 64 queries each take them out:
 *
 *     S = Q K^T      P = exp2(S * scale - shift)      O = O + P V
 *
 * with O, S and P in registers. A warpgroup begins S of the next keys before it adds P V of these, and
 * weighs that S while P V is under way. The two begin their products in turns, so that the weighing of
 * one runs under the products of the other.
 *
 * shift is the highest score that a row had when it was last looked for, and it is looked for only when
 * weights come out large: P may reach 2^8, and O is seldom scaled anew.
 *
 * Causality and the sequence's end are looked at only in the first tiles of keys. The list ascends, so
 * that no others can reach past what the first query sees. */
#include "core/cuda/launch.h"
#include "core/cuda/tiling.h"
#include "core/cuda/tma_map.h"
#include "core/cuda/warpgroup.cuh"
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
constexpr int jobs = 2;                      /* tiles of queries: this one and the next */

#define LN_2 0.693147180559945309f
#define MOST_WEIGHT 256.f /* in a thread's share of a row: more, and shift is looked for */

struct forward_arguments {
    hpa_geometry geometry;
    hpa_mask mask;
    tensor_rows q, k, v, out, lse;
    int64_t tiles; /* of queries */
    int tiles_per_block;
    int boxes; /* blocks of keys in a tile of keys */
    int block_k, block_k_log2;
    float scale_log2; /* of the scores, for powers of 2 */
};

/* A tile of queries as the planner describes it. */
struct tile_job {
    int64_t work;          /* its number */
    int64_t out, lse;      /* where its first rows lie, in elements */
    const int32_t *blocks; /* that it keeps, ascending */
    int length;            /* of blocks */
    int key_tiles;         /* 0: it keeps nothing; -1: there are no more tiles */
    int hiding_tiles; /* of these, the first that the fetching warp comes to: not all pairs count */
    bool ends;        /* the first of those holds rows past the last key */
    int rows;         /* queries */
    int first_sees;   /* keys that the first query sees, before the limit of ... */
    int keys;         /* ... how many there are */
    int q_token, kv_token, head, kv_head, batch; /* in the tensors */
};

template <int head_dim> struct shared_memory {
    static constexpr int stages = head_dim == 128 ? 3 : 4; /* of keys and of values */
    static constexpr int q_stages = head_dim == 128 ? 1 : 2;
    static constexpr int operand_bytes = head_dim / HPA_TMA_COLUMNS * panel_bytes;
    alignas(1024) unsigned char q[q_stages][operand_bytes];
    alignas(1024) unsigned char k[stages][operand_bytes];
    alignas(1024) unsigned char v[stages][operand_bytes];
    uint64_t q_full[q_stages], q_empty[q_stages];
    uint64_t k_full[stages], k_empty[stages], v_full[stages], v_empty[stages];
    uint64_t job_full[jobs], job_empty[jobs];
    int32_t key_of_box[2 * stages][most_boxes]; /* first key of each box; -1: no block */
    tile_job job[jobs];
};

/* Keys are fetched ahead of values, so their boxes' names live for two rounds of the ring. */
template <int head_dim>
__device__ __forceinline__ int32_t *names_at(shared_memory<head_dim> &shared,
                                             const stage_ring<shared_memory<head_dim>::stages> &at)
{
    return shared.key_of_box[at.stage + (int)at.phase * shared.stages];
}

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

/* The fetching warp. */

template <int head_dim>
__device__ __forceinline__ void fetch_queries(shared_memory<head_dim> &shared,
                                              const CUtensorMap *map, const tile_job &job,
                                              int stage)
{
    if (threadIdx.x % 32 == 0) {
        barrier_arrive_expect(&shared.q_full[stage], shared.operand_bytes);
        for (int panel = 0; panel < head_dim / HPA_TMA_COLUMNS; panel++)
            tma_load(shared.q[stage] + panel * panel_bytes, map, &shared.q_full[stage],
                     panel * HPA_TMA_COLUMNS, job.q_token, job.head, job.batch);
    }
    __syncwarp();
}

/* Boxes of one tile of K or V; lane n knows the first key of box n. A box without a block repeats the
 * first: its scores are hidden, and what is read is finite when the row's own keys are. */
template <int head_dim>
__device__ __forceinline__ void fetch_keys(const forward_arguments &x, unsigned char *operand,
                                           const CUtensorMap *map, uint64_t *full,
                                           const tile_job &job, int key)
{
    const int lane = threadIdx.x % 32;
    if (lane == 0)
        barrier_arrive_expect(full, shared_memory<head_dim>::operand_bytes);
    const int first = __shfl_sync(0xffffffffu, key, 0);
    for (int box = 0; box < x.boxes; box++) {
        const int of_box = __shfl_sync(0xffffffffu, key, box);
        const int token = job.kv_token + (of_box < 0 ? first : of_box);
        if (lane == 0)
#pragma unroll
            for (int panel = 0; panel < head_dim / HPA_TMA_COLUMNS; panel++)
                tma_load(operand + panel * panel_bytes + box * x.block_k * 128, map, full,
                         panel * HPA_TMA_COLUMNS, token, job.kv_head, job.batch);
    }
    __syncwarp();
}

/* First key of box number lane of tile n from the end of the list, -1 where there is none. The first
 * tile takes what the others leave over. */
__device__ __forceinline__ int find_key(const forward_arguments &x, const tile_job &job, int n)
{
    const int lane = threadIdx.x % 32;
    const int in_first = job.length - (job.key_tiles - 1) * x.boxes;
    const int count = n >= job.key_tiles ? 0 : n == 0 ? in_first : x.boxes;
    if (lane >= count)
        return -1;
    return __ldg(job.blocks + job.length - in_first - n * x.boxes + lane) << x.block_k_log2;
}

template <int head_dim>
__device__ void fetch(const forward_arguments &x, shared_memory<head_dim> &shared,
                      const CUtensorMap *q_map, const CUtensorMap *k_map, const CUtensorMap *v_map)
{
    const int lane = threadIdx.x % 32;
    stage_ring<shared_memory<head_dim>::stages> k_at, v_at;
    stage_ring<shared_memory<head_dim>::q_stages> q_at;
    for (stage_ring<jobs> at;; at.advance()) {
        barrier_wait(&shared.job_full[at.stage], at.phase);
        const tile_job &job = shared.job[at.stage];
        const int key_tiles = job.key_tiles;
        if (key_tiles < 0)
            return;
        int key = find_key(x, job, 0), key_before = -1;
        if (key_tiles > 0) {
            barrier_wait(&shared.q_empty[q_at.stage], q_at.phase ^ 1);
            fetch_queries<head_dim>(shared, q_map, job, q_at.stage);
            q_at.advance();
        }
        for (int n = 0; n <= key_tiles && key_tiles > 0; n++) {
            const int key_after = find_key(x, job, n + 1);
            if (n < key_tiles) {
                barrier_wait(&shared.k_empty[k_at.stage], k_at.phase ^ 1);
                if (lane < x.boxes)
                    names_at<head_dim>(shared, k_at)[lane] = key;
                __syncwarp();
                fetch_keys<head_dim>(x, shared.k[k_at.stage], k_map, &shared.k_full[k_at.stage],
                                     job, key);
                k_at.advance();
            }
            if (n > 0) {
                barrier_wait(&shared.v_empty[v_at.stage], v_at.phase ^ 1);
                fetch_keys<head_dim>(x, shared.v[v_at.stage], v_map, &shared.v_full[v_at.stage],
                                     job, key_before);
                v_at.advance();
            }
            key_before = key;
            key = key_after;
        }
        if (lane == 0)
            barrier_arrive(&shared.job_empty[at.stage]);
    }
}

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

/* The four lanes that share a row hold its columns in pairs; afterwards lane t holds the eight columns
 * of word t of the first four: words are exchanged as the rows and columns of a 4 x 4 matrix. */
__device__ __forceinline__ uint4 gather_columns(const uint32_t (&words)[4])
{
    const bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
    uint32_t half[4];
#pragma unroll
    for (int n = 0; n < 4; n += 2) {
        const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? words[n] : words[n + 1], 1);
        half[n] = odd ? other : words[n];
        half[n + 1] = odd ? words[n + 1] : other;
    }
    uint32_t whole[4];
#pragma unroll
    for (int n = 0; n < 2; n++) {
        const uint32_t other = __shfl_xor_sync(0xffffffffu, upper ? half[n] : half[n + 2], 2);
        whole[n] = upper ? other : half[n];
        whole[n + 2] = upper ? half[n + 2] : other;
    }
    return make_uint4(whole[0], whole[1], whole[2], whole[3]);
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

template <int n>
__device__ __forceinline__ void init_barriers(uint64_t (&barriers)[n], int arrivals)
{
    for (int i = 0; i < n; i++)
        barrier_init(&barriers[i], (uint32_t)arrivals);
}

template <int head_dim> __device__ void init_all_barriers(shared_memory<head_dim> &shared)
{
    init_barriers(shared.q_full, 1);
    init_barriers(shared.q_empty, consumer_warps);
    init_barriers(shared.k_full, 1);
    init_barriers(shared.k_empty, consumer_warps);
    init_barriers(shared.v_full, 1);
    init_barriers(shared.v_empty, consumer_warps);
    init_barriers(shared.job_full, 1);
    init_barriers(shared.job_empty, consumer_warps + 1);
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
    extern __shared__ __align__(1024) unsigned char raw[];
    auto &shared = *reinterpret_cast<shared_memory<head_dim> *>(raw);
    if (threadIdx.x == 0) {
        require_panel_alignment(raw);
        init_all_barriers<head_dim>(shared);
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x / 32 == 0)
            fetch<head_dim>(x, shared, &q_map, &k_map, &v_map);
        else if (threadIdx.x / 32 == 1)
            plan_tiles<head_dim>(x, shared);
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

int log2_of(int64_t power_of_two)
{
    int log2 = 0;
    while ((int64_t)1 << log2 < power_of_two)
        log2++;
    return log2;
}

/* Tensors that the copy engine cannot walk go to the kernel of the older architectures. */
template <typename T, int head_dim>
hpa_status launch_forward_sm90(const hpa_plan *plan, const void *mask, const hpa_inputs *in,
                               const hpa_outputs *out, const hpa_exec *exec, const char *name,
                               const hpa_forward_kernel *otherwise)
{
    if (!hpa_tma_can_copy(&in->q) || !hpa_tma_can_copy(&in->k) || !hpa_tma_can_copy(&in->v) ||
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
                                 log2_of(g->block_k),
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
                                dim3(threads), sizeof(shared_memory<head_dim>),
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
