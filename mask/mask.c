/* The front door of the mask: check, look up, run. */
#include "core/check.h"
#include "mask/kernels.h"

#include <string.h>

static const hpa_mask_kernel *select_cpu(const hpa_plan *plan)
{
    if (plan->desc.reference)
        return &hpa_mask_ref;
    return plan->desc.dtype == HPA_F64 ? &hpa_mask_cpu_f64 : &hpa_mask_cpu_f32;
}

hpa_status hpa_mask_select(const hpa_plan *plan, const hpa_mask_kernel **kernel)
{
    *kernel = select_cpu(plan);
#ifdef HPA_WITH_CUDA
    if (plan->desc.device == HPA_CUDA)
        *kernel = hpa_mask_select_cuda(plan);
#endif
    return HPA_OK;
}

void hpa_mask_begin(const hpa_geometry *g, const hpa_inputs *in, hpa_mask *m)
{
    *m->header = hpa_mask_header_of(g);
    if (!g->packed)
        return;
    const size_t bytes = sizeof(int32_t) * (size_t)(g->batch + 1);
    memcpy(m->cu_seqlens_q, in->cu_seqlens_q, bytes);
    memcpy(m->cu_seqlens_kv, in->cu_seqlens_kv, bytes);
}

static hpa_status check_mask_build(const hpa_plan *plan, const hpa_inputs *in, const void *mask,
                                   const hpa_exec *exec)
{
    HPA_TRY(hpa_check_pointer("plan", plan));
    HPA_TRY(hpa_check_inputs(plan, in, false));
    HPA_TRY(hpa_check_mask(plan, mask, false));
    return hpa_check_scratch(exec, plan->sizes.mask_scratch);
}

hpa_status hpa_mask_build(const hpa_plan *plan, const hpa_inputs *in, void *mask,
                          const hpa_exec *exec)
{
    HPA_TRY(check_mask_build(plan, in, mask, exec));
    return plan->mask->run(plan, in, mask, exec);
}
