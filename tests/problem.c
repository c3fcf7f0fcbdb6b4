#include "problem.h"

#include <inttypes.h>

enum { FILL = 0xff };

/* Shapes and strides */

/* Extents of a tensor of the problem, dim being 1 for lse, and where its elements lie. */
typedef struct placing {
    int64_t batch, heads, length, dim;
    int64_t batch_stride, head_stride, token_stride;
    int64_t offset, elements; /* of the view's start; of the whole buffer */
} placing;

static placing place(const test_problem *p, test_layout layout, bool of_queries, bool has_dim)
{
    const hpa_desc *d = &p->desc;
    placing s = {.batch = d->packed ? 1 : d->batch,
                 .heads = of_queries ? d->heads_q : d->heads_kv,
                 .dim = has_dim ? d->head_dim : 1};
    s.length =
        of_queries ? (d->packed ? d->total_q : d->seq_q) : (d->packed ? d->total_kv : d->seq_kv);
    switch (layout) {
    case TEST_BHSD:
        s.token_stride = s.dim;
        s.head_stride = s.length * s.dim;
        s.batch_stride = s.heads * s.head_stride;
        break;
    case TEST_PADDED:
        s.token_stride = s.dim + (has_dim ? 3 : 0);
        s.head_stride = s.length * s.token_stride + 5;
        s.batch_stride = s.heads * s.head_stride + 7;
        s.offset = 1;
        break;
    default:
        s.head_stride = s.dim;
        s.token_stride = s.heads * s.dim;
        s.batch_stride = s.length * s.token_stride;
    }
    s.elements = s.offset + s.batch * s.batch_stride;
    return s;
}

static hpa_tensor view_of(const test_problem *p, const placing *s, hpa_dtype dtype, bool has_dim)
{
    hpa_tensor t = {.dtype = dtype};
    if (p->desc.packed) {
        t.shape[0] = s->length;
        t.stride[0] = s->token_stride;
        t.shape[1] = s->heads;
        t.stride[1] = s->head_stride;
        t.ndim = 2;
    } else {
        t.shape[0] = s->batch;
        t.stride[0] = s->batch_stride;
        t.shape[1] = s->heads;
        t.stride[1] = s->head_stride;
        t.shape[2] = s->length;
        t.stride[2] = s->token_stride;
        t.ndim = 3;
    }
    if (has_dim) {
        t.shape[t.ndim] = s->dim;
        t.stride[t.ndim] = 1;
        t.ndim++;
    }
    return t;
}

static test_buffer *next_buffer(test_problem *p, int64_t elements, hpa_dtype dtype)
{
    test_buffer *buffer = &p->buffers[p->buffer_count++];
    test_buffer_new_for(buffer, (size_t)elements * test_dtype_size(dtype), p->desc.device);
    return buffer;
}

static test_tensor new_tensor(test_problem *p, bool of_queries, bool has_dim)
{
    const hpa_dtype dtype = has_dim ? p->desc.dtype : test_lse_dtype(p->desc.dtype);
    const placing s = place(p, p->layout, of_queries, has_dim);
    test_tensor t = {.view = view_of(p, &s, dtype, has_dim),
                     .buffer = next_buffer(p, s.elements, dtype),
                     .start = (size_t)s.offset * test_dtype_size(dtype)};
    t.view.data = t.buffer->data + t.start;
    return t;
}

/* Three tensors, a token of the buffer being [Hq q, Hkv k, Hkv v] of D elements each. */
static void new_interleaved(test_problem *p, test_tensor *q, test_tensor *k, test_tensor *v)
{
    const hpa_desc *d = &p->desc;
    const int64_t token = (d->heads_q + 2 * d->heads_kv) * d->head_dim;
    const int64_t first[] = {0, d->heads_q * d->head_dim, (d->heads_q + d->heads_kv) * d->head_dim};
    test_tensor *const tensors[] = {q, k, v};
    test_buffer *buffer = NULL;
    for (int n = 0; n < 3; n++) {
        placing s = place(p, TEST_BSHD, n == 0, true);
        s.token_stride = token;
        s.batch_stride = s.length * token;
        if (!buffer)
            buffer = next_buffer(p, s.batch * s.batch_stride, d->dtype);
        *tensors[n] = (test_tensor){.view = view_of(p, &s, d->dtype, true), .buffer = buffer};
        tensors[n]->start = (size_t)first[n] * test_dtype_size(d->dtype);
        tensors[n]->view.data = buffer->data + tensors[n]->start;
    }
}

