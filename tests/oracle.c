#include "oracle.h"

#include <stdio.h>

/* One query head of one sequence: matrices [length, D] gathered from the problem. */
typedef struct head {
    int64_t queries, keys, D;
    double *q, *out, *d_out; /* [queries, D] */
    double *k, *v;           /* [keys, D] */
    double *d_lse;           /* [queries] */
    bool *attended;          /* [queries, keys] */
} head;

/* How to compute. */
typedef struct manner {
    hpa_dtype storage; /* of intermediates; sums run in f32 unless it is f64 */
    bool forward_only;
    bool stored_out; /* delta comes from the problem's out */
} manner;

static double kept(manner a, double value)
{
    return a.storage == HPA_F64 ? value : test_rounded(a.storage, value);
}

static double add(manner a, double sum, double x, double y)
{
    if (a.storage == HPA_F64)
        return sum + x * y;
    const float product = (float)x * (float)y;
    return (double)((float)sum + product);
}

/* Where row r of the exported mask starts counting for a sequence and mask head. */
static int64_t csr_row(const test_problem *p, int64_t b, int64_t h, int64_t i)
{
    const int64_t block_q = p->desc.block_q;
    const int64_t group = p->desc.heads_q / p->desc.heads_kv;
    const int64_t mask_head = p->desc.share_heads ? h / group : h;
    int64_t row = 0;
    for (int64_t before = 0; before < b; before++)
        row += test_mask_heads(p) * ((test_q_length(p, before) + block_q - 1) / block_q);
    return row + mask_head * ((test_q_length(p, b) + block_q - 1) / block_q) + i / block_q;
}

bool test_attends(const test_problem *p, const test_csr *csr, int64_t b, int64_t h, int64_t i,
                  int64_t j)
{
    if (p->desc.causal && j > i + test_kv_length(p, b) - test_q_length(p, b))
        return false;
    const int64_t row = csr_row(p, b, h, i);
    for (int64_t n = csr->row_ptr[row]; n < csr->row_ptr[row + 1]; n++)
        if (csr->blocks[n] == j / p->desc.block_k)
            return true;
    return false;
}

static void mark_attended(const test_problem *p, const test_csr *csr, int64_t b, int64_t h, head *x)
{
    const int64_t shift = x->keys - x->queries, block_k = p->desc.block_k;
    memset(x->attended, 0, (size_t)(x->queries * x->keys));
    for (int64_t i = 0; i < x->queries; i++) {
        const int64_t row = csr_row(p, b, h, i);
        for (int64_t n = csr->row_ptr[row]; n < csr->row_ptr[row + 1]; n++)
            for (int64_t j = csr->blocks[n] * block_k;
                 j < (csr->blocks[n] + 1) * block_k && j < x->keys; j++)
                x->attended[i * x->keys + j] = !p->desc.causal || j <= i + shift;
    }
}

/* All tensors of the problem, read once. */
typedef struct readings {
    double *q, *k, *v, *out, *d_out, *d_lse;
} readings;

static readings read_all(const test_problem *p)
{
    return (readings){.q = test_read(&p->q),
                      .k = test_read(&p->k),
                      .v = test_read(&p->v),
                      .out = test_read(&p->out),
                      .d_out = test_read(&p->d_out),
                      .d_lse = test_read(&p->d_lse)};
}

static void free_readings(readings *r)
{
    free(r->q);
    free(r->k);
    free(r->v);
    free(r->out);
    free(r->d_out);
    free(r->d_lse);
}

static head new_head(const test_problem *p, int64_t b)
{
    head x = {.queries = test_q_length(p, b), .keys = test_kv_length(p, b), .D = p->desc.head_dim};
    x.q = test_allocate(x.queries * x.D, sizeof(double));
    x.out = test_allocate(x.queries * x.D, sizeof(double));
    x.d_out = test_allocate(x.queries * x.D, sizeof(double));
    x.k = test_allocate(x.keys * x.D, sizeof(double));
    x.v = test_allocate(x.keys * x.D, sizeof(double));
    x.d_lse = test_allocate(x.queries, sizeof(double));
    x.attended = test_allocate(x.queries * x.keys, sizeof(bool));
    return x;
}

static void free_head(head *x)
{
    free(x->q);
    free(x->out);
    free(x->d_out);
    free(x->k);
    free(x->v);
    free(x->d_lse);
    free(x->attended);
}

static void gather(const test_problem *p, const readings *r, int64_t b, int64_t h, head *x)
{
    const int64_t D = x->D, kv_head = h / (p->desc.heads_q / p->desc.heads_kv);
    const size_t row_bytes = (size_t)D * sizeof(double);
    for (int64_t i = 0; i < x->queries; i++) {
        const int64_t row = test_q_row(p, b, h, i);
        memcpy(x->q + i * D, r->q + row * D, row_bytes);
        memcpy(x->out + i * D, r->out + row * D, row_bytes);
        memcpy(x->d_out + i * D, r->d_out + row * D, row_bytes);
        x->d_lse[i] = p->without_d_lse ? 0 : r->d_lse[row];
    }
    for (int64_t j = 0; j < x->keys; j++) {
        const int64_t row = test_kv_row(p, b, kv_head, j);
        memcpy(x->k + j * D, r->k + row * D, row_bytes);
        memcpy(x->v + j * D, r->v + row * D, row_bytes);
    }
}

