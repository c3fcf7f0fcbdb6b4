/* Looking into a mask in host memory: plain loops over its rows. */
#include "core/check.h"
#include "mask/inspect.h"
#include "mask/kernels.h"

#include <inttypes.h>
#include <string.h>

static hpa_sequence sequence_of_mask(const hpa_geometry *g, const hpa_mask *m, int64_t batch)
{
    return hpa_sequence_at(g, m->cu_seqlens_q, m->cu_seqlens_kv, batch);
}

/* Statistics */

static void add_row(const hpa_geometry *g, const row_view *r, hpa_mask_stats *stats, int64_t *kept,
                    int64_t *dense)
{
    stats->row_min = stats->rows == 0 ? r->length : hpa_min(stats->row_min, r->length);
    stats->row_max = hpa_max(stats->row_max, r->length);
    stats->rows++;
    stats->blocks += r->length;
    stats->empty_rows += r->length == 0;
    stats->fingerprint += fingerprint_of_row(r);
    *kept += kept_pairs_of_row(g, r);
    *dense += dense_pairs_of_row(g, r->sequence, r->query_block);
}

/* How many rows of one mask head keep the block. A mask that is not for training has no transpose:
 * its rows are searched. */
static int64_t column_length(const hpa_geometry *g, const hpa_mask *m, const hpa_sequence *s,
                             int64_t mask_head, int64_t block)
{
    if (g->training) {
        const int64_t column = hpa_column_index(g, s, mask_head, block);
        return m->column_start[column + 1] - m->column_start[column];
    }
    int64_t length = 0;
    for (int64_t query_block = 0; query_block < s->query_blocks; query_block++) {
        const row_view r = row_at(g, m, s, mask_head, query_block);
        length += row_keeps(&r, block);
    }
    return length;
}

static int64_t longest_column(const hpa_geometry *g, const hpa_mask *m, const hpa_sequence *s,
                              int64_t mask_head)
{
    int64_t longest = 0;
    for (int64_t block = 0; block < s->key_blocks; block++)
        longest = hpa_max(longest, column_length(g, m, s, mask_head, block));
    return longest;
}

static hpa_status statistics(const hpa_plan *plan, const void *mask, hpa_mask_stats *stats,
                             const hpa_exec *exec)
{
    (void)exec;
    const hpa_geometry *g = &plan->geometry;
    const hpa_mask m = hpa_mask_view_const(g, mask);
    hpa_mask_stats result = {0};
    int64_t kept = 0, dense = 0;
    for (int64_t b = 0; b < g->batch; b++) {
        const hpa_sequence s = sequence_of_mask(g, &m, b);
        for (int64_t head = 0; head < g->mask_heads; head++) {
            for (int64_t block = 0; block < s.query_blocks; block++) {
                const row_view r = row_at(g, &m, &s, head, block);
                add_row(g, &r, &result, &kept, &dense);
            }
            result.column_max = hpa_max(result.column_max, longest_column(g, &m, &s, head));
        }
    }
    result.density = dense > 0 ? (double)kept / (double)dense : 0;
    *stats = result;
    return HPA_OK;
}

/* Validation */

static hpa_status check_row(const hpa_geometry *g, const row_view *r)
{
    const row_problem problem = find_row_problem(g, r);
    return hpa_mask_fail_row(r, &problem);
}

/* Adds the sequence's kept blocks to *total. Slots that are no query block must be empty. */
static hpa_status check_rows(const hpa_geometry *g, const hpa_mask *m, const hpa_sequence *s,
                             int64_t *total)
{
    for (int64_t head = 0; head < g->mask_heads; head++) {
        for (int64_t block = 0; block < s->query_blocks; block++) {
            const row_view r = row_at(g, m, s, head, block);
            HPA_TRY(check_row(g, &r));
            *total += r.length;
        }
        for (int64_t slot = s->query_blocks; slot < s->row_slots; slot++)
            if (m->row_length[hpa_row_index(g, s, head, slot)] != 0)
                return hpa_fail(HPA_INVALID_MASK,
                                "sequence %" PRId64 ", mask head %" PRId64
                                " keeps blocks for a query block past its end",
                                s->batch, head);
    }
    return HPA_OK;
}

/* Slots that no sequence owns: packed, with fewer rows of q than total_q. */
static hpa_status check_spare_rows(const hpa_geometry *g, const hpa_mask *m)
{
    const hpa_sequence last = sequence_of_mask(g, m, g->batch - 1);
    for (int64_t row = g->mask_heads * (last.row_start + last.row_slots); row < g->rows; row++)
        if (m->row_length[row] != 0)
            return hpa_fail(HPA_INVALID_MASK,
                            "row %" PRId64 ", past the last sequence, keeps %d blocks, expected 0",
                            row, m->row_length[row]);
    return HPA_OK;
}

