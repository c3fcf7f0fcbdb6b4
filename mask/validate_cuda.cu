/* Is a mask in device memory whole? Kernels look at lengths, rows and transpose, and report the
 * first fault of each kind; one more kernel then explains the one that is told. */
#include "mask/inspect_cuda.cuh"

/* The column in a slot, likewise. */
static __device__ bool find_column(const hpa_geometry &g, const hpa_mask &m, int64_t slot,
                                   hpa_sequence *s, int64_t *head, int64_t *block)
{
    int64_t low = 0, high = g.batch - 1;
    while (low < high) { /* the last sequence whose columns begin at or before the slot */
        const int64_t middle = (low + high + 1) / 2;
        const hpa_sequence at = sequence_of(g, m, middle);
        if (g.mask_heads * at.column_start <= slot)
            low = middle;
        else
            high = middle - 1;
    }
    *s = sequence_of(g, m, low);
    const int64_t local = slot - g.mask_heads * s->column_start;
    if (local < 0 || s->column_slots <= 0)
        return false;
    *head = local / s->column_slots;
    *block = local % s->column_slots;
    return *head < g.mask_heads && *block < s->key_blocks;
}

static __global__ void __launch_bounds__(THREADS)
    check_lengths_kernel(hpa_geometry g, const int32_t *cu_seqlens_q, const int32_t *cu_seqlens_kv,
                         report *found)
{
    for (int64_t b = first_of_thread(); b < g.batch; b += thread_count()) {
        const int64_t queries = (int64_t)cu_seqlens_q[b + 1] - cu_seqlens_q[b];
        const int64_t keys = (int64_t)cu_seqlens_kv[b + 1] - cu_seqlens_kv[b];
        const bool sound = queries >= 0 && queries <= g.seq_q && keys >= 0 && keys <= g.seq_kv &&
                           (b > 0 || (cu_seqlens_q[0] == 0 && cu_seqlens_kv[0] == 0)) &&
                           cu_seqlens_q[b + 1] <= g.total_q && cu_seqlens_kv[b + 1] <= g.total_kv;
        if (!sound)
            lower(&found->bad_length, b);
    }
}

hpa_status hpa_inspect_check_lengths(const inspection *x, const int32_t *cu_seqlens_q,
                                     const int32_t *cu_seqlens_kv)
{
    return launch(x, "check_lengths_kernel", check_lengths_kernel, x->g->batch, *x->g, cu_seqlens_q,
                  cu_seqlens_kv, x->s.found);
}

static __global__ void __launch_bounds__(THREADS)
    check_rows_kernel(hpa_geometry g, hpa_mask m, report *found)
{
    if (found->bad_length != NONE)
        return;
    for (int64_t slot = first_of_thread(); slot < g.rows; slot += thread_count()) {
        hpa_sequence s;
        row_view row;
        if (!find_slot(g, m, slot, &s, &row)) {
            if (m.row_length[slot] != 0)
                lower(&found->stray_row, slot);
            continue;
        }
        if (find_row_problem(&g, &row).found)
            lower(&found->bad_row, slot);
        else
            add(&found->total, row.length);
    }
}

/* found->total is complete. */
static __global__ void __launch_bounds__(THREADS)
    check_starts_kernel(hpa_geometry g, hpa_mask m, report *found)
{
    const int64_t total = found->total;
    for (int64_t c = first_of_thread(); c <= g.columns; c += thread_count()) {
        const int64_t start = m.column_start[c];
        const bool sound = c == 0 ? start == 0
                                  : start >= m.column_start[c - 1] && start <= total &&
                                        (c < g.columns || start == total);
        if (!sound)
            lower(&found->bad_start, c);
    }
}

/* The first query block of a column's list that is out of order or does not keep the column's key
 * block; -1 where there is none. */
static __device__ int64_t find_column_problem(const hpa_geometry &g, const hpa_mask &m,
                                              int64_t column, const hpa_sequence &s, int64_t head,
                                              int64_t block, bool *found)
{
    int64_t previous = -1;
    *found = false;
    for (int64_t n = m.column_start[column]; n < m.column_start[column + 1]; n++) {
        const int64_t query_block = m.column_rows[n];
        *found = query_block <= previous || query_block >= s.query_blocks;
        if (!*found) {
            const row_view row = row_at(&g, &m, &s, head, query_block);
            *found = !row_keeps(&row, block);
        }
        if (*found)
            return query_block;
        previous = query_block;
    }
    return -1;
}