static double dot(manner a, const double *x, const double *y, int64_t n)
{
    double sum = 0;
    for (int64_t d = 0; d < n; d++)
        sum = add(a, sum, x[d], y[d]);
    return sum;
}

/* Probabilities of query i over all keys, and its lse. */
static double softmax_row(manner a, const head *x, double scale, int64_t i, double *p_row)
{
    const bool *attended = x->attended + i * x->keys;
    double largest = -(double)INFINITY, sum = 0;
    for (int64_t j = 0; j < x->keys; j++) {
        p_row[j] = -(double)INFINITY;
        if (attended[j])
            p_row[j] = kept(a, scale * dot(a, x->q + i * x->D, x->k + j * x->D, x->D));
        largest = fmax(largest, p_row[j]);
    }
    for (int64_t j = 0; j < x->keys; j++)
        if (attended[j])
            sum = add(a, sum, exp(p_row[j] - largest), 1);
    for (int64_t j = 0; j < x->keys; j++)
        p_row[j] = attended[j] ? kept(a, exp(p_row[j] - largest) / sum) : 0;
    return sum > 0 ? largest + log(sum) : -(double)INFINITY;
}

static void forward_row(manner a, const head *x, const double *p_row, const bool *attended,
                        double *out)
{
    for (int64_t d = 0; d < x->D; d++)
        out[d] = 0;
    for (int64_t j = 0; j < x->keys; j++)
        for (int64_t d = 0; d < x->D && attended[j]; d++)
            out[d] = add(a, out[d], p_row[j], x->v[j * x->D + d]);
    for (int64_t d = 0; d < x->D; d++)
        out[d] = kept(a, out[d]);
}

/* dk and dv [keys, D] of the key/value head are added to; dq [D] is written. */
static void backward_row(manner a, const head *x, double scale, int64_t i, const double *p_row,
                         const double *out, double *dq, double *dk, double *dv)
{
    const int64_t D = x->D;
    const double *d_out = x->d_out + i * D, *q = x->q + i * D;
    const double delta = dot(a, out, d_out, D) - x->d_lse[i];
    for (int64_t d = 0; d < D; d++)
        dq[d] = 0;
    for (int64_t j = 0; j < x->keys; j++) {
        if (!x->attended[i * x->keys + j])
            continue;
        const double dp = kept(a, dot(a, d_out, x->v + j * D, D));
        const double ds = kept(a, p_row[j] * (dp - delta));
        for (int64_t d = 0; d < D; d++) {
            dq[d] = add(a, dq[d], scale * ds, x->k[j * D + d]);
            dk[j * D + d] = add(a, dk[j * D + d], scale * ds, q[d]);
            dv[j * D + d] = add(a, dv[j * D + d], p_row[j], d_out[d]);
        }
    }
}

typedef struct head_gradients {
    double *dk, *dv; /* [keys, D] */
} head_gradients;

static void one_head(manner a, const test_problem *p, const head *x, int64_t b, int64_t h,
                     test_oracle *o, head_gradients sums)
{
    const int64_t D = x->D;
    const double scale = p->desc.scale > 0 ? p->desc.scale : 1 / sqrt((double)D);
    double *p_row = test_allocate(x->keys, sizeof *p_row);
    for (int64_t i = 0; i < x->queries; i++) {
        const int64_t row = test_q_row(p, b, h, i);
        double *out = o->out + row * D;
        o->lse[row] = softmax_row(a, x, scale, i, p_row);
        forward_row(a, x, p_row, x->attended + i * x->keys, out);
        if (a.forward_only)
            continue;
        double *dq = o->dq + row * D;
        backward_row(a, x, scale, i, p_row, a.stored_out ? x->out + i * D : out, dq, sums.dk,
                     sums.dv);
        for (int64_t d = 0; d < D; d++)
            dq[d] = kept(a, dq[d]);
    }
    free(p_row);
}

static void one_kv_head(manner a, const test_problem *p, const test_csr *csr, const readings *r,
                        int64_t b, int64_t kv_head, test_oracle *o)
{
    const int64_t group = p->desc.heads_q / p->desc.heads_kv, D = p->desc.head_dim;
    head x = new_head(p, b);
    head_gradients sums = {.dk = calloc((size_t)(x.keys * D) + 1, sizeof(double)),
                           .dv = calloc((size_t)(x.keys * D) + 1, sizeof(double))};
    for (int64_t h = kv_head * group; h < (kv_head + 1) * group; h++) {
        gather(p, r, b, h, &x);
        mark_attended(p, csr, b, h, &x);
        one_head(a, p, &x, b, h, o, sums);
    }
    for (int64_t n = 0; n < x.keys * D; n++) {
        const int64_t row = test_kv_row(p, b, kv_head, n / D);
        o->dk[row * D + n % D] = kept(a, sums.dk[n]);
        o->dv[row * D + n % D] = kept(a, sums.dv[n]);
    }
    free(sums.dk);
    free(sums.dv);
    free_head(&x);
}

