/* A plan as plain data, and the face that each operation's kernels show to it.
 *
 * mask/, forward/ and backward/ each offer a *_select that answers with a kernel or with the reason
 * why none serves; plan/ asks, and keeps the answers here. Execution reads them back: nothing is
 * decided twice. */
#ifndef HPA_CORE_PLAN_H
#define HPA_CORE_PLAN_H

#include "core/cuda/device.h"
#include "core/geometry.h"
#include "core/mask_layout.h"
#include "core/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct hpa_mask_kernel {
    const char *name;
    size_t (*scratch_bytes)(const hpa_plan *plan);
    hpa_status (*run)(const hpa_plan *plan, const hpa_inputs *in, void *mask, const hpa_exec *exec);
} hpa_mask_kernel;

typedef struct hpa_forward_kernel {
    const char *name;
    size_t (*scratch_bytes)(const hpa_plan *plan);
    hpa_status (*run)(const hpa_plan *plan, const void *mask, const hpa_inputs *in,
                      const hpa_outputs *out, const hpa_exec *exec);
} hpa_forward_kernel;

typedef struct hpa_backward_kernel {
    const char *name;
    size_t (*scratch_bytes)(const hpa_plan *plan);
    hpa_status (*run)(const hpa_plan *plan, const void *mask, const hpa_inputs *in,
                      const hpa_outputs *out, const hpa_gradients *grads, const hpa_exec *exec);
} hpa_backward_kernel;

struct hpa_plan {
    hpa_desc desc; /* checked, as the caller gave it */
    hpa_geometry geometry;
    hpa_sizes sizes;
    const hpa_mask_kernel *mask;
    const hpa_forward_kernel *forward;
    const hpa_backward_kernel *backward; /* NULL when training is false */
    const struct hpa_cpu_kernels *cpu;   /* the instruction set in use; NULL for other devices */
    int32_t num_threads;                 /* CPU: at least 1 */
    hpa_cuda_device cuda;                /* CUDA: zeros for other devices */
    char description[1024];
};

/* Each writes *kernel, or fails with the reason. The plan's description and device are known. */
hpa_status hpa_mask_select(const hpa_plan *plan, const hpa_mask_kernel **kernel);
hpa_status hpa_forward_select(const hpa_plan *plan, const hpa_forward_kernel **kernel);
hpa_status hpa_backward_select(const hpa_plan *plan, const hpa_backward_kernel **kernel);

#ifdef __cplusplus
}
#endif
#endif
