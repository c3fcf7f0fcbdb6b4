/* The numbers that follow from a description, and where each sequence, mask row and key block lies.
 *
 * Plain data and inline functions for every backend: a CUDA kernel takes hpa_geometry by value.
 *
 * Rows and columns. A mask row is one (sequence, mask head, query block); a mask column is one
 * (sequence, mask head, key block). They are numbered in that order. With packed sequences only the
 * device knows the lengths, so sequence b starts at slot floor(cu_seqlens[b] / block) + b: the
 * ranges never meet, whatever the lengths, and the number of slots follows from the totals alone. A
 * sequence may therefore own one slot a head more than it has blocks; such a row is empty. */
#ifndef HPA_CORE_GEOMETRY_H
#define HPA_CORE_GEOMETRY_H

#include "hpa/hpa.h"

#ifdef __CUDACC__
#define HPA_HOST_DEVICE static __host__ __device__ __forceinline__
#else
#define HPA_HOST_DEVICE static inline
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct hpa_geometry {
    int64_t batch, heads_q, heads_kv, head_dim;
    int64_t group;      /* query heads of one key/value head */
    int64_t mask_heads; /* heads_q, or heads_kv with share_heads */
    int64_t mask_group; /* query heads that share one mask row: 1, or group */
    int64_t seq_q, seq_kv, total_q, total_kv;
    int64_t block_q, block_k;
    int64_t sink_blocks; /* ceil(sink / block_k) */
    int64_t window;      /* tokens; at least 1 when causal */
    int64_t tree_blocks; /* M: blocks that the search keeps */
    int64_t beam_nodes;  /* W = beam * M */
    int64_t rep_tokens, leaf_tokens, query_stride;
    int64_t search_span;  /* query blocks that share the coarse levels of the search; 1: none do */
    int64_t row_slots;    /* query-block slots of one mask head, over all sequences */
    int64_t column_slots; /* key-block slots of one mask head, over all sequences */
    int64_t rows;         /* mask_heads * row_slots */
    int64_t columns;      /* mask_heads * column_slots */
    int64_t capacity;     /* most blocks that a row can keep */
    double scale;
    bool causal, packed, training;
} hpa_geometry;

/* One sequence of the batch. Without packing all are alike but for batch. */
typedef struct hpa_sequence {
    int64_t batch;
    int64_t q_start, q_length;    /* first row of q in the packed tensors, queries */
    int64_t kv_start, kv_length;  /* first row of k and v, keys */
    int64_t row_start, row_slots; /* row (h, I) is mask_heads * row_start + h * row_slots + I */
    int64_t column_start, column_slots; /* column (h, J) likewise */
    int64_t query_blocks, key_blocks;
} hpa_sequence;

HPA_HOST_DEVICE int64_t hpa_ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

HPA_HOST_DEVICE int64_t hpa_min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

HPA_HOST_DEVICE int64_t hpa_max(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* floor(a / b) for b > 0 and any sign of a. */
HPA_HOST_DEVICE int64_t hpa_floor_div(int64_t a, int64_t b)
{
    return a >= 0 ? a / b : -((-a + b - 1) / b);
}

/* cu_seqlens are read when packed only. */
HPA_HOST_DEVICE hpa_sequence hpa_sequence_at(const hpa_geometry *g, const int32_t *cu_seqlens_q,
                                             const int32_t *cu_seqlens_kv, int64_t batch)
{
    hpa_sequence s;
    s.batch = batch;
    if (g->packed) {
        s.q_start = cu_seqlens_q[batch];
        s.q_length = cu_seqlens_q[batch + 1] - s.q_start;
        s.kv_start = cu_seqlens_kv[batch];
        s.kv_length = cu_seqlens_kv[batch + 1] - s.kv_start;
        s.row_start = s.q_start / g->block_q + batch;
        s.row_slots = (s.q_start + s.q_length) / g->block_q + batch + 1 - s.row_start;
        s.column_start = s.kv_start / g->block_k + batch;
        s.column_slots = (s.kv_start + s.kv_length) / g->block_k + batch + 1 - s.column_start;
    } else {
        s.q_start = s.kv_start = 0;
        s.q_length = g->seq_q;
        s.kv_length = g->seq_kv;
        s.row_slots = hpa_ceil_div(g->seq_q, g->block_q);
        s.row_start = batch * s.row_slots;
        s.column_slots = hpa_ceil_div(g->seq_kv, g->block_k);
        s.column_start = batch * s.column_slots;
    }
    s.query_blocks = hpa_ceil_div(s.q_length, g->block_q);
    s.key_blocks = hpa_ceil_div(s.kv_length, g->block_k);
    return s;
}

HPA_HOST_DEVICE int64_t hpa_row_index(const hpa_geometry *g, const hpa_sequence *s,
                                      int64_t mask_head, int64_t query_block)
{
    return g->mask_heads * s->row_start + mask_head * s->row_slots + query_block;
}

HPA_HOST_DEVICE int64_t hpa_column_index(const hpa_geometry *g, const hpa_sequence *s,
                                         int64_t mask_head, int64_t key_block)
{
    return g->mask_heads * s->column_start + mask_head * s->column_slots + key_block;
}

/* The sequence that owns slot row_slot of 0 ... mask_heads * row_slots - 1: the last b that starts
 * at or before it. */
HPA_HOST_DEVICE int64_t hpa_batch_of_row(const hpa_geometry *g, const int32_t *cu_seqlens_q,
                                         int64_t row)
{
    if (!g->packed)
        return row / (g->mask_heads * hpa_ceil_div(g->seq_q, g->block_q));
    int64_t low = 0, high = g->batch - 1;
    while (low < high) {
        const int64_t middle = (low + high + 1) / 2;
        const int64_t start = cu_seqlens_q[middle] / g->block_q + middle;
        if (g->mask_heads * start <= row)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

/* p(i): the key position at which query i of the sequence stands. */
HPA_HOST_DEVICE int64_t hpa_key_position(const hpa_sequence *s, int64_t query)
{
    return query + s->kv_length - s->q_length;
}

/* First query of a block, and one past its last. */
HPA_HOST_DEVICE int64_t hpa_block_begin(int64_t block, int64_t size)
{
    return block * size;
}

HPA_HOST_DEVICE int64_t hpa_block_end(int64_t block, int64_t size, int64_t length)
{
    return hpa_min((block + 1) * size, length);
}

/* How many key blocks a query block can see: 0 ... V - 1. */
HPA_HOST_DEVICE int64_t hpa_visible_blocks(const hpa_geometry *g, const hpa_sequence *s,
                                           int64_t query_block)
{
    if (!g->causal)
        return s->key_blocks;
    const int64_t last = hpa_block_end(query_block, g->block_q, s->q_length) - 1;
    const int64_t visible = hpa_floor_div(hpa_key_position(s, last), g->block_k) + 1;
    return hpa_max(0, hpa_min(visible, s->key_blocks));
}

/* max(1, ceil(log2(ceil(candidates / W)))): levels of a search over that many candidates. */
HPA_HOST_DEVICE int64_t hpa_tree_levels(int64_t candidates, int64_t beam_nodes)
{
    int64_t levels = 0;
    for (int64_t widest = hpa_ceil_div(candidates, beam_nodes); widest > 1;
         widest = (widest + 1) / 2)
        levels++;
    return hpa_max(1, levels);
}

/* Checked numbers of a checked description. */
hpa_geometry hpa_geometry_of(const hpa_desc *desc);

#ifdef __cplusplus
}
#endif
#endif