static void new_tensors(test_problem *p)
{
    const hpa_desc *d = &p->desc;
    const bool interleaves =
        p->layout == TEST_QKV && (d->packed ? d->total_q == d->total_kv : d->seq_q == d->seq_kv);
    if (interleaves) {
        new_interleaved(p, &p->q, &p->k, &p->v);
        new_interleaved(p, &p->dq, &p->dk, &p->dv);
    } else {
        p->q = new_tensor(p, true, true);
        p->k = new_tensor(p, false, true);
        p->v = new_tensor(p, false, true);
        p->dq = new_tensor(p, true, true);
        p->dk = new_tensor(p, false, true);
        p->dv = new_tensor(p, false, true);
    }
    p->out = new_tensor(p, true, true);
    p->d_out = new_tensor(p, true, true);
    p->lse = new_tensor(p, true, false);
    p->d_lse = new_tensor(p, true, false);
}

static int32_t *new_lengths(const hpa_desc *d, const int32_t *cu, int64_t length,
                            test_buffer *buffer)
{
    int32_t *copy = test_allocate(d->batch + 1, sizeof *copy);
    for (int64_t b = 0; b <= d->batch; b++)
        copy[b] = cu ? cu[b] : (int32_t)(b * length);
    test_buffer_new_for(buffer, (size_t)(d->batch + 1) * sizeof *copy, d->device);
    test_buffer_write(buffer, 0, copy, buffer->bytes);
    return copy;
}

void test_problem_new(test_problem *p, const hpa_desc *desc, test_layout layout,
                      const int32_t *cu_q, const int32_t *cu_kv)
{
    ck_assert(desc->packed == (cu_q != NULL) && desc->packed == (cu_kv != NULL));
    *p = (test_problem){.desc = *desc, .layout = layout, .scratch_fill = FILL};
    assert_ok(hpa_plan_create(&p->plan, desc));
    assert_ok(hpa_plan_sizes(p->plan, &p->sizes));
    p->cu_q = new_lengths(desc, cu_q, desc->seq_q, &p->cu_q_buffer);
    p->cu_kv = new_lengths(desc, cu_kv, desc->seq_kv, &p->cu_kv_buffer);
    new_tensors(p);
    test_buffer_new_for(&p->mask, p->sizes.mask, desc->device);
}

void test_problem_free(test_problem *p)
{
    hpa_plan_destroy(p->plan);
    for (int32_t n = 0; n < p->buffer_count; n++)
        test_buffer_free(&p->buffers[n]);
    test_buffer_free(&p->cu_q_buffer);
    test_buffer_free(&p->cu_kv_buffer);
    test_buffer_free(&p->mask);
    free(p->cu_q);
    free(p->cu_kv);
}

static void copy_tensor(const test_tensor *to, const test_tensor *from)
{
    double *values = test_read(from);
    test_write(to, values);
    free(values);
}

void test_problem_copy(test_problem *copy, const test_problem *p, const hpa_desc *desc,
                       test_layout layout)
{
    test_problem_new(copy, desc, layout, desc->packed ? p->cu_q : NULL,
                     desc->packed ? p->cu_kv : NULL);
    copy_tensor(&copy->q, &p->q);
    copy_tensor(&copy->k, &p->k);
    copy_tensor(&copy->v, &p->v);
    copy_tensor(&copy->d_out, &p->d_out);
    copy_tensor(&copy->d_lse, &p->d_lse);
}

/* Elements */

int64_t test_count(const test_tensor *t)
{
    int64_t count = 1;
    for (int32_t n = 0; n < t->view.ndim; n++)
        count *= t->view.shape[n];
    return count;
}

/* Byte of the buffer where the n-th element in logical order lies. */
static size_t byte_of(const test_tensor *t, int64_t n)
{
    int64_t offset = 0;
    for (int32_t axis = t->view.ndim - 1; axis >= 0; axis--) {
        offset += n % t->view.shape[axis] * t->view.stride[axis];
        n /= t->view.shape[axis];
    }
    return t->start + (size_t)offset * test_dtype_size(t->view.dtype);
}

double *test_read(const test_tensor *t)
{
    const int64_t count = test_count(t);
    double *values = test_allocate(count, sizeof *values);
    unsigned char *image = test_buffer_copy(t->buffer);
    for (int64_t n = 0; n < count; n++)
        values[n] = test_load(t->view.dtype, image + byte_of(t, n));
    free(image);
    return values;
}

void test_write(const test_tensor *t, const double *values)
{
    const int64_t count = test_count(t);
    unsigned char *image = test_buffer_copy(t->buffer);
    for (int64_t n = 0; n < count; n++)
        test_store(t->view.dtype, image + byte_of(t, n), values[n]);
    test_buffer_write(t->buffer, 0, image, t->buffer->bytes);
    free(image);
}

