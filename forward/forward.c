/* The front door of the forward pass: check, look up, run. */
#include "core/check.h"
#include "forward/kernels.h"

#ifdef HPA_WITH_CUDA
/* What a kernel serves; 0: any. The first row that fits is taken. */
typedef struct cuda_row {
    int32_t dtype;
    int64_t head_dim;
    int32_t minimum_architecture;
    bool hopper_alone; /* code for sm_90a */
    int64_t block_q_multiple;
    const hpa_forward_kernel *kernel;
} cuda_row;

#define SM90_ROW(dtype, name, type, head_dim) \
    {dtype, head_dim, 90, true, 128, &hpa_forward_sm90_##name##_##head_dim},
#define MMA_ROW(dtype, name, type, head_dim) \
    {dtype, head_dim, 80, false, 16, &hpa_forward_mma_##name##_##head_dim},
static const cuda_row cuda_rows[] = {
    HPA_SM90_INSTANCES(SM90_ROW) HPA_MMA_INSTANCES(MMA_ROW){0, 0, 0, false, 16, &hpa_forward_simt}};

static const hpa_forward_kernel *select_cuda(const hpa_plan *plan)
{
    for (const cuda_row *row = cuda_rows;; row++)
        if ((row->dtype == 0 || row->dtype == (int32_t)plan->desc.dtype) &&
            (row->head_dim == 0 || row->head_dim == plan->desc.head_dim) &&
            row->minimum_architecture <= plan->cuda.architecture &&
            (!row->hopper_alone || plan->cuda.sm90a) &&
            plan->desc.block_q % row->block_q_multiple == 0)
            return row->kernel;
}
#endif

static const hpa_forward_kernel *select_cpu(const hpa_plan *plan)
{
    if (plan->desc.reference)
        return &hpa_forward_ref;
    return plan->desc.dtype == HPA_F64 ? &hpa_forward_cpu_f64 : &hpa_forward_cpu_f32;
}

hpa_status hpa_forward_select(const hpa_plan *plan, const hpa_forward_kernel **kernel)
{
    *kernel = select_cpu(plan);
#ifdef HPA_WITH_CUDA
    if (plan->desc.device == HPA_CUDA)
        *kernel = select_cuda(plan);
#endif
    return HPA_OK;
}

static hpa_status check_outputs(const hpa_plan *plan, const hpa_inputs *in, const hpa_outputs *out)
{
    const hpa_geometry *g = &plan->geometry;
    const hpa_dtype dtype = plan->desc.dtype;
    HPA_TRY(hpa_check_pointer("out", out));
    const hpa_expected o = hpa_expect(g, "out.out", dtype, true, true, true);
    const hpa_expected lse = hpa_expect(g, "out.lse", hpa_lse_dtype(dtype), true, false, true);
    HPA_TRY(hpa_tensor_check(&out->out, &o));
    HPA_TRY(hpa_tensor_check(&out->lse, &lse));
    HPA_TRY(hpa_tensor_check_apart(&out->out, "out.out", &out->lse, "out.lse"));
    const hpa_tensor *const read[] = {&in->q, &in->k, &in->v};
    const char *const names[] = {"in.q", "in.k", "in.v"};
    for (int n = 0; n < 3; n++) {
        HPA_TRY(hpa_tensor_check_apart(&out->out, "out.out", read[n], names[n]));
        HPA_TRY(hpa_tensor_check_apart(&out->lse, "out.lse", read[n], names[n]));
    }
    return HPA_OK;
}

static hpa_status check_forward(const hpa_plan *plan, const void *mask, const hpa_inputs *in,
                                const hpa_outputs *out, const hpa_exec *exec)
{
    HPA_TRY(hpa_check_pointer("plan", plan));
    HPA_TRY(hpa_check_inputs(plan, in, true));
    HPA_TRY(check_outputs(plan, in, out));
    HPA_TRY(hpa_check_mask(plan, mask, true));
    HPA_TRY(hpa_check_same_lengths(plan, mask, in));
    return hpa_check_scratch(exec, plan->sizes.forward_scratch);
}

hpa_status hpa_forward(const hpa_plan *plan, const void *mask, const hpa_inputs *in,
                       const hpa_outputs *out, const hpa_exec *exec)
{
    HPA_TRY(check_forward(plan, mask, in, out, exec));
    return plan->forward->run(plan, mask, in, out, exec);
}
