/* Looking into a mask in device memory: statistics and drawing. validate_cuda.cu and csr_cuda.cu
 * have the rest. */
#include "core/cuda/scan.h"
#include "mask/inspect_cuda.cuh"

static inspect_scratch take_scratch(const hpa_geometry *g, hpa_arena *arena)
{
    const int64_t longest = hpa_max(hpa_max(g->rows, g->columns), g->batch) + 1;
    inspect_scratch s = {};
    s.found = HPA_ARENA_ARRAY(arena, report, 1);
    s.explained = HPA_ARENA_ARRAY(arena, detail, 1);
    s.row_offsets = HPA_ARENA_ARRAY(arena, int64_t, g->rows + 1);
    s.csr_offsets = HPA_ARENA_ARRAY(arena, int64_t, g->rows + 1);
    s.sequence_rows = HPA_ARENA_ARRAY(arena, int64_t, g->batch + 1);
    s.column_counts = HPA_ARENA_ARRAY(arena, int64_t, g->training ? 0 : g->columns + 1);
    s.scan = HPA_ARENA_ARRAY(arena, int64_t, hpa_cuda_scan_scratch(longest));
    s.piece = HPA_ARENA_ARRAY(arena, int32_t, PIECE + 1);
    return s;
}

size_t hpa_mask_inspect_cuda_bytes(const hpa_geometry *g)
{
    hpa_arena arena = {};
    take_scratch(g, &arena);
    return arena.used;
}

hpa_status hpa_inspect_begin(inspection *x, const hpa_plan *plan, const void *mask,
                             const hpa_exec *exec)
{
    hpa_arena arena = {};
    arena.base = (unsigned char *)exec->scratch;
    x->plan = plan;
    x->g = &plan->geometry;
    x->m = hpa_mask_view_const(&plan->geometry, mask);
    x->s = take_scratch(&plan->geometry, &arena);
    x->stream = hpa_cuda_stream(exec);
    return hpa_cuda_enter(plan->cuda.id, &x->device_before);
}

hpa_status hpa_inspect_check_header(const inspection *x)
{
    hpa_mask_header header;
    HPA_TRY(to_host(x, &header, x->m.header, sizeof header));
    return hpa_check_header(x->plan, &header);
}

static __global__ void inspect_begin_kernel(report *found)
{
    *found = {};
    found->stats.row_min = NONE;
    found->bad_length = found->bad_row = found->stray_row = NONE;
    found->bad_start = found->bad_column = NONE;
}

hpa_status hpa_inspect_begin_report(const inspection *x)
{
    return hpa_cuda_launch("inspect_begin_kernel", inspect_begin_kernel, 1, 1, 0, x->stream,
                           x->s.found);
}

/* Statistics */

static __global__ void __launch_bounds__(THREADS)
    mask_statistics_kernel(hpa_geometry g, hpa_mask m, report *found)
{
    hpa_mask_stats mine = {};
    int64_t kept = 0, dense = 0;
    mine.row_min = NONE;
    for (int64_t slot = first_of_thread(); slot < g.rows; slot += thread_count()) {
        hpa_sequence s;
        row_view row;
        if (!find_slot(g, m, slot, &s, &row))
            continue;
        row.length = hpa_max(0, hpa_min(row.length, g.capacity));
        mine.rows++;
        mine.blocks += row.length;
        mine.empty_rows += row.length == 0;
        mine.row_min = hpa_min(mine.row_min, row.length);
        mine.row_max = hpa_max(mine.row_max, row.length);
        mine.fingerprint += fingerprint_of_row(&row);
        kept += kept_pairs_of_row(&g, &row);
        dense += dense_pairs_of_row(&g, &s, row.query_block);
    }
    add(&found->stats.rows, mine.rows);
    add(&found->stats.blocks, mine.blocks);
    add(&found->stats.empty_rows, mine.empty_rows);
    add(&found->stats.fingerprint, (int64_t)mine.fingerprint);
    lower(&found->stats.row_min, mine.row_min);
    raise(&found->stats.row_max, mine.row_max);
    add(&found->kept_pairs, kept);
    add(&found->dense_pairs, dense);
}

/* ends: column c has ends[c + 1] - ends[c] rows; else counts[c]. */
static __global__ void __launch_bounds__(THREADS)
    mask_longest_column_kernel(int64_t columns, const int64_t *starts, const int64_t *counts,
                               report *found)
{
    int64_t longest = 0;
    for (int64_t c = first_of_thread(); c < columns; c += thread_count())
        longest = hpa_max(longest, counts ? counts[c] : starts[c + 1] - starts[c]);
    raise(&found->stats.column_max, longest);
}