static hpa_status check_column_starts(const hpa_geometry *g, const hpa_mask *m, int64_t total)
{
    if (m->column_start[0] != 0 || m->column_start[g->columns] != total)
        return hpa_fail(HPA_INVALID_MASK,
                        "the transpose spans %" PRId64 " to %" PRId64 ", expected 0 to %" PRId64,
                        m->column_start[0], m->column_start[g->columns], total);
    for (int64_t c = 0; c < g->columns; c++)
        if (m->column_start[c + 1] < m->column_start[c] || m->column_start[c + 1] > total)
            return hpa_fail(HPA_INVALID_MASK,
                            "column %" PRId64 " of the transpose ends at %" PRId64
                            ", expected %" PRId64 " to %" PRId64,
                            c, m->column_start[c + 1], m->column_start[c], total);
    return HPA_OK;
}

/* Lists that ascend, whose every entry is kept by its row, and that are as many in all as the rows
 * keep, are the transpose. */
static hpa_status check_column(const hpa_geometry *g, const hpa_mask *m, const hpa_sequence *s,
                               int64_t head, int64_t block)
{
    const int64_t column = hpa_column_index(g, s, head, block);
    int64_t previous = -1;
    for (int64_t n = m->column_start[column]; n < m->column_start[column + 1]; n++) {
        const int64_t query_block = m->column_rows[n];
        bool kept = query_block > previous && query_block < s->query_blocks;
        if (kept) {
            const row_view r = row_at(g, m, s, head, query_block);
            kept = row_keeps(&r, block);
        }
        if (!kept)
            return hpa_fail(HPA_INVALID_MASK,
                            "sequence %" PRId64 ", mask head %" PRId64 ", key block %" PRId64
                            ": the transpose names query block %" PRId64
                            ", which does not keep it or is out of order",
                            s->batch, head, block, query_block);
        previous = query_block;
    }
    return HPA_OK;
}

static hpa_status check_transpose(const hpa_geometry *g, const hpa_mask *m, int64_t total)
{
    HPA_TRY(check_column_starts(g, m, total));
    for (int64_t b = 0; b < g->batch; b++) {
        const hpa_sequence s = sequence_of_mask(g, m, b);
        for (int64_t head = 0; head < g->mask_heads; head++)
            for (int64_t block = 0; block < s.column_slots; block++)
                HPA_TRY(check_column(g, m, &s, head, block));
    }
    const hpa_sequence last = sequence_of_mask(g, m, g->batch - 1);
    const int64_t end = m->column_start[g->mask_heads * (last.column_start + last.column_slots)];
    if (end != total)
        return hpa_fail(HPA_INVALID_MASK,
                        "the transpose lists %" PRId64 " query blocks past the last sequence",
                        total - end);
    return HPA_OK;
}

static hpa_status validate(const hpa_plan *plan, const void *mask, const hpa_exec *exec)
{
    (void)exec;
    const hpa_geometry *g = &plan->geometry;
    const hpa_mask m = hpa_mask_view_const(g, mask);
    if (g->packed) {
        const hpa_inputs lengths = {.cu_seqlens_q = m.cu_seqlens_q,
                                    .cu_seqlens_kv = m.cu_seqlens_kv};
        if (hpa_check_lengths(plan, &lengths) != HPA_OK)
            return hpa_fail(HPA_INVALID_MASK, "the mask's own lengths are damaged");
    }
    int64_t total = 0;
    for (int64_t b = 0; b < g->batch; b++) {
        const hpa_sequence s = sequence_of_mask(g, &m, b);
        HPA_TRY(check_rows(g, &m, &s, &total));
    }
    HPA_TRY(check_spare_rows(g, &m));
    return g->training ? check_transpose(g, &m, total) : HPA_OK;
}

/* Exchange */

static int64_t count_blocks(const hpa_geometry *g, const hpa_mask *m)
{
    int64_t total = 0;
    for (int64_t row = 0; row < g->rows; row++)
        total += m->row_length[row];
    return total;
}

static hpa_status export_csr(const hpa_plan *plan, const void *mask, int64_t *row_ptr,
                             int32_t *blocks, int64_t *n_blocks, const hpa_exec *exec)
{
    (void)exec;
    const hpa_geometry *g = &plan->geometry;
    const hpa_mask m = hpa_mask_view_const(g, mask);
    const int64_t room = *n_blocks, total = count_blocks(g, &m);
    *n_blocks = total;
    if (blocks && room < total)
        return hpa_fail(HPA_BUFFER_TOO_SMALL,
                        "*n_blocks is %" PRId64 ", expected at least %" PRId64, room, total);
    int64_t row = 0, at = 0;
    for (int64_t b = 0; b < g->batch; b++) {
        const hpa_sequence s = sequence_of_mask(g, &m, b);
        for (int64_t head = 0; head < g->mask_heads; head++)
            for (int64_t block = 0; block < s.query_blocks; block++) {
                const row_view r = row_at(g, &m, &s, head, block);
                if (row_ptr)
                    row_ptr[row] = at;
                if (blocks)
                    memcpy(blocks + at, r.blocks, sizeof(int32_t) * (size_t)r.length);
                at += r.length;
                row++;
            }
    }
    if (row_ptr)
        row_ptr[row] = at;
    return HPA_OK;
}

