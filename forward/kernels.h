/* The kernels of the forward pass. */
#ifndef HPA_FORWARD_KERNELS_H
#define HPA_FORWARD_KERNELS_H

#include "core/cuda/instances.h"
#include "core/plan.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const hpa_forward_kernel
    hpa_forward_ref; /* plain loops in double precision: the specification */
/* All cores, vectorised: one for f64, and one for the others. */
extern const hpa_forward_kernel hpa_forward_cpu_f64, hpa_forward_cpu_f32;

/* CUDA */
extern const hpa_forward_kernel hpa_forward_simt; /* any dtype and head_dim */
#define HPA_DECLARE(dtype, name, type, head_dim) \
    extern const hpa_forward_kernel hpa_forward_mma_##name##_##head_dim;
HPA_MMA_INSTANCES(HPA_DECLARE) /* tensor cores of sm_80 and later */
#undef HPA_DECLARE
#define HPA_DECLARE(dtype, name, type, head_dim) \
    extern const hpa_forward_kernel hpa_forward_sm90_##name##_##head_dim;
HPA_SM90_INSTANCES(HPA_DECLARE) /* Hopper's, block_q 128 or 256 */
#undef HPA_DECLARE

#ifdef __cplusplus
}
#endif
#endif
