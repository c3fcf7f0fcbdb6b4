/* Tensor views: addresses, element access by dtype, and what may be asked of their strides. */
#ifndef HPA_CORE_TENSOR_H
#define HPA_CORE_TENSOR_H

#include "core/float16.h"
#include "core/geometry.h"
#include "core/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Bytes of an element; 0 for an unknown dtype. */
size_t hpa_dtype_size(hpa_dtype dtype);
const char *hpa_dtype_name(hpa_dtype dtype);

/* The dtype of lse: f64 for f64, else f32. */
static inline hpa_dtype hpa_lse_dtype(hpa_dtype dtype)
{
    return dtype == HPA_F64 ? HPA_F64 : HPA_F32;
}

/* Strides of q, k, v, out and gradients in elements, whichever of the two ranks the view has. */
typedef struct hpa_strides {
    int64_t batch, head, token;
} hpa_strides;

/* Packed views have no batch: 0. lse is seen as a view whose dim has gone. */
static inline hpa_strides hpa_strides_of(const hpa_tensor *t, bool packed)
{
    hpa_strides s = {.batch = packed ? 0 : t->stride[0],
                     .head = t->stride[1],
                     .token = packed ? t->stride[0] : t->stride[2]};
    return s;
}

/* Elements from the start of the view to (sequence, head, token); token counts from the sequence's
 * first, start being its row in the packed tensor (0 when not packed). */
HPA_HOST_DEVICE int64_t hpa_offset(const hpa_strides *s, int64_t batch, int64_t head, int64_t start,
                                   int64_t token)
{
    return batch * s->batch + head * s->head + (start + token) * s->token;
}

/* Element i of an array of that dtype, as the reference loops see it. */
static inline double hpa_load(const void *data, hpa_dtype dtype, int64_t i)
{
    switch (dtype) {
    case HPA_F64:
        return ((const double *)data)[i];
    case HPA_F32:
        return (double)((const float *)data)[i];
    case HPA_F16:
        return (double)hpa_float_from_f16(((const uint16_t *)data)[i]);
    case HPA_BF16:
        return (double)hpa_float_from_bf16(((const uint16_t *)data)[i]);
    default:
        return 0;
    }
}

static inline void hpa_store(void *data, hpa_dtype dtype, int64_t i, double value)
{
    switch (dtype) {
    case HPA_F64:
        ((double *)data)[i] = value;
        return;
    case HPA_F32:
        ((float *)data)[i] = (float)value;
        return;
    case HPA_F16:
        ((uint16_t *)data)[i] = hpa_f16_from_float((float)value);
        return;
    case HPA_BF16:
        ((uint16_t *)data)[i] = hpa_bf16_from_float((float)value);
        return;
    default:
        return;
    }
}

/* What a view must look like. */
typedef struct hpa_expected {
    const char *name; /* "in.q" */
    hpa_dtype dtype;
    int32_t ndim;
    int64_t shape[4];
    bool has_dim;     /* the last dimension is the head's, with stride 1 */
    bool output;      /* no two of its elements may lie in one place */
    size_t alignment; /* of data, bytes; 0: that of the element */
} hpa_expected;

/* The expectation for q-like and k-like tensors (heads, length and total differ), or lse. */
hpa_expected hpa_expect(const hpa_geometry *g, const char *name, hpa_dtype dtype, bool of_queries,
                        bool has_dim, bool output);

hpa_status hpa_tensor_check(const hpa_tensor *tensor, const hpa_expected *expected);

/* HPA_INVALID_STRIDE when an element of a can lie where one of b does. Views that interleave in one
 * buffer (the parts of a packed QKV) do not overlap. Either may be absent (data NULL). */
hpa_status hpa_tensor_check_apart(const hpa_tensor *a, const char *a_name, const hpa_tensor *b,
                                  const char *b_name);

#ifdef __cplusplus
}
#endif
#endif
