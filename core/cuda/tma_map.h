/* Tensor maps for tma.cuh, made on the host. */
#ifndef HPA_CORE_CUDA_TMA_MAP_H
#define HPA_CORE_CUDA_TMA_MAP_H

#include "core/cuda/tma.cuh"
#include "core/tensor.h"

/* Describes a 16-bit q, k or v, from which boxes of 64 columns and box_tokens tokens are fetched at
 * (column, token, head, batch). Fails where the copy engine cannot walk the strides: it wants
 * multiples of 16 bytes. */
hpa_status hpa_tma_map_of(CUtensorMap *map, const char *name, const hpa_tensor *tensor, bool packed,
                          uint32_t box_tokens);

#endif
