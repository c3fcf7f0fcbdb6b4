/* Looking into a mask: statistics, validation, exchange as CSR, a drawing. Host memory. */
#include "core/check.h"
#include "mask/kernels.h"
#include "mask/rules.h"

#include <inttypes.h>
#include <limits.h>
#include <string.h>

/* One existing row: its sequence, mask head, query block, and what it keeps. */
typedef struct row_view {
    const hpa_sequence *sequence;
    int64_t mask_head, query_block, row;
    int64_t length;
    const int32_t *blocks;
} row_view;

static row_view row_at(const hpa_geometry *g, const hpa_mask *m, const hpa_sequence *s,
                       int64_t mask_head, int64_t query_block)
{
    const int64_t row = hpa_row_index(g, s, mask_head, query_block);
    return (row_view){.sequence = s,
                      .mask_head = mask_head,
                      .query_block = query_block,
                      .row = row,
                      .length = m->row_length[row],
                      .blocks = m->row_blocks + row * g->capacity};
}

static hpa_sequence sequence_of_mask(const hpa_geometry *g, const hpa_mask *m, int64_t batch)
{
    return hpa_sequence_at(g, m->cu_seqlens_q, m->cu_seqlens_kv, batch);
}

static bool row_keeps(const row_view *r, int64_t block)
{
    int64_t low = 0, high = r->length;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (r->blocks[middle] < block)
            low = middle + 1;
        else
            high = middle;
    }
    return low < r->length && r->blocks[low] == block;
}

static hpa_status check_inspect(const hpa_plan *plan, const void *mask)
{
    HPA_TRY(hpa_check_pointer("plan", plan));
    return hpa_check_mask(plan, mask, true);
}

/* Statistics */

/* Pairs (i, j) of the block's queries and the keys [key_begin, key_end) that causality allows. */
static int64_t pairs_of_block(const hpa_geometry *g, const hpa_sequence *s, int64_t query_block,
                              int64_t key_begin, int64_t key_end)
{
    const int64_t first = hpa_block_begin(query_block, g->block_q);
    const int64_t end = hpa_block_end(query_block, g->block_q, s->q_length);
    if (!g->causal || hpa_key_position(s, first) >= key_end - 1)
        return (end - first) * (key_end - key_begin);
    int64_t pairs = 0;
    for (int64_t query = first; query < end; query++)
        pairs += hpa_max(0, hpa_min(key_end, hpa_key_position(s, query) + 1) - key_begin);
    return pairs;
}

/* Pairs of one row when nothing is pruned. */
static int64_t dense_pairs_of_row(const hpa_geometry *g, const hpa_sequence *s, int64_t query_block)
{
    return pairs_of_block(g, s, query_block, 0, s->kv_length);
}

static int64_t kept_pairs_of_row(const hpa_geometry *g, const row_view *r)
{
    int64_t pairs = 0;
    for (int64_t n = 0; n < r->length; n++)
        pairs += pairs_of_block(g, r->sequence, r->query_block,
                                hpa_block_begin(r->blocks[n], g->block_k),
                                hpa_block_end(r->blocks[n], g->block_k, r->sequence->kv_length));
    return pairs;
}

/* The finaliser of splitmix64: every bit of the input reaches every bit of the output. */
static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

/* A sum over kept blocks, so that any backend can add in any order. */
static uint64_t fingerprint_of_row(const row_view *r)
{
    uint64_t key = mix((uint64_t)r->sequence->batch + UINT64_C(0x9e3779b97f4a7c15));
    key = mix(key + (uint64_t)r->mask_head);
    key = mix(key + (uint64_t)r->query_block);
    uint64_t sum = 0;
    for (int64_t n = 0; n < r->length; n++)
        sum += mix(key + (uint64_t)r->blocks[n]);
    return sum;
}

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

hpa_status hpa_mask_statistics(const hpa_plan *plan, const void *mask, hpa_mask_stats *stats,
                               const hpa_exec *exec)
{
    (void)exec;
    HPA_TRY(check_inspect(plan, mask));
    HPA_TRY(hpa_check_pointer("stats", stats));
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

/* A row as it comes from outside: what is wrong with it, in words. */
static hpa_status check_row(const hpa_geometry *g, const row_view *r)
{
    if (r->length < 0 || r->length > g->capacity)
        return hpa_fail(HPA_INVALID_MASK,
                        "sequence %" PRId64 ", mask head %" PRId64 ", query block %" PRId64
                        " keeps %" PRId64 " blocks, expected 0 to %" PRId64,
                        r->sequence->batch, r->mask_head, r->query_block, r->length, g->capacity);
    const int64_t visible = hpa_visible_blocks(g, r->sequence, r->query_block);
    int64_t previous = -1;
    for (int64_t n = 0; n < r->length; n++) {
        if (r->blocks[n] <= previous || r->blocks[n] >= visible)
            return hpa_fail(HPA_INVALID_MASK,
                            "sequence %" PRId64 ", mask head %" PRId64 ", query block %" PRId64
                            ": kept block number %" PRId64 " is %d, expected %" PRId64
                            " to %" PRId64,
                            r->sequence->batch, r->mask_head, r->query_block, n, r->blocks[n],
                            previous + 1, visible - 1);
        previous = r->blocks[n];
    }
    return HPA_OK;
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
            for (int64_t block = 0; block < s.key_blocks; block++)
                HPA_TRY(check_column(g, m, &s, head, block));
    }
    return HPA_OK;
}

