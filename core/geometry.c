#include "core/geometry.h"

#include <math.h>

/* Blocks that hold a key within window tokens of one of block_q neighbouring queries, at most. */
static int64_t window_capacity(const hpa_geometry *g)
{
    if (g->window == 0)
        return 0;
    const int64_t one_side = hpa_ceil_div(g->window + g->block_q - 1, g->block_k) + 1;
    return g->causal ? one_side : 2 * one_side;
}

hpa_geometry hpa_geometry_of(const hpa_desc *desc)
{
    hpa_geometry g = {
        .batch = desc->batch,
        .heads_q = desc->heads_q,
        .heads_kv = desc->heads_kv,
        .head_dim = desc->head_dim,
        .group = desc->heads_q / desc->heads_kv,
        .seq_q = desc->seq_q,
        .seq_kv = desc->seq_kv,
        .total_q = desc->packed ? desc->total_q : desc->batch * desc->seq_q,
        .total_kv = desc->packed ? desc->total_kv : desc->batch * desc->seq_kv,
        .block_q = desc->block_q,
        .block_k = desc->block_k,
        .sink_blocks = hpa_ceil_div(desc->sink, desc->block_k),
        .window = desc->causal ? hpa_max(desc->window, 1) : desc->window,
        .tree_blocks = hpa_ceil_div(desc->top_k, desc->block_k),
        .rep_tokens = desc->rep_tokens,
        .leaf_tokens = desc->leaf_tokens,
        .query_stride = desc->query_stride,
        .search_span = desc->search_span,
        .scale = desc->scale > 0 ? desc->scale : 1 / sqrt((double)desc->head_dim),
        .causal = desc->causal,
        .packed = desc->packed,
        .training = desc->training,
    };
    g.mask_heads = desc->share_heads ? g.heads_kv : g.heads_q;
    g.mask_group = desc->share_heads ? g.group : 1;
    g.beam_nodes = desc->beam * g.tree_blocks;
    g.row_slots =
        g.packed ? g.total_q / g.block_q + g.batch : g.batch * hpa_ceil_div(g.seq_q, g.block_q);
    g.column_slots =
        g.packed ? g.total_kv / g.block_k + g.batch : g.batch * hpa_ceil_div(g.seq_kv, g.block_k);
    g.rows = g.mask_heads * g.row_slots;
    g.columns = g.mask_heads * g.column_slots;
    g.capacity = hpa_min(hpa_ceil_div(g.seq_kv, g.block_k),
                         g.sink_blocks + window_capacity(&g) + g.tree_blocks);
    return g;
}
