/* Tensors and sequences as kernels see them. */
#ifndef HPA_CORE_CUDA_ROWS_CUH
#define HPA_CORE_CUDA_ROWS_CUH

#include "core/mask_layout.h"
#include "core/tensor.h"

/* A q, k, v, out, lse or gradient: rows of head_dim elements (one for lse) with any strides. */
struct tensor_rows {
    void *data; /* null: absent */
    hpa_strides strides;
};

static inline tensor_rows rows_of(const hpa_tensor *tensor, bool packed)
{
    return {tensor->data, hpa_strides_of(tensor, packed)};
}

/* Does every row begin at a multiple of 16 bytes, as the wide accesses of the tensor-core kernels need?
 * An absent tensor has no rows. */
static inline bool rows_are_aligned(const hpa_tensor *tensor)
{
    if (!tensor->data)
        return true;
    bool aligned = (uintptr_t)tensor->data % 16 == 0;
    for (int32_t n = 0; n < tensor->ndim - 1; n++)
        aligned &= tensor->shape[n] <= 1 ||
                   tensor->stride[n] * (int64_t)hpa_dtype_size(tensor->dtype) % 16 == 0;
    return aligned;
}

/* First element of row (head, token) of a sequence whose first row is start. */
template <typename T>
__device__ __forceinline__ T *row_at(const tensor_rows &rows, int64_t batch, int64_t head,
                                     int64_t start, int64_t token)
{
    return static_cast<T *>(rows.data) + hpa_offset(&rows.strides, batch, head, start, token);
}

/* The sequence, from the lengths that the mask carries. Lengths that could lead out of the tensors
 * or of the mask, which no mask built by the library has, make an empty sequence. */
__device__ __forceinline__ hpa_sequence sequence_of(const hpa_geometry &g, const hpa_mask &m,
                                                    int64_t batch)
{
    hpa_sequence s = hpa_sequence_at(&g, m.cu_seqlens_q, m.cu_seqlens_kv, batch);
    if (!g.packed)
        return s;
    const bool sound = s.q_start >= 0 && s.q_length >= 0 && s.q_length <= g.seq_q &&
                       s.q_start + s.q_length <= g.total_q && s.kv_start >= 0 && s.kv_length >= 0 &&
                       s.kv_length <= g.seq_kv && s.kv_start + s.kv_length <= g.total_kv;
    if (!sound)
        s.q_length = s.kv_length = s.query_blocks = s.key_blocks = 0;
    return s;
}

/* Where (head, query) lies in an array [heads_q][row_slots][block_q]: each sequence begins at a slot
 * of its own, and so do all query blocks, wherever the lengths put them in the tensors. */
__device__ __forceinline__ int64_t slot_of_query(const hpa_geometry &g, const hpa_sequence &s,
                                                 int64_t head, int64_t query)
{
    return (head * g.row_slots + s.row_start) * g.block_q + query;
}

static inline int64_t query_slots_of(const hpa_geometry *g)
{
    return g->heads_q * g->row_slots * g->block_q;
}

/* Some consecutive queries of one head and one query block. */
struct query_tile {
    hpa_sequence sequence;
    int64_t head, query_block;
    int64_t begin, end; /* queries */
    int64_t mask_row;
};

/* 16-bit elements of a sequence's k and v that stay in a large device's L2 cache. */
#define CACHED_KEY_ELEMENTS (1 << 24)

/* Query tile number `work` of heads_q * row_slots * tiles_per_block; false where the slot has no
 * queries. The last blocks, which see the most, come first: of all heads while k and v stay in cache
 * throughout, since thread blocks that take every n-th tile then share out long ones and short ones
 * alike; or else of one key/value head after another. Its query heads are always together. */
__device__ __forceinline__ bool find_query_tile(const hpa_geometry &g, const hpa_mask &m,
                                                int64_t work, int tiles_per_block,
                                                int queries_per_tile, query_tile *tile)
{
    const int64_t per_slot = g.heads_q * tiles_per_block;
    if (work >= g.row_slots * per_slot)
        return false;
    const int64_t batch = hpa_batch_of_row(&g, m.cu_seqlens_q, work / per_slot * g.mask_heads);
    const hpa_sequence s = sequence_of(g, m, batch);
    const int64_t local = work - s.row_start * per_slot;
    if (local < 0 || local >= s.row_slots * per_slot)
        return false;
    const int64_t per_block = g.group * tiles_per_block;
    const int64_t number = local / per_block, in_block = local % per_block;
    const bool across_heads = 2 * s.kv_length * g.heads_kv * g.head_dim <= CACHED_KEY_ELEMENTS;
    const int64_t slot = across_heads ? number / g.heads_kv : number % s.row_slots;
    const int64_t kv_head = across_heads ? number % g.heads_kv : number / s.row_slots;
    tile->sequence = s;
    tile->query_block = s.row_slots - 1 - slot;
    tile->head = kv_head * g.group + in_block / tiles_per_block;
    const int64_t block_begin = hpa_block_begin(tile->query_block, g.block_q);
    tile->begin = block_begin + in_block % tiles_per_block * queries_per_tile;
    tile->end = hpa_min(hpa_block_end(tile->query_block, g.block_q, s.q_length),
                        tile->begin + queries_per_tile);
    tile->mask_row = hpa_row_index(&g, &s, tile->head / g.mask_group, tile->query_block);
    return tile->begin < tile->end;
}

/* One past the last key that a query sees. */
__device__ __forceinline__ int64_t visible_keys(const hpa_geometry &g, const hpa_sequence &s,
                                                int64_t query)
{
    if (!g.causal)
        return s.kv_length;
    return hpa_max(0, hpa_min(s.kv_length, hpa_key_position(&s, query) + 1));
}

/* A launch of as many blocks as there is work, whatever the limits of one dimension: block
 * work_index() of at least `work`. */
static inline dim3 grid_of(int64_t work)
{
    const int64_t wide = 1 << 30;
    return dim3((unsigned)hpa_min(work, wide), (unsigned)hpa_ceil_div(work, wide), 1);
}

__device__ __forceinline__ int64_t work_index()
{
    return (int64_t)blockIdx.y * gridDim.x + blockIdx.x;
}

#endif
