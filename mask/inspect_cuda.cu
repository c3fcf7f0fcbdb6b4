/* Looking into a mask in device memory. Kernels leave what was asked for in scratch, from where
 * little or one piece after another is copied to the host; nothing is allocated. */
#include "core/check.h"
#include "core/cuda/rows.cuh"
#include "core/cuda/scan.h"
#include "mask/inspect.h"
#include "mask/kernels_cuda.h"

#include <inttypes.h>
#include <limits.h>

#define THREADS 256
#define MOST_BLOCKS 1024 /* grids that stride over the rest */
#define PIECE (1 << 18)  /* elements of a list or a drawing that are copied at a time */
#define NONE INT64_MAX   /* as the number of the first row or column with a fault */

/* What kernels report. */
struct report {
    hpa_mask_stats stats;
    int64_t kept_pairs, dense_pairs;
    int64_t bad_length;         /* the first sequence whose lengths are damaged */
    int64_t bad_row, stray_row; /* the first row with a fault; not empty though no query block */
    int64_t bad_start, bad_column;
    int64_t total; /* kept blocks */
};

/* One row, column or sequence in detail. */
struct detail {
    hpa_sequence sequence;
    int64_t mask_head, block; /* query block of a row, key block of a column */
    int64_t query_block;      /* the first wrong entry of a column */
    row_problem problem;
    int64_t length;
};

/* Parts of the scratch. */
struct inspect_scratch {
    report *found;
    detail *explained;
    int64_t *row_offsets;   /* [rows + 1] */
    int64_t *csr_offsets;   /* [rows + 1] */
    int64_t *sequence_rows; /* [batch + 1] */
    int64_t *column_counts; /* [columns + 1] */
    int64_t *scan;
    int32_t *piece; /* [PIECE + 1] */
};

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

/* What every call here has in hand. */
struct inspection {
    const hpa_plan *plan;
    const hpa_geometry *g;
    hpa_mask m;
    inspect_scratch s;
    cudaStream_t stream;
    int32_t device_before;
};

static hpa_status to_host(const inspection *x, void *to, const void *from, size_t bytes)
{
    HPA_CUDA_TRY(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, x->stream));
    return hpa_cuda_status(cudaStreamSynchronize(x->stream), "cudaStreamSynchronize");
}

static hpa_status to_device(const inspection *x, void *to, const void *from, size_t bytes)
{
    return hpa_cuda_status(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, x->stream),
                           "cudaMemcpyAsync");
}

static hpa_status begin(inspection *x, const hpa_plan *plan, const void *mask, const hpa_exec *exec)
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

static hpa_status check_header(const inspection *x)
{
    hpa_mask_header header;
    HPA_TRY(to_host(x, &header, x->m.header, sizeof header));
    return hpa_check_header(x->plan, &header);
}

template <typename... Parameters, typename... Arguments>
static hpa_status launch(const inspection *x, const char *name, void (*kernel)(Parameters...),
                         int64_t work, Arguments &&...arguments)
{
    const int64_t blocks = hpa_min(hpa_ceil_div(work, THREADS), MOST_BLOCKS);
    return hpa_cuda_launch(name, kernel, dim3((unsigned)blocks), THREADS, 0, x->stream,
                           std::forward<Arguments>(arguments)...);
}

/* Walking */

static __device__ __forceinline__ int64_t first_of_thread()
{
    return (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
}

static __device__ __forceinline__ int64_t thread_count()
{
    return (int64_t)gridDim.x * blockDim.x;
}

/* The row in a slot; false where the slot has none. *s is what row->sequence points at. */
static __device__ bool find_slot(const hpa_geometry &g, const hpa_mask &m, int64_t slot,
                                 hpa_sequence *s, row_view *row)
{
    *s = sequence_of(g, m, hpa_batch_of_row(&g, m.cu_seqlens_q, slot));
    const int64_t local = slot - g.mask_heads * s->row_start;
    if (local < 0 || s->row_slots <= 0)
        return false;
    const int64_t head = local / s->row_slots, query_block = local % s->row_slots;
    if (head >= g.mask_heads || query_block >= s->query_blocks)
        return false;
    *row = row_at(&g, &m, s, head, query_block);
    return true;
}

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

static __device__ __forceinline__ void add(void *to, int64_t value)
{
    if (value != 0)
        atomicAdd(static_cast<unsigned long long *>(to), (unsigned long long)value);
}

static __device__ __forceinline__ void lower(int64_t *to, int64_t value)
{
    atomicMin(reinterpret_cast<long long *>(to), (long long)value);
}

static __device__ __forceinline__ void raise(int64_t *to, int64_t value)
{
    atomicMax(reinterpret_cast<long long *>(to), (long long)value);
}

static __global__ void inspect_begin_kernel(report *found)
{
    *found = {};
    found->stats.row_min = NONE;
    found->bad_length = found->bad_row = found->stray_row = NONE;
    found->bad_start = found->bad_column = NONE;
}

static hpa_status begin_report(const inspection *x)
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
    HPA_TRY(check_header(x));
    HPA_TRY(begin_report(x));
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
    HPA_TRY(begin(&x, plan, mask, exec));
    return hpa_cuda_leave(x.device_before, count_statistics(&x, stats));
}