void assert_gaps_untouched(const char *name, const test_tensor *t)
{
    const int64_t count = test_count(t);
    unsigned char *image = test_buffer_copy(t->buffer);
    for (int64_t n = 0; n < count; n++)
        memset(image + byte_of(t, n), FILL, test_dtype_size(t->view.dtype));
    for (size_t n = 0; n < t->buffer->bytes; n++)
        assert_that(image[n] == FILL, "%s: byte %zu, between its elements, was written", name, n);
    free(image);
}

static void fill_tensor(const test_tensor *t, test_random *random, test_values values)
{
    const int64_t count = test_count(t);
    double *filled = test_allocate(count, sizeof *filled);
    for (int64_t n = 0; n < count; n++)
        filled[n] = values == TEST_NORMAL ? test_random_normal(random)
                                          : (double)test_random_integer(random, -3, 3);
    test_write(t, filled);
    free(filled);
}

void test_problem_fill(test_problem *p, uint64_t seed, test_values values)
{
    test_random random = {seed};
    fill_tensor(&p->q, &random, values);
    fill_tensor(&p->k, &random, values);
    fill_tensor(&p->v, &random, values);
    fill_tensor(&p->d_out, &random, values);
    fill_tensor(&p->d_lse, &random, values);
}

/* Rows */

int64_t test_q_row(const test_problem *p, int64_t b, int64_t h, int64_t i)
{
    if (p->desc.packed)
        return (p->cu_q[b] + i) * p->desc.heads_q + h;
    return (b * p->desc.heads_q + h) * p->desc.seq_q + i;
}

int64_t test_kv_row(const test_problem *p, int64_t b, int64_t h, int64_t j)
{
    if (p->desc.packed)
        return (p->cu_kv[b] + j) * p->desc.heads_kv + h;
    return (b * p->desc.heads_kv + h) * p->desc.seq_kv + j;
}

int64_t test_q_rows_used(const test_problem *p)
{
    return p->cu_q[p->desc.batch] * p->desc.heads_q;
}

int64_t test_kv_rows_used(const test_problem *p)
{
    return p->cu_kv[p->desc.batch] * p->desc.heads_kv;
}

static int64_t elements_used(const test_problem *p, const test_tensor *t)
{
    const bool of_keys = t == &p->k || t == &p->v || t == &p->dk || t == &p->dv;
    const bool has_dim = t != &p->lse && t != &p->d_lse;
    return (of_keys ? test_kv_rows_used(p) : test_q_rows_used(p)) *
           (has_dim ? p->desc.head_dim : 1);
}

void assert_tensor_close(const char *name, const test_problem *p, const test_tensor *t,
                         const double *want, double atol, double rtol)
{
    const int64_t used = elements_used(p, t), count = test_count(t);
    double *got = test_read(t);
    assert_close(name, got, want, used, atol, rtol);
    free(got);
    unsigned char *image = test_buffer_copy(t->buffer);
    for (int64_t n = used; n < count; n++)
        for (size_t byte = 0; byte < test_dtype_size(t->view.dtype); byte++)
            assert_that(image[byte_of(t, n) + byte] == FILL,
                        "%s: element %" PRId64 ", past the last sequence, was written", name, n);
    free(image);
}

/* Calls */

hpa_inputs test_inputs(const test_problem *p)
{
    hpa_inputs in = {.q = p->q.view, .k = p->k.view, .v = p->v.view};
    if (p->desc.packed) {
        in.cu_seqlens_q = (const int32_t *)(const void *)p->cu_q_buffer.data;
        in.cu_seqlens_kv = (const int32_t *)(const void *)p->cu_kv_buffer.data;
    }
    return in;
}

hpa_outputs test_outputs(const test_problem *p)
{
    return (hpa_outputs){.out = p->out.view, .lse = p->lse.view};
}

hpa_gradients test_gradients(const test_problem *p)
{
    hpa_gradients g = {.d_out = p->d_out.view,
                       .d_lse = p->d_lse.view,
                       .dq = p->dq.view,
                       .dk = p->dk.view,
                       .dv = p->dv.view,
                       .accumulate = p->accumulate};
    if (p->without_d_lse)
        g.d_lse = (hpa_tensor){0};
    return g;
}

static hpa_exec new_scratch(test_buffer *scratch, size_t bytes, int fill, hpa_device device)
{
    *scratch = (test_buffer){0};
    hpa_exec exec = {.stream = device == HPA_CPU ? NULL : test_stream()};
    if (bytes == 0)
        return exec;
    test_buffer_new_for(scratch, bytes, device);
    test_buffer_fill(scratch, fill);
    exec.scratch = scratch->data;
    exec.scratch_bytes = bytes;
    return exec;
}

