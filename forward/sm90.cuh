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
constexpr int consumer_threads = 256;
constexpr int consumer_warps = consumer_threads / 32;
constexpr int fetching_warps = 2; /* of the other four */
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

} // namespace
#endif