/* Validation */

/* bad_length: the first sequence that is longer than the plan allows, or ends before it begins. */
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
    HPA_TRY(check_header(x));
    HPA_TRY(begin_report(x));
    if (x->g->packed)
        HPA_TRY(launch(x, "check_lengths_kernel", check_lengths_kernel, x->g->batch, *x->g,
                       (const int32_t *)x->m.cu_seqlens_q, (const int32_t *)x->m.cu_seqlens_kv,
                       x->s.found));
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

static hpa_status validate(const hpa_plan *plan, const void *mask, const hpa_exec *exec)
{
    inspection x;
    HPA_TRY(begin(&x, plan, mask, exec));
    return hpa_cuda_leave(x.device_before, check_mask(&x));
}

/* Exchange. A CSR row is a row that a sequence has, numbered without the slots that none fills. */

/* sequence_rows[b] = rows of sequence b */
static __global__ void __launch_bounds__(THREADS)
    count_sequence_rows_kernel(hpa_geometry g, hpa_mask lengths, int64_t *sequence_rows)
{
    for (int64_t b = first_of_thread(); b < g.batch; b += thread_count())
        sequence_rows[b] = g.mask_heads * sequence_of(g, lengths, b).query_blocks;
}

/* CSR rows in all. When packed it leaves their running sums in sequence_rows and waits for them.
 * lengths: a mask, or just its cu_seqlens. */
static hpa_status count_csr_rows(const inspection *x, const hpa_mask *lengths, int64_t *rows)
{
    *rows = x->g->rows;
    if (!x->g->packed)
        return HPA_OK;
    HPA_TRY(launch(x, "count_sequence_rows_kernel", count_sequence_rows_kernel, x->g->batch, *x->g,
                   *lengths, x->s.sequence_rows));
    HPA_TRY(hpa_cuda_inclusive_sum(x->s.sequence_rows, x->g->batch, x->s.scan, x->stream));
    return to_host(x, rows, x->s.sequence_rows + x->g->batch - 1, sizeof *rows);
}

