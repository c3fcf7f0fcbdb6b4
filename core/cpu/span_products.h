/* The products of a block of queries with a span of kept keys, which forward and backward share. */
#ifndef HPA_CORE_CPU_SPAN_PRODUCTS_H
#define HPA_CORE_CPU_SPAN_PRODUCTS_H

#include "core/cpu/real.h"
#include "core/cpu/row_chunks.h"
#include "core/cpu/scratch.h"

/* tile[key][query] = rows[key] . panel[.][query] for the keys of a span. On the diagonal, queries
 * that see none of 16 keys are passed over; what is hidden is to be filled by hpa_hide. */
static inline void hpa_multiply_span(const hpa_tiles *tiles, const hpa_geometry *g,
                                     const hpa_span *span, const real *rows, const real *panel,
                                     const hpa_score_tile *tile)
{
    const int64_t width = hpa_padded(g->head_dim);
    const bool whole = hpa_span_is_seen_whole(span);
    const int64_t step = whole ? span->keys : 16;
    for (int64_t key = 0; key < span->keys; key += step) {
        const int64_t first = hpa_min(tile->queries, hpa_max(0, key - span->shift));
        const int64_t skip = whole ? 0 : first / HPA_TILE_PAD * HPA_TILE_PAD;
        const hpa_product product = {.m = hpa_min(step, span->keys - key),
                                     .n = tile->queries - skip,
                                     .k = g->head_dim,
                                     .a = rows + (span->key + key) * width,
                                     .a_stride = width,
                                     .b = panel + skip,
                                     .b_stride = tile->stride,
                                     .c = tile->data + (span->row + key) * tile->stride + skip,
                                     .c_stride = tile->stride};
        tiles->multiply(&product);
    }
}

/* Writes value over the pairs of a span that causality hides. */
static inline void hpa_hide(const hpa_span *span, const hpa_score_tile *tile, real value)
{
    for (int64_t key = hpa_max(0, span->shift + 1); key < span->keys; key++) {
        const int64_t hidden = hpa_min(tile->queries, key - span->shift);
        for (int64_t query = 0; query < hidden; query++)
            tile->data[(span->row + key) * tile->stride + query] = value;
    }
}

/* sums[query] += sum over the keys of a span of weights[key][query] * rows[key]. */
static inline void hpa_gather_span(const hpa_tiles *tiles, const hpa_geometry *g,
                                   const hpa_span *span, const hpa_score_tile *weights,
                                   int64_t queries, const real *rows, real *sums)
{
    const int64_t width = hpa_padded(g->head_dim);
    const hpa_product product = {.m = queries,
                                 .n = width,
                                 .k = span->keys,
                                 .a = weights->data + span->row * weights->stride,
                                 .a_stride = weights->stride,
                                 .a_transposed = true,
                                 .b = rows + span->key * width,
                                 .b_stride = width,
                                 .c = sums,
                                 .c_stride = width,
                                 .add = true,
                                 .part = hpa_span_is_seen_whole(span) ? HPA_ALL : HPA_UP_TO,
                                 .shift = span->shift};
    tiles->multiply(&product);
}

/* sums[key] += sum over queries of weights[key][query] * rows[query], for the keys of a span. */
static inline void hpa_scatter_span(const hpa_tiles *tiles, const hpa_geometry *g,
                                    const hpa_span *span, const hpa_score_tile *weights,
                                    int64_t queries, const real *rows, real *sums)
{
    const int64_t width = hpa_padded(g->head_dim);
    const hpa_product product = {.m = span->keys,
                                 .n = width,
                                 .k = queries,
                                 .a = weights->data + span->row * weights->stride,
                                 .a_stride = weights->stride,
                                 .b = rows,
                                 .b_stride = width,
                                 .c = sums + span->key * width,
                                 .c_stride = width,
                                 .add = true,
                                 .part = hpa_span_is_seen_whole(span) ? HPA_ALL : HPA_FROM,
                                 .shift = span->shift};
    tiles->multiply(&product);
}

#endif
