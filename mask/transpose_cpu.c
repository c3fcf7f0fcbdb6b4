/* The transpose of the rows: for each key block, the query blocks that keep it, ascending. */
#include "mask/kernels.h"

/* The rows and columns of one (sequence, mask head): contiguous, and nobody else's. */
typedef struct head_range {
    int64_t first_row, rows, first_column, columns;
} head_range;

static head_range head_range_of(const hpa_geometry *g, const hpa_mask *m, int64_t head)
{
    const hpa_sequence s =
        hpa_sequence_at(g, m->cu_seqlens_q, m->cu_seqlens_kv, head / g->mask_heads);
    return (head_range){.first_row = hpa_row_index(g, &s, head % g->mask_heads, 0),
                        .rows = s.row_slots,
                        .first_column = hpa_column_index(g, &s, head % g->mask_heads, 0),
                        .columns = s.column_slots};
}

/* column_start[c] = length of column c. */
static void count_columns(const hpa_geometry *g, hpa_mask *m, const head_range *r)
{
    for (int64_t c = 0; c < r->columns; c++)
        m->column_start[r->first_column + c] = 0;
    for (int64_t row = r->first_row; row < r->first_row + r->rows; row++)
        for (int64_t n = 0; n < m->row_length[row]; n++)
            m->column_start[r->first_column + m->row_blocks[row * g->capacity + n]]++;
}

/* column_start[c] comes in as the end of column c and goes out as its start: the rows are taken
 * from the last to the first, and each list is filled from its end. */
static void fill_columns(const hpa_geometry *g, hpa_mask *m, const head_range *r)
{
    for (int64_t query_block = r->rows - 1; query_block >= 0; query_block--) {
        const int64_t row = r->first_row + query_block;
        for (int64_t n = 0; n < m->row_length[row]; n++) {
            const int64_t column = r->first_column + m->row_blocks[row * g->capacity + n];
            m->column_rows[--m->column_start[column]] = (int32_t)query_block;
        }
    }
}

void hpa_mask_transpose_cpu(const hpa_geometry *g, hpa_mask *m, int32_t num_threads)
{
    const int64_t heads = g->batch * g->mask_heads;
    for (int64_t c = 0; c <= g->columns; c++) /* packed: slots after the last sequence */
        m->column_start[c] = 0;
#pragma omp parallel for num_threads(num_threads) schedule(dynamic)
    for (int64_t head = 0; head < heads; head++) {
        const head_range range = head_range_of(g, m, head);
        count_columns(g, m, &range);
    }
    int64_t total = 0;
    for (int64_t c = 0; c < g->columns; c++)
        m->column_start[c] = total += m->column_start[c];
    m->column_start[g->columns] = total;
#pragma omp parallel for num_threads(num_threads) schedule(dynamic)
    for (int64_t head = 0; head < heads; head++) {
        const head_range range = head_range_of(g, m, head);
        fill_columns(g, m, &range);
    }
}
