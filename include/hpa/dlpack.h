/* dlpack.h - between DLPack's tensors, which most frameworks exchange, and hpa_tensor.
 *
 * Header only, C11 and C++17. The DLPack header is the caller's: include it first, or have it where
 * <dlpack/dlpack.h> finds it; version 0.6 or later.
 *
 *     hpa_inputs in;
 *     char reason[HPA_DLPACK_REASON];
 *     if (hpa_tensor_from_dlpack(&in.q, &managed->dl_tensor, HPA_CUDA, 0, reason) != HPA_OK)
 *         return puts(reason), 1;
 *
 * Nothing is copied and nothing owned: a view lasts as long as the tensor that it was made of. Both
 * ways refuse what the other side has no words for, and reason, HPA_DLPACK_REASON characters or NULL,
 * then says which field, its value, and what was expected; *tensor is as it was. What a plan expects
 * of shapes, dtypes and strides is checked by the calls that take the plan, not here. */
#ifndef HPA_DLPACK_H
#define HPA_DLPACK_H

#ifndef DLPACK_DLPACK_H_
#include <dlpack/dlpack.h>
#endif
#include <hpa/hpa.h>
#include <stdio.h>

#define HPA_DLPACK_REASON 160 /* characters, the closing 0 among them */

#ifdef __cplusplus
extern "C" {
#endif

/* status, after writing to reason what is wrong with a field. */
static inline hpa_status hpa_dlpack_refuse(hpa_status status, char *reason, const char *field,
                                           int64_t value, const char *expected)
{
    if (reason)
        snprintf(reason, HPA_DLPACK_REASON, "%s is %lld, expected %s", field, (long long)value,
                 expected);
    return status;
}

/* Bytes of an element; 0 for an unknown dtype. */
static inline int64_t hpa_dlpack_bytes(hpa_dtype dtype)
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
    default:
        return 0;
    }
}

/* One of ours for DLPack's code, bits and lanes. */
static inline hpa_status hpa_dlpack_dtype(hpa_dtype *dtype, DLDataType from, char *reason)
{
    const char *const expected =
        "that of float16, bfloat16, float32, float64, int32 or int64 in one lane";
    if (from.lanes != 1)
        return hpa_dlpack_refuse(HPA_INVALID_DTYPE, reason, "dtype.lanes", from.lanes, expected);
    if (from.code == kDLFloat && from.bits == 64)
        *dtype = HPA_F64;
    else if (from.code == kDLFloat && from.bits == 32)
        *dtype = HPA_F32;
    else if (from.code == kDLFloat && from.bits == 16)
        *dtype = HPA_F16;
    else if (from.code == kDLBfloat && from.bits == 16)
        *dtype = HPA_BF16;
    else if (from.code == kDLInt && from.bits == 32)
        *dtype = HPA_I32;
    else if (from.code == kDLInt && from.bits == 64)
        *dtype = HPA_I64;
    else if (from.code == kDLFloat || from.code == kDLInt || from.code == kDLBfloat)
        return hpa_dlpack_refuse(HPA_INVALID_DTYPE, reason, "dtype.bits", from.bits, expected);
    else
        return hpa_dlpack_refuse(HPA_INVALID_DTYPE, reason, "dtype.code", from.code, expected);
    return HPA_OK;
}

/* Memory of the host may be pinned, that of a CUDA device managed. */
static inline hpa_status hpa_dlpack_device(DLDevice from, hpa_device device, int32_t device_id,
                                           char *reason)
{
    const bool host = from.device_type == kDLCPU || from.device_type == kDLCUDAHost;
    const bool cuda = from.device_type == kDLCUDA || from.device_type == kDLCUDAManaged;
    if (device == HPA_CPU && !host)
        return hpa_dlpack_refuse(HPA_INVALID_DEVICE, reason, "device.device_type", from.device_type,
                                 "kDLCPU or kDLCUDAHost");
    if (device != HPA_CPU && !cuda)
        return hpa_dlpack_refuse(HPA_INVALID_DEVICE, reason, "device.device_type", from.device_type,
                                 "kDLCUDA or kDLCUDAManaged");
    if (from.device_type == kDLCUDA && from.device_id != device_id)
        return hpa_dlpack_refuse(HPA_INVALID_DEVICE, reason, "device.device_id", from.device_id,
                                 "the device_id of the description");
    return HPA_OK;
}

