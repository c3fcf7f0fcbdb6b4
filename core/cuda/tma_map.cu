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

} // namespace

hpa_status hpa_tma_map_of(CUtensorMap *map, const char *name, const hpa_tensor *tensor, bool packed,
                          uint32_t box_tokens)
{
    const hpa_strides strides = hpa_strides_of(tensor, packed);
    const int64_t head_dim = tensor->shape[tensor->ndim - 1];
    const int64_t shape[4] = {head_dim, packed ? tensor->shape[0] : tensor->shape[2],
                              tensor->shape[1], packed ? 1 : tensor->shape[0]};
    const int64_t steps[3] = {strides.token, strides.head, strides.batch};
    cuuint64_t sizes[4], bytes[3];
    for (int n = 0; n < 4; n++)
        sizes[n] = (cuuint64_t)shape[n];
    for (int n = 0; n < 3; n++) {
        /* The stride of a dimension of one element is never walked, whatever the caller put there. */
        bytes[n] = shape[n + 1] == 1 ? (cuuint64_t)head_dim * 2 : (cuuint64_t)steps[n] * 2;
        if (bytes[n] == 0 || bytes[n] % 16 != 0)
            return hpa_fail(HPA_INVALID_STRIDE,
                            "%s has a stride of %" PRId64
                            " elements, expected a multiple of 8 above 0 for this kernel",
                            name, steps[n]);
    }
    const cuuint32_t box[4] = {HPA_TMA_COLUMNS, box_tokens, 1, 1}, element_steps[4] = {1, 1, 1, 1};
    PFN_cuTensorMapEncodeTiled_v12000 encode = nullptr;
    HPA_TRY(find_encoder(&encode));
    const CUresult result =
        encode(map,
               tensor->dtype == HPA_F16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                        : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
               4, tensor->data, sizes, bytes, box, element_steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
               CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
               CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS)
        return hpa_fail(HPA_CUDA_ERROR, "no tensor map for %s: driver error %d", name, (int)result);
    return HPA_OK;
}
