#include "core/cuda/tma_map.h"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>
#include <inttypes.h>

namespace
{

/* The driver's encoder, found at run time so that the library loads without a driver. */
hpa_status find_encoder(PFN_cuTensorMapEncodeTiled_v12000 *encode)
{
    cudaDriverEntryPointQueryResult found;
    void *function = nullptr;
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                               12000, cudaEnableDefault, &found);
    if (error != cudaSuccess || found != cudaDriverEntryPointSuccess)
        return hpa_fail(HPA_CUDA_ERROR, "the driver has no cuTensorMapEncodeTiled: %s",
                        cudaGetErrorString(error));
    *encode = reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
    return HPA_OK;
}

/* A dimension of a tensor map: elements, and bytes from one to the next. */
struct map_dimension {
    int64_t size, bytes;
    uint32_t box;
};

/* dimensions[0] is contiguous. */
hpa_status encode_map(CUtensorMap *map, const char *name, const hpa_tensor *tensor,
                      const map_dimension *dimensions, uint32_t count)
{
    cuuint64_t sizes[5], bytes[5];
    cuuint32_t box[5], element_steps[5];
    for (uint32_t n = 0; n < count; n++) {
        sizes[n] = (cuuint64_t)dimensions[n].size;
        bytes[n] = (cuuint64_t)dimensions[n].bytes;
        box[n] = dimensions[n].box;
        element_steps[n] = 1;
        if (n > 0 && (dimensions[n].bytes <= 0 || dimensions[n].bytes % 16 != 0))
            return hpa_fail(HPA_INVALID_STRIDE,
                            "%s has a stride of %" PRId64
                            " elements, expected a multiple of 8 above 0 for this kernel",
                            name, dimensions[n].bytes / 2);
    }
    PFN_cuTensorMapEncodeTiled_v12000 encode = nullptr;
    HPA_TRY(find_encoder(&encode));
    const CUresult result =
        encode(map,
               tensor->dtype == HPA_F16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                        : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
               count, tensor->data, sizes, bytes + 1, box, element_steps,
               CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS)
        return hpa_fail(HPA_CUDA_ERROR, "no tensor map for %s: driver error %d", name, (int)result);
    return HPA_OK;
}

/* A dimension of the tensor. The stride of one element is never walked, whatever the caller put
 * there. */
map_dimension dimension_of(const hpa_tensor *tensor, int64_t size, int64_t stride, uint32_t box)
{
    const int64_t head_dim = tensor->shape[tensor->ndim - 1];
    return {size, (size == 1 ? head_dim : stride) * 2, box};
}

} // namespace

hpa_status hpa_tma_map_of(CUtensorMap *map, const char *name, const hpa_tensor *tensor, bool packed,
                          uint32_t box_tokens)
{
    const hpa_strides strides = hpa_strides_of(tensor, packed);
    const map_dimension dimensions[] = {
        {tensor->shape[tensor->ndim - 1], 2, HPA_TMA_COLUMNS},
        dimension_of(tensor, packed ? tensor->shape[0] : tensor->shape[2], strides.token,
                     box_tokens),
        dimension_of(tensor, tensor->shape[1], strides.head, 1),
        dimension_of(tensor, packed ? 1 : tensor->shape[0], strides.batch, 1)};
    return encode_map(map, name, tensor, dimensions, 4);
}

hpa_status hpa_tma_rows_map_of(CUtensorMap *map, const char *name, const hpa_tensor *tensor,
                               bool packed, uint32_t box_tokens)
{
    const hpa_strides strides = hpa_strides_of(tensor, packed);
    const int64_t panels = tensor->shape[tensor->ndim - 1] / HPA_TMA_COLUMNS;
    const map_dimension dimensions[] = {
        {HPA_TMA_COLUMNS, 2, HPA_TMA_COLUMNS},
        dimension_of(tensor, packed ? tensor->shape[0] : tensor->shape[2], strides.token,
                     box_tokens),
        {panels, HPA_TMA_COLUMNS * 2, (uint32_t)panels},
        dimension_of(tensor, tensor->shape[1], strides.head, 1),
        dimension_of(tensor, packed ? 1 : tensor->shape[0], strides.batch, 1)};
    return encode_map(map, name, tensor, dimensions, 5);
}