static hpa_status count_statistics(const inspection *x, hpa_mask_stats *stats)
{
    HPA_TRY(hpa_inspect_check_header(x));
    HPA_TRY(hpa_inspect_begin_report(x));
    HPA_TRY(launch(x, "mask_statistics_kernel", mask_statistics_kernel, x->g->rows, *x->g, x->m,
                   x->s.found));
    const int64_t *counts = nullptr;
    if (!x->g->training) {
        HPA_TRY(hpa_mask_count_columns_cuda(x->g, &x->m, x->s.column_counts, x->stream));
        counts = x->s.column_counts;
    }
    HPA_TRY(launch(x, "mask_longest_column_kernel", mask_longest_column_kernel, x->g->columns,
                   x->g->columns, (const int64_t *)x->m.column_start, counts, x->s.found));
    report found;
    HPA_TRY(to_host(x, &found, x->s.found, sizeof found));
    *stats = found.stats;
    if (stats->rows == 0)
        stats->row_min = 0;
    stats->density =
        found.dense_pairs > 0 ? (double)found.kept_pairs / (double)found.dense_pairs : 0;
    return HPA_OK;
}

static hpa_status statistics(const hpa_plan *plan, const void *mask, hpa_mask_stats *stats,
                             const hpa_exec *exec)
{
    inspection x;
    HPA_TRY(hpa_inspect_begin(&x, plan, mask, exec));
    return hpa_cuda_leave(x.device_before, count_statistics(&x, stats));
}

/* Drawing */

/* piece[n] = character first + n of the drawing: lines of key_blocks characters and a line end */
static __global__ void __launch_bounds__(THREADS)
    draw_kernel(hpa_geometry g, hpa_mask m, int64_t batch, int64_t head, int64_t first,
                int64_t count, char *piece)
{
    const hpa_sequence s = sequence_of(g, m, batch);
    for (int64_t n = first_of_thread(); n < count; n += thread_count()) {
        const int64_t query_block = (first + n) / (s.key_blocks + 1);
        const int64_t block = (first + n) % (s.key_blocks + 1);
        row_view row = row_at(&g, &m, &s, head, query_block);
        row.length = hpa_max(0, hpa_min(row.length, g.capacity));
        const hpa_row_sets sets = hpa_row_sets_of(&g, &s, query_block);
        piece[n] =
            block == s.key_blocks ? '\n' : character_of(&sets, row_keeps(&row, block), block);
    }
}

static __global__ void explain_sequence_kernel(hpa_geometry g, hpa_mask m, int64_t batch, detail *d)
{
    d->sequence = sequence_of(g, m, batch);
}

/* *length: of the whole text */
static hpa_status draw_rows(const inspection *x, int64_t batch, int64_t head, char *text,
                            size_t size, int *length)
{
    HPA_TRY(hpa_inspect_check_header(x));
    HPA_TRY(hpa_cuda_launch("explain_sequence_kernel", explain_sequence_kernel, 1, 1, 0, x->stream,
                            *x->g, x->m, batch, x->s.explained));
    detail d;
    HPA_TRY(to_host(x, &d, x->s.explained, sizeof d));
    *length = hpa_mask_text_length(&d.sequence);
    if (*length < 0)
        return HPA_INVALID_ARGUMENT;
    if (size == 0)
        return HPA_OK;
    const int64_t wanted = hpa_min(*length, (int64_t)size - 1);
    char *piece = reinterpret_cast<char *>(x->s.piece);
    for (int64_t first = 0; first < wanted; first += PIECE) {
        const int64_t count = hpa_min(PIECE, wanted - first);
        HPA_TRY(launch(x, "draw_kernel", draw_kernel, count, *x->g, x->m, batch, head, first, count,
                       piece));
        HPA_TRY(to_host(x, text + first, piece, (size_t)count));
    }
    text[wanted] = '\0';
    return HPA_OK;
}

static int draw(const hpa_plan *plan, const void *mask, int64_t batch, int64_t head, char *text,
                size_t size, const hpa_exec *exec)
{
    inspection x;
    int length = -1;
    if (hpa_inspect_begin(&x, plan, mask, exec) != HPA_OK)
        return -1;
    const hpa_status status = draw_rows(&x, batch, head, text, size, &length);
    return hpa_cuda_leave(x.device_before, status) == HPA_OK ? length : -1;
}

const hpa_mask_inspector hpa_mask_inspect_cuda = {
    .statistics = statistics,
    .validate = hpa_mask_validate_cuda,
    .export_csr = hpa_mask_export_csr_cuda,
    .import_csr = hpa_mask_import_csr_cuda,
    .snprint = draw,
};