static __global__ void __launch_bounds__(THREADS)
    check_columns_kernel(hpa_geometry g, hpa_mask m, report *found)
{
    if (found->bad_length != NONE || found->bad_row != NONE || found->stray_row != NONE ||
        found->bad_start != NONE)
        return;
    for (int64_t c = first_of_thread(); c < g.columns; c += thread_count()) {
        hpa_sequence s;
        int64_t head, block;
        bool bad;
        if (find_column(g, m, c, &s, &head, &block))
            find_column_problem(g, m, c, s, head, block, &bad);
        else
            bad = m.column_start[c + 1] != m.column_start[c];
        if (bad)
            lower(&found->bad_column, c);
    }
}

static __global__ void explain_row_kernel(hpa_geometry g, hpa_mask m, int64_t slot, detail *d)
{
    row_view row;
    *d = {};
    if (!find_slot(g, m, slot, &d->sequence, &row))
        return;
    d->mask_head = row.mask_head;
    d->block = row.query_block;
    d->length = row.length;
    d->problem = find_row_problem(&g, &row);
}

static __global__ void explain_column_kernel(hpa_geometry g, hpa_mask m, int64_t slot, detail *d)
{
    bool bad;
    *d = {};
    if (find_column(g, m, slot, &d->sequence, &d->mask_head, &d->block))
        d->query_block = find_column_problem(g, m, slot, d->sequence, d->mask_head, d->block, &bad);
}

/* Answers with the words for the row, the slot or the column that was found at fault. */

static hpa_status fail_row(const inspection *x, int64_t slot)
{
    HPA_TRY(hpa_cuda_launch("explain_row_kernel", explain_row_kernel, 1, 1, 0, x->stream, *x->g,
                            x->m, slot, x->s.explained));
    detail d;
    HPA_TRY(to_host(x, &d, x->s.explained, sizeof d));
    row_view row = {};
    row.sequence = &d.sequence;
    row.mask_head = d.mask_head;
    row.query_block = d.block;
    row.length = d.length;
    return hpa_mask_fail_row(&row, &d.problem);
}

static hpa_status fail_column(const inspection *x, int64_t slot)
{
    HPA_TRY(hpa_cuda_launch("explain_column_kernel", explain_column_kernel, 1, 1, 0, x->stream,
                            *x->g, x->m, slot, x->s.explained));
    detail d;
    HPA_TRY(to_host(x, &d, x->s.explained, sizeof d));
    return hpa_fail(HPA_INVALID_MASK,
                    "sequence %" PRId64 ", mask head %" PRId64 ", key block %" PRId64
                    ": the transpose names query block %" PRId64
                    ", which does not keep it or is out of order",
                    d.sequence.batch, d.mask_head, d.block, d.query_block);
}

static hpa_status fail_start(const inspection *x, int64_t column, int64_t total)
{
    int64_t start;
    HPA_TRY(to_host(x, &start, x->m.column_start + column, sizeof start));
    return hpa_fail(HPA_INVALID_MASK,
                    "column %" PRId64 " of the transpose begins at %" PRId64
                    ", out of order or outside 0 to %" PRId64,
                    column, start, total);
}

static hpa_status check_mask(const inspection *x)
{
    HPA_TRY(hpa_inspect_check_header(x));
    HPA_TRY(hpa_inspect_begin_report(x));
    if (x->g->packed)
        HPA_TRY(hpa_inspect_check_lengths(x, x->m.cu_seqlens_q, x->m.cu_seqlens_kv));
    HPA_TRY(launch(x, "check_rows_kernel", check_rows_kernel, x->g->rows, *x->g, x->m, x->s.found));
    if (x->g->training) {
        HPA_TRY(launch(x, "check_starts_kernel", check_starts_kernel, x->g->columns + 1, *x->g,
                       x->m, x->s.found));
        HPA_TRY(launch(x, "check_columns_kernel", check_columns_kernel, x->g->columns, *x->g, x->m,
                       x->s.found));
    }
    report found;
    HPA_TRY(to_host(x, &found, x->s.found, sizeof found));
    if (found.bad_length != NONE)
        return hpa_fail(HPA_INVALID_MASK, "the mask's own lengths are damaged");
    if (found.bad_row != NONE)
        return fail_row(x, found.bad_row);
    if (found.stray_row != NONE)
        return hpa_fail(HPA_INVALID_MASK,
                        "mask row %" PRId64 " keeps blocks for a query block past its sequence's "
                        "end",
                        found.stray_row);
    if (found.bad_start != NONE)
        return fail_start(x, found.bad_start, found.total);
    return found.bad_column != NONE ? fail_column(x, found.bad_column) : HPA_OK;
}

hpa_status hpa_mask_validate_cuda(const hpa_plan *plan, const void *mask, const hpa_exec *exec)
{
    inspection x;
    HPA_TRY(hpa_inspect_begin(&x, plan, mask, exec));
    return hpa_cuda_leave(x.device_before, check_mask(&x));
}