hpa_exec test_scratch_new(test_buffer *scratch, size_t bytes, int fill)
{
    return new_scratch(scratch, bytes, fill, test_desc().device);
}

/* For a call on the problem, which may be the reference. */
static hpa_exec scratch_of(const test_problem *p, test_buffer *scratch, size_t bytes)
{
    return new_scratch(scratch, bytes, p->scratch_fill, p->desc.device);
}

void test_scratch_free(test_buffer *scratch)
{
    test_buffer_free(scratch);
}

static uint64_t hash_of_inputs(const test_problem *p, bool with_mask, bool with_outputs)
{
    uint64_t hash = test_buffer_hash(p->q.buffer);
    hash = 3 * hash + test_buffer_hash(p->k.buffer);
    hash = 3 * hash + test_buffer_hash(p->v.buffer);
    hash = 3 * hash + test_buffer_hash(&p->cu_q_buffer);
    hash = 3 * hash + test_buffer_hash(&p->cu_kv_buffer);
    if (with_mask)
        hash = 3 * hash + test_buffer_hash(&p->mask);
    if (with_outputs) {
        hash = 3 * hash + test_buffer_hash(p->out.buffer);
        hash = 3 * hash + test_buffer_hash(p->lse.buffer);
        hash = 3 * hash + test_buffer_hash(p->d_out.buffer);
        hash = 3 * hash + test_buffer_hash(p->d_lse.buffer);
    }
    return hash;
}

static void check_guards(const test_problem *p)
{
    for (int32_t n = 0; n < p->buffer_count; n++)
        assert_guards(&p->buffers[n]);
    assert_guards(&p->mask);
}

void test_build(test_problem *p)
{
    test_buffer scratch;
    const hpa_exec exec = scratch_of(p, &scratch, p->sizes.mask_scratch);
    const hpa_inputs in = test_inputs(p);
    const uint64_t before = hash_of_inputs(p, false, false);
    assert_ok(hpa_mask_build(p->plan, &in, p->mask.data, &exec));
    assert_that(hash_of_inputs(p, false, false) == before, "hpa_mask_build wrote to its inputs");
    check_guards(p);
    test_scratch_free(&scratch);
}

void test_forward(test_problem *p)
{
    test_buffer scratch;
    const hpa_exec exec = scratch_of(p, &scratch, p->sizes.forward_scratch);
    const hpa_inputs in = test_inputs(p);
    const hpa_outputs out = test_outputs(p);
    test_buffer_fill(p->out.buffer, FILL);
    test_buffer_fill(p->lse.buffer, FILL);
    const uint64_t before = hash_of_inputs(p, true, false);
    assert_ok(hpa_forward(p->plan, p->mask.data, &in, &out, &exec));
    assert_that(hash_of_inputs(p, true, false) == before, "hpa_forward wrote to its inputs");
    check_guards(p);
    assert_gaps_untouched("out", &p->out);
    assert_gaps_untouched("lse", &p->lse);
    test_scratch_free(&scratch);
}

static void check_gradient(const test_problem *p, const char *name, const test_tensor *t,
                           bool wanted)
{
    if (p->dq.buffer == p->dk.buffer) /* interleaved: no gaps, and the others' elements between */
        return;
    assert_gaps_untouched(name, t);
    if (wanted)
        return;
    unsigned char *image = test_buffer_copy(t->buffer);
    for (size_t n = 0; n < t->buffer->bytes && !p->accumulate; n++)
        assert_that(image[n] == FILL, "%s was written, though nobody asked for it", name);
    free(image);
}

void test_backward_of(test_problem *p, bool dq, bool dk, bool dv)
{
    test_buffer scratch;
    const hpa_exec exec = scratch_of(p, &scratch, p->sizes.backward_scratch);
    const hpa_inputs in = test_inputs(p);
    const hpa_outputs out = test_outputs(p);
    hpa_gradients gradients = test_gradients(p);
    if (!dq)
        gradients.dq = (hpa_tensor){0};
    if (!dk)
        gradients.dk = (hpa_tensor){0};
    if (!dv)
        gradients.dv = (hpa_tensor){0};
    if (!p->accumulate) {
        test_buffer_fill(p->dq.buffer, FILL);
        test_buffer_fill(p->dk.buffer, FILL);
        test_buffer_fill(p->dv.buffer, FILL);
    }
    const uint64_t before = hash_of_inputs(p, true, true);
    assert_ok(hpa_backward(p->plan, p->mask.data, &in, &out, &gradients, &exec));
    assert_that(hash_of_inputs(p, true, true) == before, "hpa_backward wrote to its inputs");
    check_guards(p);
    check_gradient(p, "dq", &p->dq, dq);
    check_gradient(p, "dk", &p->dk, dk);
    check_gradient(p, "dv", &p->dv, dv);
    test_scratch_free(&scratch);
}