/* First i with ends[i] > value, ends ascending. */
static __device__ int64_t upper_bound(const int64_t *ends, int64_t n, int64_t value)
{
    int64_t low = 0, high = n;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (ends[middle] <= value)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Sequence, head and query block of a CSR row, and the slot that it has. */
static __device__ int64_t slot_of_csr_row(const hpa_geometry &g, const hpa_mask &lengths,
                                          const int64_t *sequence_rows, int64_t number,
                                          hpa_sequence *s, int64_t *head, int64_t *query_block)
{
    int64_t batch, local;
    if (g.packed) {
        batch = upper_bound(sequence_rows, g.batch, number);
        local = number - (batch > 0 ? sequence_rows[batch - 1] : 0);
    } else {
        const int64_t each = g.rows / g.batch;
        batch = number / each;
        local = number % each;
    }
    *s = sequence_of(g, lengths, batch);
    *head = local / s->query_blocks;
    *query_block = local % s->query_blocks;
    return hpa_row_index(&g, s, *head, *query_block);
}

static __global__ void __launch_bounds__(THREADS)
    row_lengths_kernel(hpa_geometry g, hpa_mask m, int64_t *lengths)
{
    for (int64_t slot = first_of_thread(); slot < g.rows; slot += thread_count())
        lengths[slot] = hpa_max(0, hpa_min(m.row_length[slot], g.capacity));
}

/* csr_offsets[number] = where CSR row `number` ends */
static __global__ void __launch_bounds__(THREADS)
    csr_offsets_kernel(hpa_geometry g, hpa_mask m, const int64_t *sequence_rows, int64_t rows,
                       const int64_t *row_offsets, int64_t *csr_offsets)
{
    for (int64_t number = first_of_thread(); number < rows; number += thread_count()) {
        hpa_sequence s;
        int64_t head, query_block;
        csr_offsets[number] =
            row_offsets[slot_of_csr_row(g, m, sequence_rows, number, &s, &head, &query_block)];
    }
}

/* piece[n] = kept block number first + n of the mask; row_offsets: where each slot ends */
static __global__ void __launch_bounds__(THREADS)
    gather_blocks_kernel(hpa_geometry g, hpa_mask m, const int64_t *row_offsets, int64_t first,
                         int64_t count, int32_t *piece)
{
    for (int64_t n = first_of_thread(); n < count; n += thread_count()) {
        const int64_t slot = upper_bound(row_offsets, g.rows, first + n);
        const int64_t begin = slot > 0 ? row_offsets[slot - 1] : 0;
        piece[n] = m.row_blocks[slot * g.capacity + first + n - begin];
    }
}

static hpa_status export_row_ptr(const inspection *x, int64_t *row_ptr)
{
    int64_t rows;
    HPA_TRY(count_csr_rows(x, &x->m, &rows));
    row_ptr[0] = 0;
    if (rows == 0)
        return HPA_OK;
    HPA_TRY(launch(x, "csr_offsets_kernel", csr_offsets_kernel, rows, *x->g, x->m,
                   (const int64_t *)x->s.sequence_rows, rows, (const int64_t *)x->s.row_offsets,
                   x->s.csr_offsets));
    return to_host(x, row_ptr + 1, x->s.csr_offsets, (size_t)rows * sizeof(int64_t));
}

static hpa_status export_rows(const inspection *x, int64_t *row_ptr, int32_t *blocks,
                              int64_t *n_blocks)
{
    HPA_TRY(check_header(x));
    const int64_t room = *n_blocks;
    int64_t total = 0;
    HPA_TRY(launch(x, "row_lengths_kernel", row_lengths_kernel, x->g->rows, *x->g, x->m,
                   x->s.row_offsets));
    HPA_TRY(hpa_cuda_inclusive_sum(x->s.row_offsets, x->g->rows, x->s.scan, x->stream));
    if (x->g->rows > 0)
        HPA_TRY(to_host(x, &total, x->s.row_offsets + x->g->rows - 1, sizeof total));
    *n_blocks = total;
    if (blocks && room < total)
        return hpa_fail(HPA_BUFFER_TOO_SMALL,
                        "*n_blocks is %" PRId64 ", expected at least %" PRId64, room, total);
    if (row_ptr)
        HPA_TRY(export_row_ptr(x, row_ptr));
    for (int64_t first = 0; blocks && first < total; first += PIECE) {
        const int64_t count = hpa_min(PIECE, total - first);
        HPA_TRY(launch(x, "gather_blocks_kernel", gather_blocks_kernel, count, *x->g, x->m,
                       (const int64_t *)x->s.row_offsets, first, count, x->s.piece));
        HPA_TRY(to_host(x, blocks + first, x->s.piece, (size_t)count * sizeof(int32_t)));
    }
    return HPA_OK;
}

static hpa_status export_csr(const hpa_plan *plan, const void *mask, int64_t *row_ptr,
                             int32_t *blocks, int64_t *n_blocks, const hpa_exec *exec)
{
    inspection x;
    HPA_TRY(begin(&x, plan, mask, exec));
    return hpa_cuda_leave(x.device_before, export_rows(&x, row_ptr, blocks, n_blocks));
}

/* A CSR mask on its way in. */
struct csr_view {
    hpa_mask lengths; /* cu_seqlens only */
    int64_t rows, blocks;
    const int64_t *row_ptr; /* on the device: where each row ends */
};

/* bad_row: the first CSR row with a wrong block among those in the piece. piece[n] is block number
 * first + n, and piece[-1] the one before it. */
static __global__ void __launch_bounds__(THREADS)
    check_csr_kernel(hpa_geometry g, csr_view csr, const int64_t *sequence_rows, int64_t first,
                     int64_t count, const int32_t *piece, report *found)
{
    for (int64_t n = first_of_thread(); n < count; n += thread_count()) {
        const int64_t number = upper_bound(csr.row_ptr, csr.rows, first + n);
        const int64_t begin = number > 0 ? csr.row_ptr[number - 1] : 0;
        hpa_sequence s;
        int64_t head, query_block;
        slot_of_csr_row(g, csr.lengths, sequence_rows, number, &s, &head, &query_block);
        const int64_t previous = first + n > begin ? piece[n - 1] : -1;
        if (piece[n] <= previous || piece[n] >= hpa_visible_blocks(&g, &s, query_block))
            lower(&found->bad_row, number);
    }
}

static __global__ void __launch_bounds__(THREADS)
    write_csr_kernel(hpa_geometry g, csr_view csr, const int64_t *sequence_rows, int64_t first,
                     int64_t count, const int32_t *piece, hpa_mask m)
{
    for (int64_t n = first_of_thread(); n < count; n += thread_count()) {
        const int64_t number = upper_bound(csr.row_ptr, csr.rows, first + n);
        const int64_t begin = number > 0 ? csr.row_ptr[number - 1] : 0;
        hpa_sequence s;
        int64_t head, query_block;
        const int64_t slot =
            slot_of_csr_row(g, csr.lengths, sequence_rows, number, &s, &head, &query_block);
        m.row_blocks[slot * g.capacity + first + n - begin] = piece[n];
    }
}

static __global__ void __launch_bounds__(THREADS)
    write_csr_lengths_kernel(hpa_geometry g, csr_view csr, const int64_t *sequence_rows, hpa_mask m)
{
    for (int64_t number = first_of_thread(); number < csr.rows; number += thread_count()) {
        hpa_sequence s;
        int64_t head, query_block;
        const int64_t slot =
            slot_of_csr_row(g, csr.lengths, sequence_rows, number, &s, &head, &query_block);
        m.row_length[slot] =
            (int32_t)(csr.row_ptr[number] - (number > 0 ? csr.row_ptr[number - 1] : 0));
    }
}

static __global__ void explain_csr_row_kernel(hpa_geometry g, csr_view csr,
                                              const int64_t *sequence_rows, int64_t number,
                                              detail *d)
{
    *d = {};
    slot_of_csr_row(g, csr.lengths, sequence_rows, number, &d->sequence, &d->mask_head, &d->block);
}

static hpa_status fail_csr_row(const inspection *x, const csr_view *csr, int64_t number,
                               const int64_t *row_ptr, const int32_t *blocks)
{
    HPA_TRY(hpa_cuda_launch("explain_csr_row_kernel", explain_csr_row_kernel, 1, 1, 0, x->stream,
                            *x->g, *csr, (const int64_t *)x->s.sequence_rows, number,
                            x->s.explained));
    detail d;
    HPA_TRY(to_host(x, &d, x->s.explained, sizeof d));
    const int64_t begin = row_ptr[number], end = row_ptr[number + 1];
    row_view row = {};
    row.sequence = &d.sequence;
    row.mask_head = d.mask_head;
    row.query_block = d.block;
    row.length = end < begin ? -1 : hpa_min(end - begin, INT32_MAX);
    row.blocks = blocks + begin;
    const row_problem problem = find_row_problem(x->g, &row);
    return hpa_mask_fail_row(&row, &problem);
}

static hpa_status check_import_lengths(const inspection *x, const hpa_inputs *in)
{
    HPA_TRY(begin_report(x));
    HPA_TRY(launch(x, "check_lengths_kernel", check_lengths_kernel, x->g->batch, *x->g,
                   in->cu_seqlens_q, in->cu_seqlens_kv, x->s.found));
    report found;
    HPA_TRY(to_host(x, &found, x->s.found, sizeof found));
    if (found.bad_length == NONE)
        return HPA_OK;
    int32_t q[2], kv[2];
    HPA_TRY(to_host(x, q, in->cu_seqlens_q + found.bad_length, sizeof q));
    HPA_TRY(to_host(x, kv, in->cu_seqlens_kv + found.bad_length, sizeof kv));
    return hpa_fail(HPA_INVALID_ARGUMENT,
                    "in.cu_seqlens_q has sequence %" PRId64 " from %d to %d and in.cu_seqlens_kv "
                    "from %d to %d, expected lengths 0 to %" PRId64 " and 0 to %" PRId64
                    " within %" PRId64 " and %" PRId64 " rows",
                    found.bad_length, q[0], q[1], kv[0], kv[1], x->g->seq_q, x->g->seq_kv,
                    x->g->total_q, x->g->total_kv);
}

/* Checks where the rows begin and end, on the host, and brings the ends to the device. */
static hpa_status check_row_ptr(const inspection *x, csr_view *csr, const int64_t *row_ptr,
                                const int32_t *blocks)
{
    if (row_ptr[0] != 0)
        return hpa_fail(HPA_INVALID_MASK, "row_ptr[0] is %" PRId64 ", expected 0", row_ptr[0]);
    for (int64_t number = 0; number < csr->rows; number++) {
        const int64_t begin = row_ptr[number], end = row_ptr[number + 1];
        if (end < begin || end - begin > x->g->capacity)
            return fail_csr_row(x, csr, number, row_ptr, blocks);
    }
    csr->blocks = row_ptr[csr->rows];
    if (csr->blocks > 0) /* else it may be NULL */
        HPA_TRY(hpa_check_pointer("blocks", blocks));
    csr->row_ptr = x->s.row_offsets;
    return to_device(x, x->s.row_offsets, row_ptr + 1, (size_t)csr->rows * sizeof(int64_t));
}

/* Brings blocks first ... first + count - 1 to *piece, with the one before them. */
static hpa_status bring_piece(const inspection *x, const int32_t *blocks, int64_t first,
                              int64_t count, const int32_t **piece)
{
    const int64_t extra = first > 0;
    *piece = x->s.piece + extra;
    return to_device(x, x->s.piece, blocks + first - extra,
                     (size_t)(count + extra) * sizeof(int32_t));
}

static hpa_status check_csr(const inspection *x, csr_view *csr, const int64_t *row_ptr,
                            const int32_t *blocks)
{
    HPA_TRY(check_row_ptr(x, csr, row_ptr, blocks));
    HPA_TRY(begin_report(x));
    for (int64_t first = 0; first < csr->blocks; first += PIECE) {
        const int64_t count = hpa_min(PIECE, csr->blocks - first);
        const int32_t *piece;
        HPA_TRY(bring_piece(x, blocks, first, count, &piece));
        HPA_TRY(launch(x, "check_csr_kernel", check_csr_kernel, count, *x->g, *csr,
                       (const int64_t *)x->s.sequence_rows, first, count, piece, x->s.found));
    }
    report found;
    HPA_TRY(to_host(x, &found, x->s.found, sizeof found));
    return found.bad_row == NONE ? HPA_OK : fail_csr_row(x, csr, found.bad_row, row_ptr, blocks);
}

static hpa_status write_csr(const inspection *x, const csr_view *csr, const int32_t *blocks)
{
    const int64_t *sequence_rows = x->s.sequence_rows;
    HPA_CUDA_TRY(
        cudaMemsetAsync(x->m.row_length, 0, (size_t)x->g->rows * sizeof(int32_t), x->stream));
    HPA_TRY(launch(x, "write_csr_lengths_kernel", write_csr_lengths_kernel, csr->rows, *x->g, *csr,
                   sequence_rows, x->m));
    for (int64_t first = 0; first < csr->blocks; first += PIECE) {
        const int64_t count = hpa_min(PIECE, csr->blocks - first);
        const int32_t *piece;
        HPA_TRY(bring_piece(x, blocks, first, count, &piece));
        HPA_TRY(launch(x, "write_csr_kernel", write_csr_kernel, count, *x->g, *csr, sequence_rows,
                       first, count, piece, x->m));
    }
    return HPA_OK;
}

static hpa_status import_rows(const inspection *x, const hpa_inputs *in, const int64_t *row_ptr,
                              const int32_t *blocks)
{
    csr_view csr = {};
    if (x->g->packed) {
        HPA_TRY(check_import_lengths(x, in));
        csr.lengths.cu_seqlens_q = const_cast<int32_t *>(in->cu_seqlens_q);
        csr.lengths.cu_seqlens_kv = const_cast<int32_t *>(in->cu_seqlens_kv);
    }
    HPA_TRY(count_csr_rows(x, &csr.lengths, &csr.rows));
    HPA_TRY(check_csr(x, &csr, row_ptr, blocks));
    HPA_TRY(hpa_mask_begin_cuda(x->g, in, &x->m, x->stream));
    HPA_TRY(write_csr(x, &csr, blocks));
    if (x->g->training)
        HPA_TRY(hpa_mask_transpose_cuda(x->g, &x->m, x->s.scan, x->stream));
    return hpa_cuda_status(cudaStreamSynchronize(x->stream), "hpa_mask_import_csr");
}

static hpa_status import_csr(const hpa_plan *plan, const hpa_inputs *in, void *mask,
                             const int64_t *row_ptr, const int32_t *blocks, const hpa_exec *exec)
{
    inspection x;
    HPA_TRY(begin(&x, plan, mask, exec));
    return hpa_cuda_leave(x.device_before, import_rows(&x, in, row_ptr, blocks));
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
    HPA_TRY(check_header(x));
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
    if (begin(&x, plan, mask, exec) != HPA_OK)
        return -1;
    const hpa_status status = draw_rows(&x, batch, head, text, size, &length);
    return hpa_cuda_leave(x.device_before, status) == HPA_OK ? length : -1;
}

const hpa_mask_inspector hpa_mask_inspect_cuda = {
    .statistics = statistics,
    .validate = validate,
    .export_csr = export_csr,
    .import_csr = import_csr,
    .snprint = draw,
};
