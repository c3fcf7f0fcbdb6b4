/* Tiles that are gathered from the blocks on a list.
 *
 * A tile is made of parts of 16 tokens, so that blocks of any multiple of 16 tokens fill it. What
 * the list says travels ahead of the tokens: while tile t is multiplied, the tokens of tile t + 1
 * and the list entries of tile t + 3 are on their way. Lists come from the caller's memory: an entry
 * that names no block becomes a part without tokens. */
#ifndef HPA_CORE_CUDA_GATHER_CUH
#define HPA_CORE_CUDA_GATHER_CUH

#include "core/cuda/copy.cuh"

#define PART_TOKENS 16
#define NO_TOKEN (1 << 30) /* first token of a part that is empty: past every length */
#define GATHER_SLOTS 4

template <int parts> struct gather_ring {
    int32_t block[GATHER_SLOTS][parts]; /* list entries, as they arrive */
    int32_t first[GATHER_SLOTS][parts]; /* first token of each part */
};

/* The kept key blocks of one mask row. */
struct block_list {
    const int32_t *blocks;
    int32_t length;      /* entries */
    int32_t part_shift;  /* log2 of parts in a block */
    int32_t block_count; /* entries are 0 ... block_count - 1 */
};

/* begin_entries for tiles 0, 1 and 2, then once a tile; every thread of the block calls. */
template <int parts>
__device__ __forceinline__ void begin_entries(gather_ring<parts> *ring, const block_list &list,
                                              int32_t tile)
{
    if (threadIdx.x >= parts)
        return;
    const int32_t entry = (tile * parts + (int32_t)threadIdx.x) >> list.part_shift;
    const bool exists = entry < list.length;
    copy_async_4(shared_address(&ring->block[tile % GATHER_SLOTS][threadIdx.x]),
                 list.blocks + (exists ? entry : 0), exists);
}

/* Once the entries of a tile have arrived: what its parts begin with. */
template <int parts>
__device__ __forceinline__ void find_parts(gather_ring<parts> *ring, const block_list &list,
                                           int32_t tile)
{
    if (threadIdx.x >= parts)
        return;
    const int32_t part = tile * parts + (int32_t)threadIdx.x;
    const int32_t block = ring->block[tile % GATHER_SLOTS][threadIdx.x];
    const bool exists =
        part >> list.part_shift < list.length && block >= 0 && block < list.block_count;
    const int32_t inside = part & ((1 << list.part_shift) - 1);
    ring->first[tile % GATHER_SLOTS][threadIdx.x] =
        exists ? ((block << list.part_shift) + inside) * PART_TOKENS : NO_TOKEN;
}

template <int parts> __device__ __forceinline__ int32_t gather_tiles(const block_list &list)
{
    return (int32_t)hpa_ceil_div((int64_t)list.length << list.part_shift, parts);
}

/* The tokens of a tile, from two tensors with the same tokens. */
template <int D, int parts, typename T>
__device__ __forceinline__ void copy_gathered(uint32_t tile_a, uint32_t tile_b, const T *a,
                                              int64_t a_stride, const T *b, int64_t b_stride,
                                              const int32_t *first, int32_t length)
{
    constexpr int units = D / 8;
#pragma unroll 4
    for (int i = (int)threadIdx.x; i < parts * PART_TOKENS * units; i += (int)blockDim.x) {
        const int row = i / units, unit = i % units;
        const int32_t token = first[row / PART_TOKENS] + row % PART_TOKENS;
        const bool exists = token < length;
        const int64_t from = exists ? token : 0;
        const uint32_t to = row * tile_row_bytes<D> + unit * 16;
        copy_async_16(tile_a + to, a + from * a_stride + unit * 8, exists);
        copy_async_16(tile_b + to, b + from * b_stride + unit * 8, exists);
    }
}

#endif