/* Before a single block is read: only row_ptr says how many there are. Where there are none, blocks
 * may be NULL. */
static hpa_status check_row_ptr(const hpa_geometry *g, const hpa_inputs *in, const int64_t *row_ptr,
                                const int32_t *blocks)
{
    if (row_ptr[0] != 0)
        return hpa_fail(HPA_INVALID_MASK, "row_ptr[0] is %" PRId64 ", expected 0", row_ptr[0]);
    int64_t rows = 0;
    for (int64_t b = 0; b < g->batch; b++)
        rows += g->mask_heads *
                hpa_sequence_at(g, in ? in->cu_seqlens_q : NULL, in ? in->cu_seqlens_kv : NULL, b)
                    .query_blocks;
    for (int64_t r = 0; r < rows; r++)
        if (row_ptr[r + 1] < row_ptr[r] || row_ptr[r + 1] - row_ptr[r] > g->capacity)
            return hpa_fail(HPA_INVALID_MASK,
                            "row_ptr[%" PRId64 "] is %" PRId64 ", expected %" PRId64 " to %" PRId64,
                            r + 1, row_ptr[r + 1], row_ptr[r], row_ptr[r] + g->capacity);
    return row_ptr[rows] > 0 ? hpa_check_pointer("blocks", blocks) : HPA_OK;
}

/* Walks the rows of a CSR mask: checks them when m is NULL, else writes them to m. */
static hpa_status read_csr(const hpa_geometry *g, const hpa_inputs *in, const int64_t *row_ptr,
                           const int32_t *blocks, hpa_mask *m)
{
    int64_t number = 0;
    for (int64_t b = 0; b < g->batch; b++) {
        const hpa_sequence s =
            hpa_sequence_at(g, in ? in->cu_seqlens_q : NULL, in ? in->cu_seqlens_kv : NULL, b);
        for (int64_t head = 0; head < g->mask_heads; head++)
            for (int64_t block = 0; block < s.query_blocks; block++, number++) {
                const int64_t length = row_ptr[number + 1] - row_ptr[number];
                const int32_t *kept = length > 0 ? blocks + row_ptr[number] : NULL;
                const int64_t row = hpa_row_index(g, &s, head, block);
                if (!m) {
                    const row_view r = {.sequence = &s,
                                        .mask_head = head,
                                        .query_block = block,
                                        .length = length,
                                        .blocks = kept};
                    HPA_TRY(check_row(g, &r));
                    continue;
                }
                m->row_length[row] = (int32_t)length;
                if (kept)
                    memcpy(m->row_blocks + row * g->capacity, kept,
                           sizeof(int32_t) * (size_t)length);
            }
    }
    return HPA_OK;
}

static hpa_status import_csr(const hpa_plan *plan, const hpa_inputs *in, void *mask,
                             const int64_t *row_ptr, const int32_t *blocks, const hpa_exec *exec)
{
    (void)exec;
    const hpa_geometry *g = &plan->geometry;
    if (g->packed)
        HPA_TRY(hpa_check_lengths(plan, in));
    HPA_TRY(check_row_ptr(g, in, row_ptr, blocks));
    HPA_TRY(read_csr(g, in, row_ptr, blocks, NULL));
    hpa_mask m = hpa_mask_at(g, mask);
    hpa_mask_begin(g, in, &m);
    memset(m.row_length, 0, sizeof(int32_t) * (size_t)g->rows);
    HPA_TRY(read_csr(g, in, row_ptr, blocks, &m));
    if (g->training)
        hpa_mask_transpose_cpu(g, &m, plan->num_threads);
    return HPA_OK;
}

/* Drawing */

static int draw(const hpa_plan *plan, const void *mask, int64_t batch, int64_t head, char *text,
                size_t size, const hpa_exec *exec)
{
    (void)exec;
    const hpa_geometry *g = &plan->geometry;
    const hpa_mask m = hpa_mask_view_const(g, mask);
    const hpa_sequence s = sequence_of_mask(g, &m, batch);
    const int length = hpa_mask_text_length(&s);
    if (length < 0)
        return -1;
    size_t at = 0;
    for (int64_t query_block = 0; query_block < s.query_blocks; query_block++) {
        const row_view r = row_at(g, &m, &s, head, query_block);
        const hpa_row_sets sets = hpa_row_sets_of(g, &s, query_block);
        for (int64_t block = 0; block <= s.key_blocks; block++, at++)
            if (at + 1 < size)
                text[at] =
                    block == s.key_blocks ? '\n' : character_of(&sets, row_keeps(&r, block), block);
    }
    if (size > 0)
        text[at < size ? at : size - 1] = '\0';
    return length;
}

const hpa_mask_inspector hpa_mask_inspect_cpu = {
    .statistics = statistics,
    .validate = validate,
    .export_csr = export_csr,
    .import_csr = import_csr,
    .snprint = draw,
};
