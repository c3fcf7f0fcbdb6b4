/* The kernels that build a mask, and the transpose that they share. */
#ifndef HPA_MASK_KERNELS_H
#define HPA_MASK_KERNELS_H

#include "core/plan.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const hpa_mask_kernel hpa_mask_ref; /* plain loops in double precision: the specification */
/* All cores, vectorised: one for f64, and one for the others. */
extern const hpa_mask_kernel hpa_mask_cpu_f64, hpa_mask_cpu_f32;

/* mask_simt, mask_mma or mask_sm90, by dtype, shapes and device. */
const hpa_mask_kernel *hpa_mask_select_cuda(const hpa_plan *plan);

/* Writes the header and, when packed, the lengths. */
void hpa_mask_begin(const hpa_geometry *g, const hpa_inputs *in, hpa_mask *m);

/* Fills column_start and column_rows from the rows, in O(kept blocks). Every list ascends. */
void hpa_mask_transpose_cpu(const hpa_geometry *g, hpa_mask *m, int32_t num_threads);

#ifdef __cplusplus
}
#endif
#endif
