/* How a block of queries meets the keys that its row keeps: tile by tile, two in shared memory at a
 * time, each of `keys` keys and their values. */
#ifndef HPA_CORE_CUDA_KEY_STREAM_CUH
#define HPA_CORE_CUDA_KEY_STREAM_CUH

#include "core/cuda/rows.cuh"
#include "core/cuda/tiling.h"
#include "core/cuda/visible.cuh"

/* What a thread block finds out once about its queries; in shared memory, which leaves the registers
 * to the sums. */
struct query_work {
    query_tile tile;
    block_list list;
};

/* Finds the work of this thread block; false where there is none. Every thread calls. */
__device__ __forceinline__ bool claim_queries(query_work *work, const hpa_geometry &g,
                                              const hpa_mask &m, int tiles_per_block,
                                              int queries_per_tile)
{
    if (threadIdx.x == 0) {
        if (find_query_tile(g, m, work_index(), tiles_per_block, queries_per_tile, &work->tile))
            work->list = row_list(g, m, work->tile.sequence, work->tile.mask_row);
        else
            work->tile.begin = work->tile.end = 0;
    }
    __syncthreads();
    return work->tile.begin < work->tile.end;
}

template <typename T, int D, int keys> struct key_stream {
    static constexpr int parts = keys / PART_TOKENS;
    static constexpr int tile_bytes = keys * tile_row_bytes<D>;
    static constexpr size_t shared_bytes = 4 * tile_bytes + sizeof(gather_ring<parts>);

    const block_list &list;
    gather_ring<parts> *ring;
    uint32_t tiles; /* k, v, k, v */
    const T *k, *v; /* of the key/value head and sequence */
    int64_t k_stride, v_stride;
    int32_t length; /* keys of the sequence */
    int32_t tile_count;
};

template <typename T, int D, int keys>
__device__ __forceinline__ uint32_t keys_at(const key_stream<T, D, keys> &stream, int32_t t)
{
    return stream.tiles + t % 2 * (2 * stream.tile_bytes);
}

template <typename T, int D, int keys>
__device__ __forceinline__ uint32_t values_at(const key_stream<T, D, keys> &stream, int32_t t)
{
    return keys_at(stream, t) + stream.tile_bytes;
}

/* First keys of the parts of tile t. */
template <typename T, int D, int keys>
__device__ __forceinline__ const int32_t *parts_at(const key_stream<T, D, keys> &stream, int32_t t)
{
    return stream.ring->first[t % GATHER_SLOTS];
}

template <typename T, int D, int keys>
__device__ __forceinline__ void copy_keys(const key_stream<T, D, keys> &stream, int32_t t)
{
    if (t < stream.tile_count)
        copy_gathered<D, stream.parts>(keys_at(stream, t), values_at(stream, t), stream.k,
                                       stream.k_stride, stream.v, stream.v_stride,
                                       parts_at(stream, t), stream.length);
}

/* A stream over the work's list. shared: shared_bytes of shared memory. */
template <typename T, int D, int keys>
__device__ __forceinline__ key_stream<T, D, keys>
open_stream(const query_work &work, const hpa_geometry &g, const tensor_rows &k,
            const tensor_rows &v, unsigned char *shared)
{
    using stream = key_stream<T, D, keys>;
    const hpa_sequence &s = work.tile.sequence;
    const int64_t kv_head = work.tile.head / g.group;
    return {work.list,
            reinterpret_cast<gather_ring<stream::parts> *>(shared + 4 * stream::tile_bytes),
            shared_address(shared),
            row_at<const T>(k, s.batch, kv_head, s.kv_start, 0),
            row_at<const T>(v, s.batch, kv_head, s.kv_start, 0),
            k.strides.token,
            v.strides.token,
            (int32_t)s.kv_length,
            gather_tiles<stream::parts>(work.list)};
}

/* Starts the first entries, and ... */
template <typename T, int D, int keys>
__device__ __forceinline__ void begin_stream(const key_stream<T, D, keys> &stream)
{
    for (int32_t t = 0; t < 3; t++)
        begin_entries(stream.ring, stream.list, t);
}

/* ... once they and every other copy begun so far are there, the first keys. */
template <typename T, int D, int keys>
__device__ __forceinline__ void begin_keys(const key_stream<T, D, keys> &stream)
{
    copy_async_wait();
    find_parts(stream.ring, stream.list, 0);
    find_parts(stream.ring, stream.list, 1);
    __syncthreads();
    copy_keys(stream, 0);
}

/* Tile t is there, tile t + 1 is on its way. */
template <typename T, int D, int keys>
__device__ __forceinline__ void next_keys(const key_stream<T, D, keys> &stream, int32_t t)
{
    copy_async_wait();
    __syncthreads();
    find_parts(stream.ring, stream.list, t + 2);
    begin_entries(stream.ring, stream.list, t + 3);
    copy_keys(stream, t + 1);
}

/* What the queries of a tile see. */
struct query_sight {
    int32_t all_see;     /* keys that every query of the tile sees */
    int32_t some_see;    /* keys that some query of the warp sees */
    visible_range range; /* keys that the queries of the lane see */
};

/* warp_query: the warp's first query, counted from the tile's. */
__device__ __forceinline__ query_sight sight_of(const hpa_geometry &g, const query_tile &tile,
                                                int warp_query, int warp_queries)
{
    const hpa_sequence &s = tile.sequence;
    const int64_t first = tile.begin + warp_query, of_lane = first + threadIdx.x % 32 / 4;
    return {(int32_t)visible_keys(g, s, tile.begin),
            (int32_t)visible_keys(g, s, first + warp_queries - 1),
            {(int32_t)(hpa_key_position(&s, of_lane) + 1), (int32_t)s.kv_length, g.causal}};
}

#endif