hpa_status hpa_mask_validate(const hpa_plan *plan, const void *mask, const hpa_exec *exec)
{
    (void)exec;
    HPA_TRY(check_inspect(plan, mask));
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

hpa_status hpa_mask_export_csr(const hpa_plan *plan, const void *mask, int64_t *row_ptr,
                               int32_t *blocks, int64_t *n_blocks, const hpa_exec *exec)
{
    (void)exec;
    HPA_TRY(check_inspect(plan, mask));
    HPA_TRY(hpa_check_pointer("n_blocks", n_blocks));
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
                const int64_t begin = row_ptr[number], end = row_ptr[number + 1];
                const int64_t row = hpa_row_index(g, &s, head, block);
                if (!m) {
                    const row_view r = {.sequence = &s,
                                        .mask_head = head,
                                        .query_block = block,
                                        .length =
                                            end < begin ? -1 : hpa_min(end - begin, INT32_MAX),
                                        .blocks = blocks + begin};
                    HPA_TRY(check_row(g, &r));
                    continue;
                }
                m->row_length[row] = (int32_t)(end - begin);
                memcpy(m->row_blocks + row * g->capacity, blocks + begin,
                       sizeof(int32_t) * (size_t)(end - begin));
            }
    }
    return HPA_OK;
}

static hpa_status check_import(const hpa_plan *plan, const hpa_inputs *in, const void *mask,
                               const int64_t *row_ptr, const int32_t *blocks)
{
    HPA_TRY(hpa_check_pointer("plan", plan));
    HPA_TRY(hpa_check_mask(plan, mask, false));
    HPA_TRY(hpa_check_pointer("row_ptr", row_ptr));
    HPA_TRY(hpa_check_pointer("blocks", blocks));
    if (plan->geometry.packed) {
        HPA_TRY(hpa_check_pointer("in", in));
        HPA_TRY(hpa_check_pointer("in.cu_seqlens_q", in->cu_seqlens_q));
        HPA_TRY(hpa_check_pointer("in.cu_seqlens_kv", in->cu_seqlens_kv));
        HPA_TRY(hpa_check_lengths(plan, in));
    }
    if (row_ptr[0] != 0)
        return hpa_fail(HPA_INVALID_MASK, "row_ptr[0] is %" PRId64 ", expected 0", row_ptr[0]);
    return read_csr(&plan->geometry, in, row_ptr, blocks, NULL);
}

hpa_status hpa_mask_import_csr(const hpa_plan *plan, const hpa_inputs *in, void *mask,
                               const int64_t *row_ptr, const int32_t *blocks, const hpa_exec *exec)
{
    (void)exec;
    HPA_TRY(check_import(plan, in, mask, row_ptr, blocks));
    const hpa_geometry *g = &plan->geometry;
    hpa_mask m = hpa_mask_at(g, mask);
    hpa_mask_begin(g, in, &m);
    memset(m.row_length, 0, sizeof(int32_t) * (size_t)g->rows);
    HPA_TRY(read_csr(g, in, row_ptr, blocks, &m));
    if (g->training)
        hpa_mask_transpose_cpu(g, &m, plan->num_threads);
    return HPA_OK;
}

/* Drawing */

static char character_of(const hpa_row_sets *sets, bool kept, int64_t block)
{
    if (block >= sets->visible)
        return ' ';
    if (!kept)
        return '.';
    if (block < sets->sink_end)
        return 'S';
    return block >= sets->window_begin && block < sets->window_end ? 'W' : '#';
}

static hpa_status check_snprint(const hpa_plan *plan, const void *mask, int64_t batch, int64_t head,
                                const char *text, size_t size)
{
    HPA_TRY(check_inspect(plan, mask));
    const hpa_geometry *g = &plan->geometry;
    if (batch < 0 || batch >= g->batch)
        return hpa_fail(HPA_INVALID_ARGUMENT, "batch is %" PRId64 ", expected 0 to %" PRId64, batch,
                        g->batch - 1);
    if (head < 0 || head >= g->mask_heads)
        return hpa_fail(HPA_INVALID_ARGUMENT, "head is %" PRId64 ", expected 0 to %" PRId64, head,
                        g->mask_heads - 1);
    if (size > 0)
        HPA_TRY(hpa_check_pointer("text", text));
    return HPA_OK;
}

int hpa_mask_snprint(const hpa_plan *plan, const void *mask, int64_t batch, int64_t head,
                     char *text, size_t size, const hpa_exec *exec)
{
    (void)exec;
    if (check_snprint(plan, mask, batch, head, text, size) != HPA_OK)
        return -1;
    const hpa_geometry *g = &plan->geometry;
    const hpa_mask m = hpa_mask_view_const(g, mask);
    const hpa_sequence s = sequence_of_mask(g, &m, batch);
    const int64_t length = s.query_blocks * (s.key_blocks + 1);
    if (length > INT_MAX) {
        hpa_fail(HPA_INVALID_ARGUMENT, "the drawing has %" PRId64 " characters, more than an int",
                 length);
        return -1;
    }
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
    return (int)length;
}