static test_oracle compute(manner a, const test_problem *p, const test_csr *csr)
{
    readings r = read_all(p);
    test_oracle o = {.out = test_allocate(test_count(&p->out), sizeof(double)),
                     .lse = test_allocate(test_count(&p->lse), sizeof(double)),
                     .dq = test_allocate(test_count(&p->dq), sizeof(double)),
                     .dk = test_allocate(test_count(&p->dk), sizeof(double)),
                     .dv = test_allocate(test_count(&p->dv), sizeof(double))};
    for (int64_t b = 0; b < p->desc.batch; b++)
        for (int64_t h = 0; h < p->desc.heads_kv; h++)
            one_kv_head(a, p, csr, &r, b, h, &o);
    free_readings(&r);
    return o;
}

test_oracle test_dense(const test_problem *p, const test_csr *csr, bool stored_out)
{
    return compute((manner){.storage = HPA_F64, .stored_out = stored_out}, p, csr);
}

test_oracle test_dense_forward(const test_problem *p, const test_csr *csr)
{
    return compute((manner){.storage = HPA_F64, .forward_only = true}, p, csr);
}

test_oracle test_dense_stored(const test_problem *p, const test_csr *csr, hpa_dtype storage)
{
    return compute((manner){.storage = storage}, p, csr);
}

void test_oracle_free(test_oracle *o)
{
    free(o->out);
    free(o->lse);
    free(o->dq);
    free(o->dk);
    free(o->dv);
    *o = (test_oracle){0};
}

double test_distance(const double *a, const double *b, int64_t n)
{
    double largest = 0;
    for (int64_t i = 0; i < n; i++) {
        const double distance = a[i] == b[i] ? 0 : fabs(a[i] - b[i]);
        if (!(distance <= largest))
            largest = distance;
        if (isnan(largest))
            return largest;
    }
    return largest;
}

/* Unit roundoff is 2^-53, 2^-24, 2^-11 and 2^-8; inputs are of size 1. The absolute part is what
 * sums of many such terms lose, and 16-bit results are rounded once more. */
test_tolerance test_tolerance_of(hpa_dtype dtype)
{
    const bool rounds = test_rounds_factors(dtype);
    switch (dtype) {
    case HPA_F64:
        return (test_tolerance){1e-12, 1e-11};
    case HPA_F32:
        return (test_tolerance){1e-5, 1e-5};
    case HPA_F16:
        return (test_tolerance){rounds ? 0x1p-10 : 1e-5, 0x1.1p-11};
    default:
        return (test_tolerance){rounds ? 0x1p-7 : 1e-5, 0x1.1p-8};
    }
}

/* Where factors are rounded, a key that many queries keep sums over many such errors. */
test_tolerance test_gradient_tolerance_of(hpa_dtype dtype)
{
    test_tolerance tolerance = test_tolerance_of(dtype);
    if (test_rounds_factors(dtype))
        tolerance.atol *= 4;
    return tolerance;
}

static void compare(const char *name, const char *part, const test_problem *p, const test_tensor *t,
                    const double *want, test_tolerance tolerance)
{
    char label[160];
    snprintf(label, sizeof label, "%s: %s (dtype %d)", name, part, (int)p->desc.dtype);
    assert_tensor_close(label, p, t, want, tolerance.atol, tolerance.rtol);
}

void assert_forward_right(const char *name, test_problem *p)
{
    test_forward(p);
    test_csr csr = test_export(p);
    test_oracle o = test_dense_forward(p, &csr);
    compare(name, "out", p, &p->out, o.out, test_tolerance_of(p->desc.dtype));
    compare(name, "lse", p, &p->lse, o.lse, test_tolerance_of(test_lse_dtype(p->desc.dtype)));
    test_oracle_free(&o);
    test_csr_free(&csr);
}

void assert_backward_right(const char *name, test_problem *p)
{
    test_forward(p);
    test_backward(p);
    test_csr csr = test_export(p);
    test_oracle o = test_dense(p, &csr, true);
    const test_tolerance tolerance = test_gradient_tolerance_of(p->desc.dtype);
    compare(name, "dq", p, &p->dq, o.dq, tolerance);
    compare(name, "dk", p, &p->dk, o.dk, tolerance);
    compare(name, "dv", p, &p->dv, o.dv, tolerance);
    test_oracle_free(&o);
    test_csr_free(&csr);
}
