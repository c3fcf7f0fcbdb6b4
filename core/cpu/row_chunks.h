/* The kept blocks of a mask row, cut into chunks whose scores fit in a near cache. */
#ifndef HPA_CORE_CPU_ROW_CHUNKS_H
#define HPA_CORE_CPU_ROW_CHUNKS_H

#include "core/geometry.h"

#define HPA_CHUNK_KEYS 128 /* at least the largest block_k */
#define HPA_CHUNK_SPANS (HPA_CHUNK_KEYS / 16)

/* Kept blocks that are neighbours, as one run of keys. */
typedef struct hpa_span {
    int64_t key;   /* the first, counted from the start of the sequence */
    int64_t keys;  /* how many */
    int64_t row;   /* of the score tile that holds the first key */
    int64_t shift; /* query q of the block sees key n of the span where n <= q + shift */
} hpa_span;

typedef struct hpa_chunk {
    hpa_span spans[HPA_CHUNK_SPANS];
    int64_t n_spans;
    int64_t keys; /* over all spans */
} hpa_chunk;

/* The kept blocks that are still to come. */
typedef struct hpa_row_cursor {
    const hpa_geometry *g;
    const hpa_sequence *sequence;
    int64_t query_block;
    const int32_t *next, *end;
} hpa_row_cursor;

static inline bool hpa_span_is_seen_whole(const hpa_span *span)
{
    return span->shift >= span->keys - 1;
}

static inline hpa_span hpa_span_of_block(const hpa_row_cursor *cursor, int64_t block, int64_t row)
{
    const hpa_geometry *g = cursor->g;
    const int64_t begin = hpa_block_begin(block, g->block_k);
    const int64_t end = hpa_block_end(block, g->block_k, cursor->sequence->kv_length);
    const int64_t first_query = hpa_block_begin(cursor->query_block, g->block_q);
    const int64_t limit = hpa_key_position(cursor->sequence, first_query);
    return (hpa_span){.key = begin,
                      .keys = end - begin,
                      .row = row,
                      .shift = g->causal ? limit - begin : cursor->sequence->kv_length};
}

/* The next blocks that fit in a chunk; false when there are none. */
static inline bool hpa_next_chunk(hpa_row_cursor *cursor, hpa_chunk *chunk)
{
    chunk->n_spans = chunk->keys = 0;
    while (cursor->next < cursor->end && chunk->keys + cursor->g->block_k <= HPA_CHUNK_KEYS) {
        const hpa_span span = hpa_span_of_block(cursor, *cursor->next, chunk->keys);
        hpa_span *last = chunk->n_spans > 0 ? &chunk->spans[chunk->n_spans - 1] : NULL;
        if (last && last->key + last->keys == span.key)
            last->keys += span.keys;
        else
            chunk->spans[chunk->n_spans++] = span;
        chunk->keys += span.keys;
        cursor->next++;
    }
    return chunk->n_spans > 0;
}

#endif
