/* Rows of one head of a tensor, read as reals, turned into a panel, written back. */
#ifndef HPA_CORE_CPU_HEAD_ROWS_H
#define HPA_CORE_CPU_HEAD_ROWS_H

#include "core/cpu/real.h"
#include "core/cpu/scratch.h"
#include "core/tensor.h"

/* Rows [begin, end) of one head of a tensor, from the start of a sequence, as reals of width
 * columns. */
static inline void hpa_read_head(const hpa_tiles *tiles, const hpa_geometry *g, const hpa_tensor *t,
                                 int64_t batch, int64_t head, int64_t start, int64_t begin,
                                 int64_t end, real *to)
{
    const hpa_strides strides = hpa_strides_of(t, g->packed);
    const int64_t at = hpa_offset(&strides, batch, head, start, begin);
    const unsigned char *from =
        (const unsigned char *)t->data + at * (int64_t)hpa_dtype_size(t->dtype);
    tiles->read_rows(to, hpa_padded(g->head_dim), from, t->dtype, strides.token, end - begin,
                     g->head_dim);
}

static inline void hpa_write_head(const hpa_tiles *tiles, const hpa_geometry *g,
                                  const hpa_tensor *t, int64_t batch, int64_t head, int64_t start,
                                  int64_t begin, int64_t end, const real *from, real factor,
                                  bool add)
{
    const hpa_strides strides = hpa_strides_of(t, g->packed);
    const int64_t at = hpa_offset(&strides, batch, head, start, begin);
    unsigned char *to = (unsigned char *)t->data + at * (int64_t)hpa_dtype_size(t->dtype);
    tiles->write_rows(to, t->dtype, strides.token, from, hpa_padded(g->head_dim), end - begin,
                      g->head_dim, factor, add);
}

/* panel[d][query] = factor * rows[query][d], with zeros after the last query. */
static inline void hpa_make_panel(const hpa_tiles *tiles, const hpa_geometry *g, const real *rows,
                                  int64_t queries, real factor, real *panel, int64_t stride)
{
    tiles->transpose(panel, stride, rows, hpa_padded(g->head_dim), queries, g->head_dim, factor);
    for (int64_t d = 0; d < g->head_dim; d++)
        for (int64_t query = queries; query < hpa_padded(queries); query++)
            panel[d * stride + query] = 0;
}

#endif
