/* Tensor maps for tma.cuh, made on the host. */
#ifndef HPA_CORE_CUDA_TMA_MAP_H
#define HPA_CORE_CUDA_TMA_MAP_H

#include "core/cuda/rows.cuh"
#include "core/cuda/tma.cuh"
#include "core/tensor.h"

/* Can the copy engine walk it? It wants rows at multiples of 16 bytes, and strides above 0. */
static inline bool hpa_tma_can_copy(const hpa_tensor *tensor)
{
    bool can = rows_are_aligned(tensor);
    for (int32_t n = 0; n < tensor->ndim - 1; n++)
        can &= tensor->shape[n] <= 1 || tensor->stride[n] > 0;
    return can;
}

/* Describes a 16-bit q, k or v, from which boxes of 64 columns and box_tokens tokens are fetched at
 * (column, token, head, batch). Fails where the copy engine cannot walk the strides: it wants
 * multiples of 16 bytes. */
hpa_status hpa_tma_map_of(CUtensorMap *map, const char *name, const hpa_tensor *tensor, bool packed,
                          uint32_t box_tokens);

/* The same for tma_load_rows: boxes of all columns, head_dim a multiple of 64. */
hpa_status hpa_tma_rows_map_of(CUtensorMap *map, const char *name, const hpa_tensor *tensor,
                               bool packed, uint32_t box_tokens);

#endif
