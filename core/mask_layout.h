/* How a mask lies in the caller's block of bytes. mask/ writes it; forward/ and backward/ read it.
 *
 * The bytes are position-independent: offsets follow from the geometry alone, and the header
 * repeats the geometry so that a foreign or damaged mask can be told. */
#ifndef HPA_CORE_MASK_LAYOUT_H
#define HPA_CORE_MASK_LAYOUT_H

#include "core/arena.h"
#include "core/geometry.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HPA_MASK_MAGIC UINT64_C(0x314b53414d415048) /* "HPAMASK1" in little-endian bytes */

typedef struct hpa_mask_header {
    uint64_t magic;
    int64_t bytes; /* of the whole mask */
    int64_t batch, mask_heads, seq_q, seq_kv, total_q, total_kv;
    int64_t block_q, block_k, capacity;
    int64_t flags; /* bit 0 causal, bit 1 packed, bit 2 training */
} hpa_mask_header;

/* Pointers into a mask. const in spirit where the mask is const; see hpa_mask_view_const. */
typedef struct hpa_mask {
    hpa_mask_header *header;
    int32_t *cu_seqlens_q;  /* [batch + 1], packed only: the lengths that the mask was built for */
    int32_t *cu_seqlens_kv; /* [batch + 1], packed only */
    int32_t *row_length;    /* [rows] kept blocks of each row */
    int32_t *row_blocks;    /* [rows, capacity] ascending key blocks; past row_length: undefined */
    int64_t *column_start;  /* [columns + 1], training only: where a column's list begins */
    int32_t *column_rows;   /* [rows * capacity], training only: ascending query blocks */
} hpa_mask;

/* Lays a mask out: sizes it when arena->base is NULL. */
static inline hpa_mask hpa_mask_take(const hpa_geometry *g, hpa_arena *arena)
{
    hpa_mask m = {0};
    m.header = HPA_ARENA_ARRAY(arena, hpa_mask_header, 1);
    if (g->packed) {
        m.cu_seqlens_q = HPA_ARENA_ARRAY(arena, int32_t, g->batch + 1);
        m.cu_seqlens_kv = HPA_ARENA_ARRAY(arena, int32_t, g->batch + 1);
    }
    m.row_length = HPA_ARENA_ARRAY(arena, int32_t, g->rows);
    m.row_blocks = HPA_ARENA_ARRAY(arena, int32_t, g->rows * g->capacity);
    if (g->training) {
        m.column_start = HPA_ARENA_ARRAY(arena, int64_t, g->columns + 1);
        m.column_rows = HPA_ARENA_ARRAY(arena, int32_t, g->rows * g->capacity);
    }
    return m;
}

static inline size_t hpa_mask_bytes(const hpa_geometry *g)
{
    hpa_arena arena = {0};
    hpa_mask_take(g, &arena);
    return arena.used;
}

static inline hpa_mask hpa_mask_at(const hpa_geometry *g, void *bytes)
{
    hpa_arena arena = {.base = (unsigned char *)bytes};
    return hpa_mask_take(g, &arena);
}

/* For readers: they take the pointers as they are and write through none of them. */
static inline hpa_mask hpa_mask_view_const(const hpa_geometry *g, const void *bytes)
{
    return hpa_mask_at(g, (void *)(uintptr_t)bytes);
}

/* The header that a mask of this geometry has. */
hpa_mask_header hpa_mask_header_of(const hpa_geometry *g);

#ifdef __cplusplus
}
#endif
#endif