void test_backward(test_problem *p)
{
    test_backward_of(p, true, true, true);
}

uint64_t test_hash_of_outputs(const test_problem *p)
{
    return 3 * test_buffer_hash(p->out.buffer) + test_buffer_hash(p->lse.buffer);
}

uint64_t test_hash_of_gradients(const test_problem *p)
{
    return 9 * test_buffer_hash(p->dq.buffer) + 3 * test_buffer_hash(p->dk.buffer) +
           test_buffer_hash(p->dv.buffer);
}

/* Mask */

test_csr test_export(const test_problem *p)
{
    test_csr csr = {0};
    for (int64_t b = 0; b < p->desc.batch; b++)
        csr.rows +=
            test_mask_heads(p) * ((test_q_length(p, b) + p->desc.block_q - 1) / p->desc.block_q);
    test_buffer scratch;
    const hpa_exec exec = scratch_of(p, &scratch, p->sizes.mask_scratch);
    int64_t count = 0;
    assert_ok(hpa_mask_export_csr(p->plan, p->mask.data, NULL, NULL, &count, &exec));
    test_buffer row_ptr, blocks; /* host memory; guarded like the backend's */
    test_buffer_new_on_host(&row_ptr, (size_t)(csr.rows + 1) * sizeof *csr.row_ptr);
    test_buffer_new_on_host(&blocks, (size_t)count * sizeof *csr.blocks);
    int64_t n_blocks = count;
    assert_ok(hpa_mask_export_csr(p->plan, p->mask.data, (int64_t *)(void *)row_ptr.data,
                                  (int32_t *)(void *)blocks.data, &n_blocks, &exec));
    ck_assert_int_eq(n_blocks, count);
    csr.row_ptr = (int64_t *)(void *)test_buffer_copy(&row_ptr);
    csr.blocks = (int32_t *)(void *)test_buffer_copy(&blocks);
    ck_assert_int_eq(csr.row_ptr[0], 0);
    ck_assert_int_eq(csr.row_ptr[csr.rows], count);
    test_buffer_free(&row_ptr);
    test_buffer_free(&blocks);
    test_scratch_free(&scratch);
    return csr;
}

void test_import(test_problem *p, const test_csr *csr)
{
    test_buffer scratch;
    const hpa_exec exec = scratch_of(p, &scratch, p->sizes.mask_scratch);
    const hpa_inputs in = test_inputs(p);
    assert_ok(hpa_mask_import_csr(p->plan, p->desc.packed ? &in : NULL, p->mask.data, csr->row_ptr,
                                  csr->blocks, &exec));
    check_guards(p);
    test_scratch_free(&scratch);
}

void test_csr_free(test_csr *csr)
{
    free(csr->row_ptr);
    free(csr->blocks);
    *csr = (test_csr){0};
}

void assert_csr_equal(const char *name, const test_csr *got, const test_csr *want)
{
    assert_that(got->rows == want->rows, "%s: %" PRId64 " rows, expected %" PRId64, name, got->rows,
                want->rows);
    for (int64_t r = 0; r < got->rows; r++) {
        const int64_t got_length = got->row_ptr[r + 1] - got->row_ptr[r];
        const int64_t want_length = want->row_ptr[r + 1] - want->row_ptr[r];
        assert_that(got_length == want_length,
                    "%s: row %" PRId64 " of %" PRId64 " keeps %" PRId64
                    " blocks, expected %" PRId64,
                    name, r, got->rows, got_length, want_length);
        for (int64_t n = 0; n < got_length; n++) {
            const int32_t block = got->blocks[got->row_ptr[r] + n];
            const int32_t expected = want->blocks[want->row_ptr[r] + n];
            assert_that(block == expected,
                        "%s: row %" PRId64 " of %" PRId64 ": kept block %" PRId64 " of %" PRId64
                        " is %d, expected %d",
                        name, r, got->rows, n, got_length, block, expected);
        }
    }
}

hpa_mask_stats test_statistics(const test_problem *p)
{
    hpa_mask_stats stats;
    test_buffer scratch;
    const hpa_exec exec = scratch_of(p, &scratch, p->sizes.mask_scratch);
    assert_ok(hpa_mask_statistics(p->plan, p->mask.data, &stats, &exec));
    test_scratch_free(&scratch);
    return stats;
}
