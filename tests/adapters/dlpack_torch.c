/* dlpack_torch.c - attention of tensors that come as DLPack's, for dlpack_torch.py. */
#include DLPACK_HEADER

#include <hpa/dlpack.h>

enum { Q, K, V, OUT, LSE, COUNT };

static hpa_status plan_for(hpa_plan **plan, hpa_tensor *views, const DLTensor *const *given,
                           int32_t top_k, char *reason)
{
    const hpa_device device = given[Q]->device.device_type == kDLCPU ? HPA_CPU : HPA_CUDA;
    hpa_desc desc = hpa_desc_default();
    desc.device = device, desc.device_id = given[Q]->device.device_id;
    for (int n = 0; n < COUNT; n++) {
        const hpa_status status =
            hpa_tensor_from_dlpack(&views[n], given[n], device, desc.device_id, reason);
        if (status != HPA_OK)
            return status;
    }
    desc.dtype = views[Q].dtype;
    desc.batch = views[Q].shape[0], desc.head_dim = views[Q].shape[3];
    desc.heads_q = views[Q].shape[1], desc.heads_kv = views[K].shape[1];
    desc.seq_q = views[Q].shape[2], desc.seq_kv = views[K].shape[2];
    desc.top_k = top_k;
    const hpa_status status = hpa_plan_create(plan, &desc);
    snprintf(reason, HPA_DLPACK_REASON, "%s", hpa_last_error());
    return status;
}

/* Bytes of the mask and of scratch. reason: HPA_DLPACK_REASON characters. */
HPA_API int dlpack_torch_sizes(const DLTensor *const *given, int32_t top_k, size_t *bytes,
                               char *reason)
{
    hpa_tensor views[COUNT];
    hpa_plan *plan = NULL;
    hpa_sizes sizes = {0, 0, 0, 0};
    hpa_status status = plan_for(&plan, views, given, top_k, reason);
    if (status == HPA_OK)
        status = hpa_plan_sizes(plan, &sizes);
    hpa_plan_destroy(plan);
    bytes[0] = sizes.mask;
    bytes[1] = sizes.mask_scratch + sizes.forward_scratch;
    return (int)status;
}

/* Mask and forward of q, k and v to out and lse. */
HPA_API int dlpack_torch_attend(const DLTensor *const *given, int32_t top_k, void *mask,
                                const hpa_exec *exec, char *reason)
{
    hpa_tensor views[COUNT];
    hpa_plan *plan = NULL;
    hpa_status status = plan_for(&plan, views, given, top_k, reason);
    if (status != HPA_OK)
        return (int)status;
    const hpa_inputs in = {views[Q], views[K], views[V], NULL, NULL};
    const hpa_outputs out = {views[OUT], views[LSE]};
    status = hpa_mask_build(plan, &in, mask, exec);
    if (status == HPA_OK)
        status = hpa_forward(plan, mask, &in, &out, exec);
    snprintf(reason, HPA_DLPACK_REASON, "%s", hpa_last_error());
    hpa_plan_destroy(plan);
    return (int)status;
}
