/* What the CUDA files of the mask share among them. */
#ifndef HPA_MASK_KERNELS_CUDA_H
#define HPA_MASK_KERNELS_CUDA_H

#include "core/cuda/launch.h"
#include "mask/kernels.h"

/* Writes the header and, when packed, the lengths: those of in, made such that every sequence lies
 * within the tensors whatever in holds. Later kernels read them from the mask. */
hpa_status hpa_mask_begin_cuda(const hpa_geometry *g, const hpa_inputs *in, const hpa_mask *m,
                               cudaStream_t stream);

/* counts[c] = rows that keep column c; counts[columns] = 0. */
hpa_status hpa_mask_count_columns_cuda(const hpa_geometry *g, const hpa_mask *m, int64_t *counts,
                                       cudaStream_t stream);

/* Fills column_start and column_rows from the rows, in O(kept blocks). Every list ascends.
 * scan_scratch: hpa_cuda_scan_scratch(columns + 1) elements. */
hpa_status hpa_mask_transpose_cuda(const hpa_geometry *g, const hpa_mask *m, int64_t *scan_scratch,
                                   cudaStream_t stream);

/* Scratch of the calls that look into a mask. */
size_t hpa_mask_inspect_cuda_bytes(const hpa_geometry *g);

#endif
