/* The kernels of the backward pass. */
#ifndef HPA_BACKWARD_KERNELS_H
#define HPA_BACKWARD_KERNELS_H

#include "core/cuda/instances.h"
#include "core/plan.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const hpa_backward_kernel hpa_backward_ref; /* plain loops in double precision */
/* All cores, vectorised: one for f64, and one for the others. */
extern const hpa_backward_kernel hpa_backward_cpu_f64, hpa_backward_cpu_f32;

/* CUDA */
extern const hpa_backward_kernel hpa_backward_simt; /* any dtype and head_dim */
/* Shared memory of one of its thread blocks: some devices have too little for wide f64 rows. */
int64_t hpa_backward_simt_shared_bytes(const hpa_desc *desc);
#define HPA_DECLARE(dtype, name, type, head_dim) \
    extern const hpa_backward_kernel hpa_backward_mma_##name##_##head_dim;
HPA_MMA_INSTANCES(HPA_DECLARE) /* tensor cores of sm_80 and later */
#undef HPA_DECLARE
#define HPA_DECLARE(dtype, name, type, head_dim) \
    extern const hpa_backward_kernel hpa_backward_sm90_##name##_##head_dim;
HPA_SM90_INSTANCES(HPA_DECLARE) /* Hopper's, block_q 128 or 256 */
#undef HPA_DECLARE

/* The two halves of the _mma kernels, for what the Hopper kernels leave to them. The scratch begins
 * like that of _mma and holds the stats of the rows. only: by work, 1 where something is left to do
 * (queries: 64 at a time; keys: columns and pieces that have been split already); NULL: do all. */
typedef struct hpa_backward_parts {
    hpa_status (*queries)(const hpa_plan *plan, const void *mask, const hpa_inputs *in,
                          const hpa_gradients *grads, const hpa_exec *exec, const uint8_t *only);
    hpa_status (*keys)(const hpa_plan *plan, const void *mask, const hpa_inputs *in,
                       const hpa_gradients *grads, const hpa_exec *exec, const uint8_t *only);
} hpa_backward_parts;
#define HPA_DECLARE(dtype, name, type, head_dim) \
    extern const hpa_backward_parts hpa_backward_mma_parts_##name##_##head_dim;
HPA_MMA_INSTANCES(HPA_DECLARE)
#undef HPA_DECLARE

#ifdef __cplusplus
}
#endif
#endif
