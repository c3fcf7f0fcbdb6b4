/* Masks in device memory as compressed sparse rows, out and in, one piece after another. A CSR row
 * is a row that a sequence has, numbered without the slots that none fills. */
#include "core/cuda/scan.h"
#include "mask/inspect_cuda.cuh"

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
    HPA_TRY(hpa_inspect_check_header(x));
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

hpa_status hpa_mask_export_csr_cuda(const hpa_plan *plan, const void *mask, int64_t *row_ptr,
                                    int32_t *blocks, int64_t *n_blocks, const hpa_exec *exec)
{
    inspection x;
    HPA_TRY(hpa_inspect_begin(&x, plan, mask, exec));
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
    HPA_TRY(hpa_inspect_begin_report(x));
    HPA_TRY(hpa_inspect_check_lengths(x, in->cu_seqlens_q, in->cu_seqlens_kv));
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
    HPA_TRY(hpa_inspect_begin_report(x));
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

hpa_status hpa_mask_import_csr_cuda(const hpa_plan *plan, const hpa_inputs *in, void *mask,
                                    const int64_t *row_ptr, const int32_t *blocks,
                                    const hpa_exec *exec)
{
    inspection x;
    HPA_TRY(hpa_inspect_begin(&x, plan, mask, exec));
    return hpa_cuda_leave(x.device_before, import_rows(&x, in, row_ptr, blocks));
}