/* Shape and strides, which may be NULL: row-major without gaps. */
static inline hpa_status hpa_dlpack_shape(hpa_tensor *tensor, const DLTensor *from, char *reason)
{
    if (from->ndim < 1 || from->ndim > 4)
        return hpa_dlpack_refuse(HPA_INVALID_SHAPE, reason, "ndim", from->ndim, "1 to 4");
    tensor->ndim = from->ndim;
    int64_t compact = 1;
    for (int n = from->ndim - 1; n >= 0; n--) {
        tensor->shape[n] = from->shape[n];
        tensor->stride[n] = from->strides ? from->strides[n] : compact;
        if (tensor->shape[n] < 0)
            return hpa_dlpack_refuse(HPA_INVALID_SHAPE, reason, "shape", tensor->shape[n],
                                     "at least 0 everywhere");
        if (tensor->stride[n] < 0)
            return hpa_dlpack_refuse(HPA_INVALID_STRIDE, reason, "strides", tensor->stride[n],
                                     "at least 0 everywhere");
        if (tensor->shape[n] > 0 && compact > INT64_MAX / tensor->shape[n])
            return hpa_dlpack_refuse(HPA_INVALID_SHAPE, reason, "shape", tensor->shape[n],
                                     "fewer elements than 2^63");
        compact *= tensor->shape[n];
    }
    return HPA_OK;
}

/* A view of what *from describes, which must lie on the device of the description. Errors:
 * HPA_INVALID_DTYPE, _DEVICE, _SHAPE, _STRIDE, and _ALIGNMENT for a byte_offset inside an element. */
static inline hpa_status hpa_tensor_from_dlpack(hpa_tensor *tensor, const DLTensor *from,
                                                hpa_device device, int32_t device_id, char *reason)
{
    hpa_tensor view = {NULL, HPA_F32, 0, {0}, {0}};
    hpa_status status = hpa_dlpack_dtype(&view.dtype, from->dtype, reason);
    if (status == HPA_OK)
        status = hpa_dlpack_device(from->device, device, device_id, reason);
    if (status == HPA_OK)
        status = hpa_dlpack_shape(&view, from, reason);
    if (status != HPA_OK)
        return status;
    if (from->byte_offset % (uint64_t)hpa_dlpack_bytes(view.dtype) != 0)
        return hpa_dlpack_refuse(HPA_INVALID_ALIGNMENT, reason, "byte_offset",
                                 (int64_t)from->byte_offset, "a multiple of the element's bytes");
    if (from->data)
        view.data = (char *)from->data + from->byte_offset;
    *tensor = view;
    return HPA_OK;
}

#ifdef DLPACK_FLAG_BITMASK_READ_ONLY
/* The same of the versioned struct, where the caller's DLPack has it. written: the library will write
 * to the tensor, which one that is marked as read-only forbids. */
static inline hpa_status hpa_tensor_from_dlpack_versioned(hpa_tensor *tensor,
                                                          const DLManagedTensorVersioned *from,
                                                          bool written, hpa_device device,
                                                          int32_t device_id, char *reason)
{
    if (from->version.major != DLPACK_MAJOR_VERSION)
        return hpa_dlpack_refuse(HPA_UNSUPPORTED, reason, "version.major",
                                 (int64_t)from->version.major, "that of the DLPack header");
    if (written && (from->flags & DLPACK_FLAG_BITMASK_READ_ONLY))
        return hpa_dlpack_refuse(HPA_INVALID_ARGUMENT, reason, "flags", (int64_t)from->flags,
                                 "no DLPACK_FLAG_BITMASK_READ_ONLY on a tensor that is written");
    return hpa_tensor_from_dlpack(tensor, &from->dl_tensor, device, device_id, reason);
}
#endif

/* The other way: *to looks at *tensor's memory, and its shape and strides are *tensor's own, so both
 * must outlive it. byte_offset is 0. Errors: HPA_INVALID_DTYPE, _SHAPE, _DEVICE. */
static inline hpa_status hpa_tensor_to_dlpack(DLTensor *to, hpa_tensor *tensor, hpa_device device,
                                              int32_t device_id, char *reason)
{
    const int64_t bytes = hpa_dlpack_bytes(tensor->dtype);
    if (bytes == 0)
        return hpa_dlpack_refuse(HPA_INVALID_DTYPE, reason, "dtype", tensor->dtype,
                                 "one of hpa_dtype");
    if (tensor->ndim < 1 || tensor->ndim > 4)
        return hpa_dlpack_refuse(HPA_INVALID_SHAPE, reason, "ndim", tensor->ndim, "1 to 4");
    if (device != HPA_CPU && device != HPA_CUDA)
        return hpa_dlpack_refuse(HPA_INVALID_DEVICE, reason, "device", device,
                                 "HPA_CPU or HPA_CUDA");
    const bool integer = tensor->dtype == HPA_I32 || tensor->dtype == HPA_I64;
    to->data = tensor->data;
    to->device.device_type = device == HPA_CPU ? kDLCPU : kDLCUDA;
    to->device.device_id = device_id;
    to->ndim = tensor->ndim;
    to->dtype.code = (uint8_t)(tensor->dtype == HPA_BF16 ? kDLBfloat : integer ? kDLInt : kDLFloat);
    to->dtype.bits = (uint8_t)(8 * bytes);
    to->dtype.lanes = 1;
    to->shape = tensor->shape;
    to->strides = tensor->stride;
    to->byte_offset = 0;
    return HPA_OK;
}

#ifdef __cplusplus
}
#endif
#endif
