#include "core/tensor.h"

#include <inttypes.h>
#include <stdio.h>

size_t hpa_dtype_size(hpa_dtype dtype)
{
    switch (dtype) {
    case HPA_F64:
    case HPA_I64:
        return 8;
    case HPA_F32:
    case HPA_I32:
        return 4;
    case HPA_F16:
    case HPA_BF16:
        return 2;
    }
    return 0;
}

const char *hpa_dtype_name(hpa_dtype dtype)
{
    static const char *const names[] = {"none", "f64", "f32", "f16", "bf16", "i32", "i64"};
    return dtype >= HPA_F64 && dtype <= HPA_I64 ? names[dtype] : names[0];
}

hpa_expected hpa_expect(const hpa_geometry *g, const char *name, hpa_dtype dtype, bool of_queries,
                        bool has_dim, bool output)
{
    const int64_t heads = of_queries ? g->heads_q : g->heads_kv;
    const int64_t length = of_queries ? g->seq_q : g->seq_kv;
    const int64_t total = of_queries ? g->total_q : g->total_kv;
    hpa_expected e = {.name = name, .dtype = dtype, .has_dim = has_dim, .output = output};
    if (g->packed) {
        e.shape[e.ndim++] = total;
        e.shape[e.ndim++] = heads;
    } else {
        e.shape[e.ndim++] = g->batch;
        e.shape[e.ndim++] = heads;
        e.shape[e.ndim++] = length;
    }
    if (has_dim)
        e.shape[e.ndim++] = g->head_dim;
    return e;
}

static int64_t element_count(const hpa_tensor *t)
{
    int64_t count = 1;
    for (int32_t n = 0; n < t->ndim; n++)
        count *= t->shape[n];
    return count;
}

static hpa_status check_shape(const hpa_tensor *t, const hpa_expected *e)
{
    if (t->ndim != e->ndim)
        return hpa_fail(HPA_INVALID_SHAPE, "%s.ndim is %d, expected %d", e->name, t->ndim, e->ndim);
    for (int32_t n = 0; n < e->ndim; n++)
        if (t->shape[n] != e->shape[n])
            return hpa_fail(HPA_INVALID_SHAPE, "%s.shape[%d] is %" PRId64 ", expected %" PRId64,
                            e->name, n, t->shape[n], e->shape[n]);
    return HPA_OK;
}

/* Strides of an output, sorted, must each step over all that the smaller ones reach. */
static bool reaches_itself(const hpa_tensor *t)
{
    bool done[4] = {false, false, false, false};
    int64_t reach = 1;
    for (int32_t pass = 0; pass < t->ndim; pass++) {
        int32_t smallest = -1;
        for (int32_t n = 0; n < t->ndim; n++)
            if (!done[n] && (smallest < 0 || t->stride[n] < t->stride[smallest]))
                smallest = n;
        done[smallest] = true;
        if (t->shape[smallest] <= 1)
            continue;
        if (t->stride[smallest] < reach)
            return true;
        reach += (t->shape[smallest] - 1) * t->stride[smallest];
    }
    return false;
}

static hpa_status check_strides(const hpa_tensor *t, const hpa_expected *e)
{
    for (int32_t n = 0; n < t->ndim; n++)
        if (t->stride[n] < 0 || (t->shape[n] > 1 && t->stride[n] > INT64_MAX / 16 / t->shape[n]))
            return hpa_fail(HPA_INVALID_STRIDE,
                            "%s.stride[%d] is %" PRId64 ", expected 0 or more, within memory",
                            e->name, n, t->stride[n]);
    if (e->has_dim && t->stride[t->ndim - 1] != 1)
        return hpa_fail(HPA_INVALID_STRIDE,
                        "%s.stride[%d] is %" PRId64 ", expected 1 for the head dim", e->name,
                        t->ndim - 1, t->stride[t->ndim - 1]);
    if (e->output && element_count(t) > 0 && reaches_itself(t))
        return hpa_fail(HPA_INVALID_STRIDE,
                        "%s has strides that put two of its elements in one place", e->name);
    return HPA_OK;
}

hpa_status hpa_tensor_check(const hpa_tensor *t, const hpa_expected *e)
{
    if (t->dtype != e->dtype)
        return hpa_fail(HPA_INVALID_DTYPE, "%s.dtype is %d (%s), expected %s", e->name,
                        (int)t->dtype, hpa_dtype_name(t->dtype), hpa_dtype_name(e->dtype));
    HPA_TRY(check_shape(t, e));
    HPA_TRY(check_strides(t, e));
    if (element_count(t) == 0)
        return HPA_OK;
    if (!t->data)
        return hpa_fail(HPA_INVALID_ARGUMENT, "%s.data is NULL", e->name);
    const size_t alignment = e->alignment ? e->alignment : hpa_dtype_size(e->dtype);
    if ((uintptr_t)t->data % alignment != 0)
        return hpa_fail(HPA_INVALID_ALIGNMENT, "%s.data is %p, expected a multiple of %zu bytes",
                        e->name, t->data, alignment);
    return HPA_OK;
}

/* Bytes from the first element's first to the last element's last. */
static int64_t extent_bytes(const hpa_tensor *t)
{
    int64_t last = 0;
    for (int32_t n = 0; n < t->ndim; n++)
        last += (t->shape[n] - 1) * t->stride[n];
    return (last + 1) * (int64_t)hpa_dtype_size(t->dtype);
}

/* Within one period of bytes, how far the dimensions that step less than it reach. 0 when some
 * dimension neither fits in the period nor is a multiple of it. */
static int64_t reach_within(const hpa_tensor *t, int64_t period)
{
    const int64_t size = (int64_t)hpa_dtype_size(t->dtype);
    int64_t reach = size;
    for (int32_t n = 0; n < t->ndim; n++) {
        const int64_t stride = t->stride[n] * size;
        if (t->shape[n] <= 1 || stride % period == 0)
            continue;
        if (stride > period)
            return 0;
        reach += (t->shape[n] - 1) * stride;
    }
    return reach <= period ? reach : 0;
}

/* Both repeat with the period, and their shares of it are disjoint. */
static bool interleave(const hpa_tensor *a, const hpa_tensor *b, int64_t period)
{
    const int64_t a_reach = reach_within(a, period), b_reach = reach_within(b, period);
    if (a_reach == 0 || b_reach == 0)
        return false;
    const uintptr_t a_data = (uintptr_t)a->data, b_data = (uintptr_t)b->data;
    const int64_t distance =
        b_data >= a_data ? (int64_t)((b_data - a_data) % (uintptr_t)period)
                         : period - (int64_t)((a_data - b_data - 1) % (uintptr_t)period) - 1;
    return distance >= a_reach && distance + b_reach <= period;
}

hpa_status hpa_tensor_check_apart(const hpa_tensor *a, const char *a_name, const hpa_tensor *b,
                                  const char *b_name)
{
    if (!a->data || !b->data || element_count(a) == 0 || element_count(b) == 0)
        return HPA_OK;
    const uintptr_t a_data = (uintptr_t)a->data, b_data = (uintptr_t)b->data;
    if (a_data + (uintptr_t)extent_bytes(a) <= b_data ||
        b_data + (uintptr_t)extent_bytes(b) <= a_data)
        return HPA_OK;
    for (int32_t n = 0; n < a->ndim; n++) {
        const int64_t period = a->stride[n] * (int64_t)hpa_dtype_size(a->dtype);
        if (period > 0 && interleave(a, b, period))
            return HPA_OK;
    }
    return hpa_fail(HPA_INVALID_STRIDE, "%s and %s overlap in memory", a_name, b_name);
}
