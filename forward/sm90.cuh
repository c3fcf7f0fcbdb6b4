/* What the warps of the Hopper forward share: a thread block's arguments, its tiles, its shared memory. */
#ifndef HPA_FORWARD_SM90_CUH
#define HPA_FORWARD_SM90_CUH

#include "core/cuda/tiling.h"
#include "core/cuda/warpgroup.cuh"

namespace
{

constexpr int tile_queries = 128;
constexpr int tile_keys = 128;
constexpr int group_queries = 64; /* of one warpgroup */
constexpr int groups = tile_queries / group_queries;

/* A warpgroup has 64 queries of a tile and, with head_dim 64, half of its keys: then there are as many
 * weights for half the products, and twice the warps hide what each of them waits for. */
template <int head_dim> constexpr int key_shares = head_dim == 64 ? 2 : 1;
template <int head_dim> constexpr int share_keys = tile_keys / key_shares<head_dim>;
template <int head_dim> constexpr int consumer_warps = tile_queries / 16 * key_shares<head_dim>;
constexpr int fetching_warps = 3; /* of the other four */
template <int head_dim> constexpr int threads = 128 + 32 * consumer_warps<head_dim>;

constexpr int query_panel_bytes = group_queries * 128; /* rows of 64 elements */
constexpr int key_panel_bytes = tile_keys * 128;
constexpr int most_boxes = tile_keys / 16; /* blocks of keys in a tile */
constexpr int jobs = 4; /* tiles of queries: the one before, this one and the next ones */

#define LN_2 0.693147180559945309f
#define MOST_WEIGHT 16384.f /* in a thread's share of a row: more, and shift is looked for */
#define LEAST_SUM .0625f    /* of a row's first weights: less, and a shift of 0 will not do */

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
    int first_key;    /* that the list holds; INT_MAX: none */
    bool ends;        /* the first of those holds rows past the last key */
    int rows;         /* queries */
    int first_sees;   /* keys that the first query sees, before the limit of ... */
    int keys;         /* ... how many there are */
    int q_token, kv_token, head, kv_head, batch; /* in the tensors */
};

/* What a warpgroup with the second share of the keys hands over to the one with the first. */
struct partial_sums {
    float o[32][128], shift[2][128], total[2][128]; /* of 128 threads */
    bool not_finite[128];
};

template <int shares> struct partial_places {
    partial_sums of_half[groups]; /* of the queries */
    uint64_t empty[groups];
};
template <> struct partial_places<1> {
};

template <int head_dim> struct shared_memory {
    static constexpr int stages = head_dim == 128 ? 3 : 4; /* of keys and of values */
    static constexpr int q_stages = head_dim == 128 ? 1 : 2;
    static constexpr int operand_bytes = tile_keys * head_dim * 2;
    alignas(1024) unsigned char q[q_stages][groups][operand_bytes / groups];
    alignas(1024) unsigned char k[stages][operand_bytes];
    alignas(1024) unsigned char v[stages][operand_bytes];
    uint64_t q_full[q_stages][groups], q_empty[q_stages][groups];
    uint64_t k_full[stages], k_empty[stages], v_full[stages], v_empty[stages];
    uint64_t job_full[jobs], job_empty[jobs];
    int32_t key_of_box[2 * stages][most_boxes]; /* first key of each box; -1: no block */
    tile_job job[jobs];
    partial_places<key_shares<head_dim>> partial;
};

/* Keys are fetched ahead of values, so their boxes' names live for two rounds of the ring. */
template <int head_dim>
__device__ __forceinline__ int32_t *names_at(shared_memory<head_dim> &shared,
                                             const stage_ring<shared_memory<head_dim>::stages> &at)
{
    return shared.key_of_box[at.stage + (int)at.phase * shared.stages];
}

} // namespace
#endif
