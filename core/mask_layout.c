#include "core/mask_layout.h"

hpa_mask_header hpa_mask_header_of(const hpa_geometry *g)
{
    return (hpa_mask_header){
        .magic = HPA_MASK_MAGIC,
        .bytes = (int64_t)hpa_mask_bytes(g),
        .batch = g->batch,
        .mask_heads = g->mask_heads,
        .seq_q = g->seq_q,
        .seq_kv = g->seq_kv,
        .total_q = g->total_q,
        .total_kv = g->total_kv,
        .block_q = g->block_q,
        .block_k = g->block_k,
        .capacity = g->capacity,
        .flags = g->causal | g->packed << 1 | g->training << 2,
    };
}
